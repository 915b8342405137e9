"""The kill driver: ends programs that save by SIGKILL at random moments, and checks what they leave.

    python tests/fuzz/kill.py --kills 20 --program txt2img

After each kill every file with its final name is whole; after the last one the same command runs to its end, and
nothing is missing, doubled or left half-written.
"""

import argparse
import functools
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

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


def check_weights(folder: Path, least: int = 100) -> None:
    if (folder / "out.safetensors").exists():
        with safe_open(folder / "out.safetensors", "pt") as file:
            assert len(list(file.keys())) > least


def one_file(folder: Path) -> None:
    assert (folder / "out.safetensors").exists()


def train(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images"
    if not images.is_dir():
        images.mkdir()
        for number, color in enumerate(("red", "green", "blue")):
            Image.new("RGB", (64, 64), color).save(images / f"{number}.png")
    flags = ("--images", images, "--steps", 6, "--batch", 1, "--saves", 3, "--preview-steps", 1, "--save-minutes", 0.02)
    flags += ("--run-dir", folder / "run", "--output", folder / "out.safetensors", "--device", "cpu", "--seed", 1)
    return script("train_lora.py", "--name", "dot-7", *flags)


def check_run(folder: Path) -> None:
    """Every file of the run with its final name is whole."""
    check_weights(folder, 8)
    for path in (folder / "run").rglob("*"):
        if path.name.startswith("."):
            continue
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()


def trained(folder: Path) -> None:
    """The weights are those of the run that was never killed, bit by bit, and nothing unfinished is left."""
    found, whole = (load_file(one / "out.safetensors") for one in (folder, folder / "whole"))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert not list((folder / "run").rglob(".*.part"))


CONTENT = random.Random(0).randbytes(4_000_000)
FETCH = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
FETCH += "from sd.checkpoints.download import download_file; download_file(sys.argv[2], Path(sys.argv[3]), sys.argv[4])"


class Slow(BaseHTTPRequestHandler):
    """Sends CONTENT from the place that is asked for, at two megabytes a second."""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        with suppress(OSError):
            for place in range(start, len(CONTENT), 20_000):
                self.wfile.write(CONTENT[place : place + 20_000])
                time.sleep(0.01)

    def log_message(self, *args: object) -> None:
        pass


@functools.cache
def server() -> str:
    """Starts the server and returns its address."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{running.server_port}/model"


def download(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(CONTENT).hexdigest()
    return [sys.executable, "-c", FETCH, str(ROOT), server(), str(folder / "model"), digest]


def check_download(folder: Path) -> None:
    part = folder / "model.part"
    assert not part.exists() or CONTENT.startswith(part.read_bytes())
    assert not (folder / "model").exists() or (folder / "model").read_bytes() == CONTENT


def downloaded(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"whole", "model"}


PROGRAMS = {
    "train": Program(train, check_run, trained),
    "download": Program(download, check_download, downloaded),
    "txt2img": Program(generate, check_images, all_images),
    "convert": Program(convert, check_weights, one_file),
}


def run_and_kill(program: Program, folder: Path, kills: int, chance: random.Random) -> int:
    """Returns how many runs were killed; the others had ended before, and the next one starts from nothing."""
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
        else:  # it starts again from nothing
            program.check(folder)
            program.done(folder)
            for path in folder.iterdir():
                if path.name not in ("whole", "images"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
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
