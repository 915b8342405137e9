"""Many prompts with the bundled model, by several processes that `torchrun` starts, and by one process.

The command is scripts/txt2img.py. Times are the modification times of the image files, from each process's first file
to its last, which excludes the start of Python and the loading of weights. Each process has an equal share of the
cores; the reference is one process alone with one such share.
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
IMAGES = 40
BACKENDS = {
    "ours": f"{PROCESSES} processes, each a share of the cores",
    "alone": f"{PROCESSES} x one process alone with one share",  # the ideal: processes that do not slow each other down
    "threads": "one process, all cores",
}


def measure(options: Options) -> Result:
    """Measure the seconds per image over all processes, `rounds` times in each way, alternating between the ways."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    cores = cores[: options.threads]
    share = max(1, len(cores) // PROCESSES)
    several = ["-m", "torch.distributed.run", f"--nproc-per-node={PROCESSES}", "--standalone", "--master-port=0"]
    ways: dict[str, Callable[[], float]] = {
        "ours": partial(seconds_per_image, several, cores, share, PROCESSES, options),
        "alone": lambda: seconds_per_image([], cores[:share], share, 1, options) / PROCESSES,
        "threads": partial(seconds_per_image, [], cores, len(cores), 1, options),
    }
    seconds = {way: [] for way in ways}
    for _ in range(options.rounds):
        for way, generate in ways.items():
            seconds[way].append(generate())
    return Result("many", seconds)


def seconds_per_image(launcher: list[str], cores: list[int], threads: int, processes: int, options: Options) -> float:
    """Generate all images in a new folder, restricted to these cores where the system supports it."""
    count = 6 if options.tiny else IMAGES
    arguments = ["--steps", str(options.steps), "--sampler", "dpmpp_2m", "--seed", str(SEED), "--ckpt", str(BUNDLED)]
    if options.size is not None:
        arguments += ["--width", str(options.size), "--height", str(options.size)]
    with TemporaryDirectory() as folder:
        (Path(folder) / "prompts.txt").write_text("".join(f"a red apple, number {i}\n" for i in range(count)))
        command = [sys.executable, *launcher, str(ROOT / "scripts" / "txt2img.py"), *arguments, "--skip-grid"]
        command += ["--from-file", "prompts.txt", "--outdir", "generated", "--precision", options.dtype]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        with cpu_affinity(cores):
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            raise UserError(f"generating many prompts failed: {done.stderr.strip().splitlines()[-1]}")
        return 1 / sum(images_per_second(sorted((Path(folder) / "generated").glob("*.png")), processes))


@contextmanager
def cpu_affinity(cores: list[int]) -> Iterator[None]:
    """Restrict processes that are started meanwhile to these cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def images_per_second(paths: list[Path], processes: int) -> list[float]:
    """Return the images per second of each process; files are numbered round robin, as `distributed.shard` does."""
    own = [[path.stat().st_mtime_ns / 1e9 for path in paths[rank::processes]] for rank in range(processes)]
    return [(len(times) - 1) / (max(times) - min(times)) for times in own]
