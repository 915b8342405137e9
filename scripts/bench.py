"""Measures this code beside diffusers, diffusers under torch.compile, and OpenVINO, in turn.

python scripts/bench.py --dtype bf16 --keep     a step, the VAE, the text encoder, a picture, loading
python scripts/bench.py --only train,many       a LoRA training step; many prompts over two processes
python scripts/bench.py --report                docs/benchmarks/performance.md from every file that was kept

What is not installed is left out and named. diffusers, transformers, accelerate, peft and matplotlib are in
requirements-dev.txt; torch.compile needs a C++ compiler; OpenVINO is `pip install --no-deps openvino`, which leaves its
telemetry out.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import docs_page as performance
from benchmarks.backends import BACKENDS, backends_of
from benchmarks.report import COLUMNS, KEPT, heading, kept_path, lines, remark, rows, warning, write_report
from benchmarks.runner import run
from benchmarks.tasks import DRAWING, TASKS, Options
from sd.utils.errors import UserError, plain_errors


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dtype", choices=["fp32", "bf16"], default=Options.dtype, help="the precision of all sides (fp32)")
    add("--size", type=int, help="of the picture, in pixels each way (512)")
    add("--steps", type=int, default=Options.steps, help=f"of the whole picture ({Options.steps})")
    add("--rounds", type=int, default=Options.rounds, help=f"how often each side takes its turn ({Options.rounds})")
    add("--threads", type=int, help="of all sides (as many as there are cores)")
    add("--only", default=",".join(DRAWING), help=f"some of {','.join(TASKS)} ({','.join(DRAWING)})")
    add("--backends", "--sides", dest="sides", type=names_of, help=f"some of {','.join(BACKENDS)} (all)")
    add("--device", choices=["cpu", "cuda"], default=Options.device, help="cpu, or a GPU (cpu)")
    add("--ckpt", type=Path, metavar="FILE", help="the checkpoint to load (a random one, made and deleted)")
    add("--json", type=Path, metavar="FILE", help="write every figure here")
    add(
        "--keep",
        action="store_true",
        help="write every figure to docs/benchmarks/performance/, by machine",
    )
    add("--report", action="store_true", help="measure nothing: make docs/benchmarks/performance.md and its plots")
    add("--tiny", action="store_true", help="small networks, to see that all of this works")
    return parser


def names_of(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


@plain_errors
def main():
    args = parser().parse_args()
    if args.report:
        print(performance.write(KEPT))
        return
    names = list(names_of(args.only))
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(f"there is nothing called {unknown[0]!r} to measure: choose from {', '.join(TASKS)}.")
    given = Options.__dataclass_fields__.keys() & vars(args).keys()
    options, results = Options(**{name: getattr(args, name) for name in given}), []
    backends_of(names[0], options)  # better refused now
    path = kept_path(names, options) if args.keep else args.json
    if path:
        write_report(path, results, options)  # likewise, than after many minutes
    print(*filter(None, [warning(), heading(names, options), *lines([COLUMNS])]), sep="\n\n", flush=True)
    for result in run(names, options):
        results.append(result)
        print(*lines(rows(result)), *filter(None, [remark(result)]), sep="\n", flush=True)
        if path:
            write_report(path, results, options)


if __name__ == "__main__":
    main()
