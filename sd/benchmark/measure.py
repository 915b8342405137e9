"""The turns, the pairs, the peaks.

A machine's speed drifts, and two runs that follow each other drift together: so the sides take turns in one process,
and what is compared is pairs of neighbours. Peak memory never falls while a process lives: each side gets its own.
"""

import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sd.benchmark.peers import have_peers, quiet
from sd.benchmark.tasks import SEED, SIDES, TASKS, Options, RandomModel, random_network
from sd.checkpoint import save
from sd.sizes import build

MATMUL_SIDE = 4096  # large enough for a processor's best


@dataclass
class Result:
    """seconds: of every turn, by side, and of a matrix product as "matmul"; flops: of a turn, and of that product.

    difference: of the sides' answers, relative. peak_bytes: of a process that does the task once, by side.
    """

    name: str
    seconds: dict[str, list[float]]
    flops: dict[str, int]
    difference: float | None
    peak_bytes: dict[str, int | None] = field(default_factory=dict)

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    def ratios(self) -> list[float]:
        """ours / diffusers, turn by turn; empty without diffusers."""
        return [ours / theirs for ours, theirs in zip(*(self.seconds.get(side, []) for side in SIDES))]

    def share(self, side: str) -> float | None:
        """How much of the fastest matrix product's operations a second this side reaches; None where none counted."""
        if not self.flops:
            return None
        peak = self.flops["matmul"] / min(self.seconds["matmul"])
        return self.flops["task"] / self.median(side) / peak


def run(names: list[str], options: Options) -> Iterator[Result]:
    """Measures one task after another. A checkpoint to load is made in a temporary folder if there is none."""
    for name in names:
        if name != "load" or options.ckpt is not None:
            yield measure(name, options)
            continue
        with TemporaryDirectory() as folder:
            yield measure(name, replace(options, ckpt=random_checkpoint(Path(folder) / "random.ckpt", options)))


def random_checkpoint(path: Path, options: Options) -> Path:
    """Writes a .ckpt in fp32, as v1-5's is: 4.27 GB unless tiny."""
    sizes = RandomModel(options).sizes
    networks = {part: random_network(network, torch.float32) for part, network in build(sizes, "the benchmark").items()}
    save(path, **networks, sizes=sizes)
    return path


@torch.no_grad()
def measure(name: str, options: Options) -> Result:
    """One task: its peaks while this process holds no weights yet, a turn of each side to warm up, and then the rounds.

    Where operations are counted, a large matrix product takes its turns too, so that its drift is the same.
    """
    task = TASKS[name]
    prepare(options)
    sides = [side for side in SIDES if side == "ours" or have_peers()]
    peaks = {side: peak_in_child(name, side, options) for side in sides} if task.memory else {}
    model = RandomModel(options)
    turns = {side: turn_of(name, side, model, options) for side in sides}
    flops = count_flops(name, options)
    if flops:
        n = 256 if options.tiny else MATMUL_SIDE
        a, b = torch.randn(2, n, n, dtype=model.dtype)
        turns["matmul"] = lambda: a @ b
        flops["matmul"] = 2 * n**3
    answers = [task.answer(turns[side]()) for side in sides]  # and all is warm now
    difference = relative_difference(*answers) if len(answers) == 2 else None
    del answers
    return Result(name, alternate(turns, options.rounds * task.turns), flops, difference, peaks)


def turn_of(name: str, side: str, model: RandomModel, options: Options) -> Callable:
    """What one turn of this side runs. Nothing of diffusers is imported for our own."""
    if side == "diffusers":
        quiet()
    return TASKS[name].sides[side](model, options)


def prepare(options: Options) -> None:
    torch.manual_seed(SEED)
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
            seconds[name].append(time.perf_counter() - began)
            del result
    gc.unfreeze()
    return seconds


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in the 2-norm over everything."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()


def count_flops(name: str, options: Options) -> dict[str, int]:
    """{"task": floating-point operations of one turn}, counted on the meta device; {} where nothing is computed."""
    if name == "load":
        return {}
    if name == "txt2img":
        one = {part: count_flops(part, options)["task"] for part in ("text", "unet", "vae")}
        return {"task": one["text"] + options.steps * one["unet"] + one["vae"]}
    turn = turn_of(name, "ours", RandomModel(options, "meta"), options)
    with FlopCounterMode(display=False) as counter:
        turn()
    return {"task": counter.get_total_flops()}


def peak_in_child(name: str, side: str, options: Options) -> int | None:
    """`peak_of` in a new process, which has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak_of, name, side, options).result()


@torch.no_grad()
def peak_of(name: str, side: str, options: Options) -> int | None:
    """The most memory in bytes that this process held at a time, with one turn done."""
    prepare(options)
    turn_of(name, side, RandomModel(options), options)()
    return most_resident()


def most_resident() -> int | None:
    """The most memory in bytes that this process ever held, pages of mapped files included; only Linux says it.

    Not `ru_maxrss`: a child begins with its parent's.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None
