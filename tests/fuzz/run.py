"""Fuzzing by hand: the whole corpus once, then mutation of files and of texts for as long as it is told to.

    python tests/fuzz/run.py --minutes 60

Prints what was read and ends with exit code 1 if anything was executed, any exception was no UserError, anything took
over 5 seconds or over 300 MiB beyond the input's size. Inputs that caused a problem are written to --keep; a small one
belongs into tests/fuzz/seeds once its cause is fixed.
"""

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from fuzz.corpus import hostile_files  # noqa: E402
from fuzz.folders import hostile_folders  # noqa: E402
from fuzz.harness import (  # noqa: E402
    IMAGE_READERS,
    Findings,
    check_bytes,
    check_call,
    check_folder,
    check_memory,
    check_path,
    ended_after,
    in_folder,
    reset_peak,
    warm_up,
)
from fuzz.mutation import mutate, seeds  # noqa: E402
from fuzz.parsers import WORDS, Parser, change, parsers  # noqa: E402
from fuzz.pictures import image_files  # noqa: E402

BLOCK = 1.0  # seconds of the processor for each target in turn, whose cases are measured together


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="minutes of mutation after the corpus (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations (default: the time)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-problems"), help="folder for inputs with a problem")
    parser.add_argument("--every", type=int, default=1, help="take every Nth file of the corpus; 0: none (default: 1)")
    parser.add_argument("--only", default="", help="the part of a name of the corpus or of a parser; run it alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # each value that a parser does not honor is one
    seed = int(time.time()) if options.seed is None else options.seed
    with in_folder() as folder:
        fuzzer = Fuzzer(Path(folder), options.keep.resolve(), random.Random(seed), options.only)
        warm_up(Path(folder))
        for i, (name, data) in enumerate(hostile_files() if options.every else ()):
            if options.only in name and i % options.every == 0:
                fuzzer.check_file(name, data)
        for i, (name, data) in enumerate(image_files() if options.every else ()):
            if options.only in name and i % options.every == 0:
                fuzzer.check_image(name, data)
        for i, (name, build) in enumerate(hostile_folders() if options.every else ()):
            if options.only in name and i % options.every == 0:
                fuzzer.check_folder(name, build)
        if options.every:
            fuzzer.check_repetitions(options.every)
        print(f"corpus: {fuzzer.found.summary()}", flush=True)
        problems = len(fuzzer.found.problems)
        fuzzer.run(60 * options.minutes)
        return 1 if problems or fuzzer.found.problems else 0


def turn() -> Iterator[None]:
    """Yields for BLOCK seconds of the processor."""
    end = time.process_time() + BLOCK
    while time.process_time() < end:
        yield


class Fuzzer:
    """Changes seeds at random, in blocks of one target after another, and keeps the inputs with problems."""

    def __init__(self, folder: Path, keep: Path, chance: random.Random, only: str = ""):
        self.folder, self.keep, self.chance, self.found = folder, keep, chance, Findings()
        self.parsers = {name: one for name, one in parsers().items() if only in name}

    def run(self, seconds: float) -> None:
        """Runs blocks for that long; prints a summary each minute."""
        self.found, known = Findings(), seeds()
        targets = ["files", *(name for name, one in self.parsers.items() for _ in range(one.weight))]
        end, said = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end:
            name = self.chance.choice(targets)
            with ended_after(600):
                self.check_files(known) if name == "files" else self.check_parser(name, self.parsers[name])
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"mutation so far: {self.found.summary()}", flush=True)
        print(f"mutation: {self.found.summary()}", flush=True)

    def check_files(self, known: list[bytes]) -> None:
        before, name, data = reset_peak(), f"a changed file after {self.found.files}", []
        for _ in turn():
            data.append(mutate(self.chance.choice(known), self.chance, known))
            self.check_file(name, data[-1], measured=False)
        if not check_memory(name, before + sum(map(len, data)), Findings()):
            for one in data:
                self.check_file(name, one)

    def check_parser(self, name: str, parser: Parser) -> None:
        before, cases = reset_peak(), []
        for _ in turn():
            cases.append(self.changed(parser))
            self.check_case(name, parser, cases[-1])
        if not check_memory(name, before + 4 * sum(map(len, cases)), Findings()):
            for case in cases:
                before = reset_peak()
                self.check_case(name, parser, case)
                check_memory(name, before + len(case), self.found)

    def check_repetitions(self, every: int) -> None:
        """Gives each parser of texts each word again and again, which expressions in quadratic time do not survive."""
        for name, parser in self.parsers.items():
            for word in WORDS[::every] if isinstance(parser.seeds[0], str) else ():
                self.check_case(name, parser, (word * 10_000)[:10_000])

    def changed(self, parser: Parser) -> str | bytes:
        value = change(self.chance.choice(parser.seeds), self.chance, parser.seeds)[: parser.most]
        return parser.finish(value) if self.chance.random() < 0.8 else value

    def check_case(self, name: str, parser: Parser, case: str | bytes) -> None:
        before = len(self.found.problems)
        self.found.files += 1
        check_call(name, parser.parse, case, self.found, parser.also)
        data = case if isinstance(case, bytes) else case.encode("utf-8", errors="surrogatepass")
        self.keep_input(before, name, data)

    def check_file(self, name: str, data: bytes, measured: bool = True) -> None:
        before = len(self.found.problems)
        with ended_after(600):
            check_bytes(name, data, self.folder, self.found, measured)
        self.keep_input(before, "file", data)

    def check_image(self, name: str, data: bytes) -> None:
        before, path = len(self.found.problems), self.folder / "image.png"
        path.write_bytes(data)
        with ended_after(600):
            check_path(name, path, IMAGE_READERS, len(data), self.found)
        self.keep_input(before, "image", data)

    def check_folder(self, name: str, build: Callable[[Path], None]) -> None:
        before = len(self.found.problems)
        with ended_after(600):
            check_folder(name, build, self.folder, self.found)
        self.keep_input(before, "folder", name.encode())

    def keep_input(self, before: int, name: str, data: bytes) -> None:
        """Prints the problems since `before`, and writes the input that caused them."""
        for problem in self.found.problems[before:]:
            print(problem, flush=True)
        if len(self.found.problems) > before:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{name.replace(' ', '-')}-{len(list(self.keep.iterdir()))}.bin").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
