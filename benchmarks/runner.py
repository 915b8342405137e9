"""The turns, the pairs, the peaks.

A machine's speed drifts, and two runs that follow each other drift together: so the sides take turns in one process,
and what is compared is pairs of neighbours. Peak memory never falls while a process lives: each side gets its own.
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

from benchmarks import multi_process as many
from benchmarks.backends import BACKENDS, backends_of
from benchmarks.results import Result
from benchmarks.tasks import SEED, TASKS, Options, RandomModel, random_network
from sd.checkpoints.checkpoint import save_checkpoint
from sd.checkpoints.config import build_networks

MATMUL_SIDE = 4096  # large enough for a processor's best
STEPS_FOR_PEAK = 2  # of a picture: more of them take no more memory


def run(names: list[str], options: Options) -> Iterator[Result]:
    """Measures one task after another. What sides need beforehand is made in a temporary folder."""
    with TemporaryDirectory() as folder:
        options = replace(options, work=Path(folder))
        for name in names:
            yield many.measure(options) if name == "many" else measure(name, options)


def random_checkpoint(path: Path, options: Options) -> Path:
    """Writes a .ckpt in fp32, as v1-5's is: 4.27 GB unless tiny."""
    sizes = RandomModel(options).sizes
    networks = {
        part: random_network(network, torch.float32) for part, network in build_networks(sizes, "the benchmark").items()
    }
    save_checkpoint(path, **networks, config=sizes)
    return path


@torch.no_grad()
def measure(name: str, options: Options) -> Result:
    """One task: its peaks while this process holds no weights yet, a turn of each side to warm up, and then the rounds.

    Where operations are counted, a large matrix product takes its turns too, so that its drift is the same.
    """
    task = TASKS[name]
    prepare(options)
    sides, missing = backends_of(name, options)
    if name == "load" and options.ckpt is None:
        options = replace(options, ckpt=random_checkpoint(options.work / "random.ckpt", options))
    for side in sides:
        BACKENDS[side].make_ready(name, options)
    peaks = {side: peak_in_child(name, side, options) for side in sides} if task.memory else {}
    model = RandomModel(options)
    turns = {side: turn_of(name, side, model) for side in sides}
    flops = count_flops(name, options)
    if flops:
        n = 256 if options.tiny else MATMUL_SIDE
        a, b = torch.randn(2, n, n, dtype=model.dtype, device=model.device)
        turns["matmul"] = lambda: a @ b
        flops["matmul"] = 2 * n**3
    answers = {side: task.answer(turns[side]()) for side in sides}  # and all is warm now
    differences = differences_of(answers)
    del answers
    return Result(name, alternate(turns, options.rounds * task.turns), flops, differences, peaks, missing)


def turn_of(name: str, side: str, model: RandomModel) -> Callable:
    """What one turn of this side runs. Nothing of diffusers is imported for our own."""
    return getattr(BACKENDS[side], name)(model)


def prepare(options: Options) -> None:
    torch.manual_seed(SEED)
    torch.compiler.reset()  # lets go of an earlier task's networks
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def alternate(turns: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """The seconds of `rounds` turns of each, in turn. What a turn gave is let go of outside of the time."""
    seconds = {name: [] for name in turns}
    gc.freeze()  # what is there already, such as all that was imported, is not searched before every turn
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
    """Of each from diffusers', or from the textbook's where that is not here."""
    known = next((side for side in ("diffusers", "plain") if side in answers), None)
    if known is None:
        return {}
    return {side: relative_difference(answers[side], answers[known]) for side in answers if side != known}


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in the 2-norm over everything."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()


def count_flops(name: str, options: Options) -> dict[str, int]:
    """{"task": floating-point operations of one turn}, counted on the meta device; {} where none are counted."""
    if name == "txt2img":
        one = {part: count_flops(part, options)["task"] for part in ("text", "unet", "vae")}
        return {"task": one["text"] + options.steps * one["unet"] + one["vae"]}
    if TASKS[name].work is None:
        return {}
    with FlopCounterMode(display=False) as counter:
        TASKS[name].work(RandomModel(options, "meta"))
    return {"task": counter.get_total_flops()}


def peak_in_child(name: str, side: str, options: Options) -> int | None:
    """`peak_of` in a new process, which has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_of, name, side, replace(options, steps=STEPS_FOR_PEAK)).result()


@torch.no_grad()
def peak_of(name: str, side: str, options: Options) -> int | None:
    """The most memory in bytes that this process held at a time, with one turn done; on a GPU, of the GPU's."""
    prepare(options)
    turn_of(name, side, RandomModel(options))()
    return torch.cuda.max_memory_allocated() if options.device == "cuda" else most_resident()


def most_resident() -> int | None:
    """The most memory in bytes that this process ever held, pages of mapped files included; only Linux says it.

    Not `ru_maxrss`: a child begins with its parent's.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None
