"""Fuzzing by hand: the whole corpus once, then mutation for as long as it is told to.

    python tests/fuzz/run.py --minutes 60

Prints what was read and ends with exit code 1 if anything was executed, any exception was no UserError, anything took
over 5 seconds or over 300 MiB beyond the file's size. Files that caused a problem are written to --keep; a small one
belongs into tests/fuzz/seeds once its cause is fixed.
"""

import argparse
import random
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from fuzz.corpus import hostile_files  # noqa: E402
from fuzz.harness import Findings, check_bytes, in_folder, warm_up  # noqa: E402
from fuzz.mutation import mutate, seeds  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="minutes of mutation after the corpus (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations (default: the time)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-problems"), help="folder for files with a problem")
    parser.add_argument("--every", type=int, default=1, help="take only every Nth file of the corpus (default: 1)")
    parser.add_argument("--only", default="", help="the part of a corpus name that is run alone")
    options = parser.parse_args()
    keep, seed = options.keep.resolve(), int(time.time()) if options.seed is None else options.seed
    found = Findings()
    with in_folder() as folder:
        folder = Path(folder)
        warm_up(folder)
        for i, (name, data) in enumerate(hostile_files()):
            if options.only in name and i % options.every == 0:
                check_and_keep(name, data, folder, found, keep)
        print(f"corpus: {found.summary()}", flush=True)
        chance, known, mutated = random.Random(seed), seeds(), Findings()
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            data = mutate(chance.choice(known), chance, known)
            check_and_keep(f"mutation {mutated.files} of seed {seed}", data, folder, mutated, keep)
        print(f"mutation: {mutated.summary()}", flush=True)
    return 1 if found.problems or mutated.problems else 0


def check_and_keep(name: str, data: bytes, folder: Path, found: Findings, keep: Path) -> None:
    before = len(found.problems)
    check_bytes(name, data, folder, found)
    for problem in found.problems[before:]:
        print(problem, flush=True)
    if len(found.problems) > before:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{len(list(keep.iterdir()))}.bin").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
