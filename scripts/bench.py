"""Measures this code beside diffusers: python scripts/bench.py --dtype bf16 --only unet,load"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.benchmark.measure import run
from sd.benchmark.peers import have_peers
from sd.benchmark.report import COLUMNS, heading, lines, write_report
from sd.benchmark.tasks import TASKS, Options
from sd.errors import UserError, plain_errors


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures our speed and memory beside diffusers', on the CPU.")
    add = parser.add_argument
    add("--dtype", choices=["fp32", "bf16"], default=Options.dtype, help="the precision of both sides (fp32)")
    add("--size", type=int, help="of the picture, in pixels each way (512)")
    add("--steps", type=int, default=Options.steps, help=f"of the whole picture ({Options.steps})")
    add("--rounds", type=int, default=Options.rounds, help=f"how often each side takes its turn ({Options.rounds})")
    add("--threads", type=int, help="of both sides (as many as there are cores)")
    add("--only", default=",".join(TASKS), help=f"some of {','.join(TASKS)} (all)")
    add("--ckpt", type=Path, metavar="FILE", help="the checkpoint to load (a random one, made and deleted)")
    add("--json", type=Path, metavar="FILE", help="write every figure here")
    add("--tiny", action="store_true", help="small networks, to see that all of this works")
    return parser


def names_of(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(f"there is nothing called {unknown[0]!r} to measure: choose from {', '.join(TASKS)}.")
    return names


@plain_errors
def main():
    args = parser().parse_args()
    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    names, results = names_of(args.only), []
    if args.json:
        write_report(args.json, results, options)  # better refused now than after many minutes
    if not have_peers():
        print("diffusers, transformers or accelerate is not installed: measuring our side alone.")
    print(heading(options), COLUMNS, sep="\n\n", flush=True)
    for result in run(names, options):
        results.append(result)
        print(*lines(result), sep="\n", flush=True)
        if args.json:
            write_report(args.json, results, options)


if __name__ == "__main__":
    main()
