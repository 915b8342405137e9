"""Compare the speed and memory of this code with diffusers, diffusers under torch.compile, and OpenVINO.

python scripts/bench.py --dtype bf16 --keep     a step, the VAE, the text encoder, an image, loading
python scripts/bench.py --only train,many       a LoRA training step; many prompts over two processes
python scripts/bench.py --bundled --only unet,vae --threads 1    the bundled model, beside onnxruntime
python scripts/bench.py --gpu --dtype bf16 --keep    all that is to be measured on a GPU, in about ten minutes
python scripts/bench.py --report                docs/benchmarks/performance.md from every stored JSON file

Backends that are not installed are left out and named. diffusers, transformers, accelerate, peft and matplotlib are in
requirements-dev.txt; torch.compile needs a C++ compiler; OpenVINO is `pip install --no-deps openvino`, which does not
install its telemetry; onnxruntime is `pip install onnx onnxruntime`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sd.utils.errors import UserError, plain_errors, plain_imports

with plain_imports():
    from benchmarks import docs_page, gpu_list
    from benchmarks.backends import BACKENDS, backends_of
    from benchmarks.report import RESULTS_FOLDER, results_path
    from benchmarks.tasks import DEFAULT_TASKS, TASKS, Options
    from benchmarks.terminal import measure_and_print
    from sd.cli.parser import ArgumentParser


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--dtype", choices=["fp32", "bf16"], default=Options.dtype, help="precision of all backends (default: fp32)")
    add("--size", type=int, help="image size in pixels each way (default: 512)")
    add("--steps", type=int, default=Options.steps, help=f"sampling steps of an image (default: {Options.steps})")
    add("--rounds", type=int, default=Options.rounds, help=f"timed runs of each backend (default: {Options.rounds})")
    add("--threads", type=int, help="threads of all backends (default: one per core)")
    add("--only", default=",".join(DEFAULT_TASKS), help=f"some of {','.join(TASKS)} ({','.join(DEFAULT_TASKS)})")
    add("--backends", "--sides", type=split_names, help=f"some of {','.join(BACKENDS)} (default: all)")
    add("--device", choices=["cpu", "cuda"], default=Options.device, help="device of all backends (default: cpu)")
    add("--ckpt", type=Path, metavar="FILE", help="checkpoint to load (default: a random one, deleted afterwards)")
    add("--json", type=Path, metavar="FILE", help="write the results to this file")
    add("--keep", action="store_true", help="write the results to docs/benchmarks/performance/, named by machine")
    add("--report", action="store_true", help="measure nothing; write docs/benchmarks/performance.md and its plots")
    add("--batch", type=int, default=Options.batch, help="images of a U-Net step (default: 1)")
    add("--gpu", action="store_true", help=f"measure the list for GPUs, in about {gpu_list.MINUTES:g} minutes")
    add("--bundled", action="store_true", help="networks of the bundled model's size")
    add("--tiny", action="store_true", help="small networks, to test the benchmark itself")
    return parser


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


@plain_errors
def main():
    args = parser().parse_args()
    if args.report:
        print(docs_page.write_page(RESULTS_FOLDER))
        return
    names = list(split_names(args.only))
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(f"unknown task {unknown[0]!r}; choose from {', '.join(TASKS)}.")
    given = Options.__dataclass_fields__.keys() & vars(args).keys()
    options = Options(**{name: getattr(args, name) for name in given})
    if args.gpu:
        gpu_list.run_gpu_list(options, gpu_list.path_for(args.keep, args.json))
        return
    backends_of(names[0], options)  # refuses unknown names before the first run
    measure_and_print(names, options, results_path(names, options) if args.keep else args.json)


if __name__ == "__main__":
    main()
