"""Devices and number formats: the defaults of this machine, and names as users give them."""

import os
from collections.abc import Callable
from typing import Any

import torch

from sd.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes that `torchrun` started; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16


def device_of(name: str | None) -> torch.device:
    """None: a GPU where there is one. Raises UserError for what is no device's name."""
    try:
        return default_device() if name is None else torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"there is no device {name!r}: write cpu, cuda, cuda:1 or mps.") from error


def check_device(device: torch.device) -> None:
    """Raises UserError for one that cannot be used here. On a GPU it takes what memory a process takes there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"the device {device} cannot be used here ({reason}): choose another, such as cpu.") from error


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype that a flag means. "autocast", CompVis' word, is half precision on a GPU."""
    if precision == "autocast" and device.type != "cpu":
        return torch.float16
    if precision == "autocast":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    return DTYPES.get("fp32" if precision == "full" else precision, default_dtype(device))


def best_precision(device: torch.device | str) -> str:
    """Returns the fastest precision of the device that training tolerates: "bf16", "fp16" or "fp32"."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if kind == "cpu" and cpu_has_bf16() else "fp32"


def find_private(name: str) -> Callable | None:
    """A private function of PyTorch, by its path below `torch`; None where this version or build has none."""
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def cpu_has(name: str) -> bool:
    """Returns the result of one of PyTorch's private predicates on this CPU; False where PyTorch lacks it."""
    predicate = find_private(name)
    return predicate is not None and bool(predicate())


def cpu_has_bf16() -> bool:
    """Returns whether oneDNN multiplies in bf16 here, by instructions of the CPU.

    On AVX-512 without bf16 instructions oneDNN accepts bf16 too, but converts to fp32 around each product: a training
    step of a ControlNet took 2.3 times as long in bf16 as in fp32 there.
    """
    if find_private("cpu._is_avx512_bf16_supported") and cpu_has("cpu._is_avx512_supported"):
        return cpu_has("cpu._is_avx512_bf16_supported") or cpu_has_amx()
    return cpu_has("ops.mkldnn._is_mkldnn_bf16_supported")


def cpu_has_amx() -> bool:
    """Returns whether the CPU has a matrix unit (AMX)."""
    return cpu_has("cpu._is_amx_tile_supported")


def cpu_has_vnni() -> bool:
    """Returns whether the CPU multiplies and adds bytes in one instruction (VNNI)."""
    return cpu_has("cpu._is_vnni_supported")
