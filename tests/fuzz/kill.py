"""The kill driver: ends programs that save by SIGKILL at random moments, and checks what they leave.

    python tests/fuzz/kill.py --kills 20 --program txt2img

After each kill every file with its final name is whole; after the last one the same command runs to its end, and
nothing is missing, doubled or left half-written.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 8


@dataclass(frozen=True)
class Program:
    """command(folder): what is run, again and again. check(folder): asserts what holds at every moment. done(folder):
    asserts what holds at the end."""

    command: Callable[[Path], list[str]]
    check: Callable[[Path], None]
    done: Callable[[Path], None]


def script(name: str, *flags: object) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / name), *map(str, flags)]


def generate(folder: Path) -> list[str]:
    flags = ("--steps", 2, "--W", 64, "--H", 64, "--n_iter", IMAGES, "--seed", 5, "--skip_grid", "--resume")
    return script("txt2img.py", "a red apple", *flags, "--outdir", folder / "out")


def check_images(folder: Path) -> None:
    for path in (folder / "out").glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert "parameters" in image.info


def all_images(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == [f"{number:05}.png" for number in range(IMAGES)], names
    texts = {Image.open(folder / "out" / name).info["parameters"] for name in names}
    assert len(texts) == IMAGES


def convert(folder: Path) -> list[str]:
    return script("convert.py", ROOT / "weights" / "emoji.safetensors", folder / "out.safetensors")


def check_weights(folder: Path) -> None:
    if (folder / "out.safetensors").exists():
        with safe_open(folder / "out.safetensors", "pt") as file:
            assert len(list(file.keys())) > 100


def one_file(folder: Path) -> None:
    assert (folder / "out.safetensors").exists()


PROGRAMS = {
    "txt2img": Program(generate, check_images, all_images),
    "convert": Program(convert, check_weights, one_file),
}


def run_and_kill(program: Program, folder: Path, kills: int, chance: random.Random) -> int:
    """Returns how many runs were killed; the others had ended before."""
    began = time.monotonic()
    first = subprocess.run(program.command(folder / "whole"), capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    seconds, killed = time.monotonic() - began, 0
    for _ in range(kills):
        process = subprocess.Popen(program.command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        program.check(folder)
    last = subprocess.run(program.command(folder), capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    program.check(folder)
    program.done(folder)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", choices=PROGRAMS, action="append", help="repeatable (default: all)")
    parser.add_argument("--kills", type=int, default=20, help="for each program (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    for name in args.program or PROGRAMS:
        with tempfile.TemporaryDirectory() as folder:
            killed = run_and_kill(PROGRAMS[name], Path(folder), args.kills, random.Random(args.seed))
        print(f"{name}: {killed} of {args.kills} runs were killed, and nothing was lost or half-written", flush=True)


if __name__ == "__main__":
    main()
