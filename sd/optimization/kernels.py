"""PyTorch's private CPU operators: looked up before use, tried once, and named in a sentence where they are missing.

They have no promise of stability: a version of PyTorch may rename one or change its arguments. A patch that needs one
then steps aside, and `--list-optimizations` says why.
"""

from collections.abc import Callable
from functools import cache

import torch

from sd.utils.device import cpu_has_bf16, find_private

FLOATS = (torch.float32, torch.bfloat16)

# A name that was changed between versions is followed by the older one.
CONVOLUTION = ("ops.mkldnn._convolution_pointwise",)
REORDER = ("_C._nn.mkldnn_reorder_conv2d_weight",)
LINEAR = ("ops.mkldnn._linear_pointwise",)
LINEAR_BINARY = ("ops.mkldnn._linear_pointwise.binary",)
PACK_BYTES_LINEAR = ("ops.onednn.qlinear_prepack",)
BYTES_LINEAR = ("ops.onednn.qlinear_pointwise",)
PACK_BYTES_CONVOLUTION = ("ops.onednn.qconv_prepack",)
BYTES_CONVOLUTION = ("ops.onednn.qconv_pointwise", "ops.onednn.qconv2d_pointwise")


@cache
def find_kernel(names: tuple[str, ...]) -> Callable:
    """Returns the operator that has the first of these names.

    Raises AttributeError where this PyTorch has none of them.
    """
    for name in names:
        if (found := find_private(name)) is not None:
            return found
    raise AttributeError(f"PyTorch {torch.__version__} has no operator torch.{names[0]}.")


@cache
def trial_obstacle(trial: Callable[[torch.dtype], None], dtype: torch.dtype) -> str:
    """Returns why a trial of some operators on a small input fails with this PyTorch; empty where it succeeds."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # it leaves the caller's random numbers as they are
            trial(dtype)
    except AttributeError as error:
        return str(error)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"its operators work differently in PyTorch {torch.__version__}: {first.rstrip(chr(46))}."
    return ""


def cpu_obstacle(device: torch.device, dtype: torch.dtype, wanted: torch.dtype | None = None, why: str = "") -> str:
    """Returns why what is for CPUs does not work here; empty where it does.

    wanted: the one dtype in which it works, None for any. why: the answer for another one.
    """
    if device.type != "cpu":
        return "it is for CPUs."
    return why if wanted not in (None, dtype) else ""


@cache
def onednn_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why oneDNN does not compute in this dtype; it does in fp32, and in bf16 where the CPU has it."""
    if found := cpu_obstacle(device, dtype):
        return found
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN."
    if dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_has_bf16()):
        return ""
    return f"this CPU has no fast {str(dtype).removeprefix('torch.')} products." if dtype in FLOATS else needs_floats()


def needs_floats() -> str:
    return "it needs fp32 or bf16."
