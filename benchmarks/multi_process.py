"""Many prompts with the bundled model: as several processes that `torchrun` starts, and as one.

What is run is scripts/txt2img.py, as a person runs it. Times are those of the pictures' files, from each process's
first one to its last, so that starting Python and reading weights, done once for however many prompts, counts for
nothing. Each process has its share of the cores; what they are compared to is one process alone with such a share.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import Result
from benchmarks.tasks import SEED, Options
from sd.pipeline.stable_diffusion import BUNDLED
from sd.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2
PICTURES = 40
BACKENDS = {
    "ours": f"{PROCESSES} processes, each a share of the cores",
    "alone": f"{PROCESSES} x one process alone with one share",  # what would be, if none took from another
    "threads": "one process, all cores",
}


def measure(options: Options) -> Result:
    """Seconds a picture, over all processes: `rounds` times each way, in turn."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    cores = cores[: options.threads]
    share = max(1, len(cores) // PROCESSES)
    several = ["-m", "torch.distributed.run", f"--nproc-per-node={PROCESSES}", "--standalone", "--master-port=0"]
    ways: dict[str, Callable[[], float]] = {
        "ours": partial(seconds_each, several, cores, share, PROCESSES, options),
        "alone": lambda: seconds_each([], cores[:share], share, 1, options) / PROCESSES,
        "threads": partial(seconds_each, [], cores, len(cores), 1, options),
    }
    seconds = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, draw in ways.items():
            seconds[way].append(draw())
    return Result("many", seconds)


def seconds_each(launcher: list[str], cores: list[int], threads: int, processes: int, options: Options) -> float:
    """Draws all pictures in a new folder, on these cores only where the system can be told so."""
    count = 6 if options.tiny else PICTURES
    asked = ["--steps", str(options.steps), "--sampler", "dpmpp_2m", "--seed", str(SEED), "--ckpt", str(BUNDLED)]
    if options.size is not None:
        asked += ["--width", str(options.size), "--height", str(options.size)]
    with TemporaryDirectory() as folder:
        (Path(folder) / "prompts.txt").write_text("".join(f"a red apple, number {i}\n" for i in range(count)))
        command = [sys.executable, *launcher, str(ROOT / "scripts" / "txt2img.py"), *asked, "--skip-grid"]
        command += ["--from-file", "prompts.txt", "--outdir", "drawn", "--precision", options.dtype]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        with only_on(cores):
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"the drawing of many prompts failed: {done.stderr.strip().splitlines()[-1]}")
        return 1 / sum(rates(sorted((Path(folder) / "drawn").glob("*.png")), processes))


@contextmanager
def only_on(cores: list[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rates(pictures: list[Path], processes: int) -> list[float]:
    """Pictures a second of each process: they have taken the numbers in turn (`many.share`)."""
    own = [[path.stat().st_mtime_ns / 1e9 for path in pictures[rank::processes]] for rank in range(processes)]
    return [(len(times) - 1) / (max(times) - min(times)) for times in own]
