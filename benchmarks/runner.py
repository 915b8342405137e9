"""Run the tasks: alternating runs of all backends, and the peak of memory of each.

The speed of a machine drifts, and two consecutive runs drift together. Therefore the backends alternate in one process,
and ratios compare runs of the same round. The peak of a process's memory never falls, so each backend gets its own.
"""

import gc
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import multi_process
from benchmarks.backends import BACKENDS, backends_of
from benchmarks.results import Result
from benchmarks.tasks import SEED, TASKS, Options, RandomModel, random_network
from sd.checkpoints.checkpoint import save_checkpoint
from sd.checkpoints.config import build_networks

MATMUL_SIDE = 4096  # large enough to reach a processor's peak
STEPS_FOR_PEAK = 2  # sampling steps: more of them take no more memory


def run(names: list[str], options: Options) -> Iterator[Result]:
    """Measure one task after another. Files that backends prepare are in a temporary folder."""
    with TemporaryDirectory() as folder:
        options = replace(options, work=Path(folder))
        for name in names:
            yield multi_process.measure(options) if name == "many" else measure(name, options)


def random_checkpoint(path: Path, options: Options) -> Path:
    """Write a .ckpt in fp32 with random weights, of v1-5's 4.27 GB unless tiny."""
    sizes = RandomModel(options).sizes
    networks = {
        part: random_network(network, torch.float32) for part, network in build_networks(sizes, "the benchmark").items()
    }
    save_checkpoint(path, **networks, config=sizes)
    return path


@torch.no_grad()
def measure(name: str, options: Options) -> Result:
    """Measure one task: the peaks of memory first, then one run of each backend to warm up, then the rounds.

    Where operations are counted, a large matrix product is timed in every round too, so that it drifts alike.
    """
    task = TASKS[name]
    prepare(options)
    backends, missing = backends_of(name, options)
    if name == "load" and options.ckpt is None:
        options = replace(options, ckpt=random_checkpoint(options.work / "random.ckpt", options))
    for backend in backends:
        BACKENDS[backend].prepare(name, options)
    peaks = {backend: peak_in_child(name, backend, options) for backend in backends} if task.memory else {}
    model = RandomModel(options)
    turns = {backend: make_turn(name, backend, model) for backend in backends}
    flops = count_flops(name, options)
    if flops:
        n = 256 if options.tiny else MATMUL_SIDE
        a, b = torch.randn(2, n, n, dtype=model.dtype, device=model.device)
        turns["matmul"] = lambda: a @ b
        flops["matmul"] = 2 * n**3
    answers = {backend: task.answer(turns[backend]()) for backend in backends}  # this also warms up all backends
    differences = differences_of(answers)
    del answers
    return Result(name, alternate(turns, options.rounds * task.turns), flops, differences, peaks, missing)


def make_turn(name: str, backend: str, model: RandomModel) -> Callable:
    """Return the function that one run of this backend calls. Ours imports nothing of diffusers."""
    return getattr(BACKENDS[backend], name)(model)


def prepare(options: Options) -> None:
    torch.manual_seed(SEED)
    torch.compiler.reset()  # frees an earlier task's networks
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def alternate(turns: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of `rounds` runs of each function, alternating. Freeing a result is not part of the time."""
    seconds = {name: [] for name in turns}
    gc.freeze()  # excludes existing objects, such as imported modules, from the collection before every run
    for _ in range(rounds):
        for name, turn in turns.items():
            gc.collect()
            began = time.perf_counter()
            result = turn()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
            del result
    gc.unfreeze()
    return seconds


def differences_of(answers: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative error of each output against diffusers', or the unpatched model's without diffusers."""
    known = next((backend for backend in ("diffusers", "plain") if backend in answers), None)
    if known is None:
        return {}
    return {backend: relative_difference(answers[backend], answers[known]) for backend in answers if backend != known}


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return |ours - theirs| / |theirs|, in the 2-norm over all elements."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()


def count_flops(name: str, options: Options) -> dict[str, int]:
    """Return {"task": floating-point operations of one run}, from the meta device; {} where none are counted."""
    if name == "txt2img":
        one = {part: count_flops(part, options)["task"] for part in ("text", "unet", "vae")}
        return {"task": one["text"] + options.steps * one["unet"] + one["vae"]}
    if TASKS[name].work is None:
        return {}
    with FlopCounterMode(display=False) as counter:
        TASKS[name].work(RandomModel(options, "meta"))
    return {"task": counter.get_total_flops()}


def peak_in_child(name: str, backend: str, options: Options) -> int | None:
    """Return the result of `run_and_measure_peak` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run_and_measure_peak, name, backend, replace(options, steps=STEPS_FOR_PEAK)).result()


@torch.no_grad()
def run_and_measure_peak(name: str, backend: str, options: Options) -> int | None:
    """Do one run and return this process's peak of memory in bytes; on a GPU, the peak of GPU memory."""
    prepare(options)
    make_turn(name, backend, RandomModel(options))()
    return torch.cuda.max_memory_allocated() if options.device == "cuda" else peak_resident_bytes()


def peak_resident_bytes() -> int | None:
    """Return this process's peak of resident memory in bytes, mapped files included; None except on Linux.

    `ru_maxrss` does not serve, because a child process inherits its parent's value.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None
