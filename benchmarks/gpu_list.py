"""All that is to be measured on a GPU, in one command and in about ten minutes.

The stages are in the order of their worth: where the time is over, the rest is left out and named. A stage with
`torch.compile` comes last, because it compiles for minutes before it measures.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import results_path
from benchmarks.tasks import Options
from benchmarks.terminal import measure_and_print
from sd.utils.errors import UserError

MINUTES = 10.0
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    """Some tasks with some backends. changes: fields of `Options`. No task: the tests that need a GPU."""

    name: str
    title: str
    tasks: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


STAGES = (
    Stage("tests", "The tests that need a GPU"),
    Stage("step", "U-Net step, with all patches and with few", ("unet",), ("ours", "plain", "diffusers")),
    Stage("step-8", "U-Net step of 8 images", ("unet",), ("ours", "diffusers"), {"batch": 8}),
    Stage("lora", "LoRA training step", ("train",), ("ours", "diffusers")),
    Stage("memory", "Whole image, also for GPUs of 4 GB", ("txt2img",), ("ours", "model-cpu-offload", "diffusers")),
    Stage("compiled", "U-Net step: compiled kernels in CUDA graphs", ("unet",), ("ours", "compile", "compiled")),
)
PathOf = Callable[[Stage, Options], Path | None]


def run_gpu_list(
    options: Options, path_of: Callable[[Stage, Options], Path | None], minutes: float = MINUTES
) -> list[str]:
    """Run the stages until the minutes are over. Return the names of those that ran.

    path_of: the file for a stage's results. Raises UserError without a GPU, unless the networks are tiny: then
    everything runs on the CPU, as a rehearsal.
    """
    if not torch.cuda.is_available() and not options.tiny:
        raise UserError("PyTorch finds no GPU; leave out --gpu, or add --tiny for a rehearsal on the CPU.")
    device, began, done = "cuda" if torch.cuda.is_available() else "cpu", time.monotonic(), []
    for stage in STAGES:
        passed = (time.monotonic() - began) / 60
        if passed > minutes:
            print(f"\n{stage.title}: left out, because {passed:.0f} of {minutes:g} minutes are over.")
            continue
        print(f"\n{stage.title}, after {passed:.1f} minutes\n", flush=True)
        chosen = replace(options, device=device, backends=stage.backends, **stage.changes)
        if stage.tasks:
            measure_and_print(list(stage.tasks), chosen, path_of(stage, chosen))
        else:
            run_tests()
        done.append(stage.name)
    return done


def run_tests() -> None:
    """Run tests/test_gpu.py in a process of its own, which skips them all without a GPU. It needs pytest."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/test_gpu.py"]
    subprocess.run(command, cwd=ROOT, check=False)


def path_for(keep: bool, given: Path | None) -> PathOf:
    """Return the function of a stage's file: in the folder of results (keep), beside the given one, or none."""

    def path_of(stage: Stage, options: Options) -> Path | None:
        path = results_path(list(stage.tasks), options) if keep else given
        return path and path.with_stem(f"{path.stem}-{stage.name}")

    return path_of
