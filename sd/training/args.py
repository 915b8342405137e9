"""Options that the pretraining scripts share, and a help formatter that writes the defaults."""

import argparse
from typing import Any

import torch

TRAIN_OPTIONS = {  # fields of TrainConfig with their type and help text
    "steps": (int, "number of training steps"),
    "batch": (int, "number of examples in a batch, in each process"),
    "lr": (float, "learning rate"),
    "ema": (float, "decay of the averaged weights; 0 for no average"),
    "seed": (int, "seed of all randomness"),
    "device": (str, "cpu, cuda, cuda:1 or mps"),
    "save_minutes": (float, "minutes between saves of the state from which a stopped run resumes"),
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Appends the default to each help text, except where there is none, and keeps the description's lines."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False and action.default != ""
        return super()._get_help_string(action) if has_default else action.help


def add_train_options(parser: argparse.ArgumentParser, source: str) -> None:
    """Add the options of TRAIN_OPTIONS and --threads. source: where the defaults are, for the help."""
    group = parser.add_argument_group("training", f"Defaults depend on what is trained: see {source}.")
    for name, (kind, text) in TRAIN_OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    group.add_argument("--threads", type=int, help="number of CPU threads (default: one for each core)")


def given_train_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the given training options by the field of TrainConfig, and set the number of threads."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return {name: value for name in TRAIN_OPTIONS if (value := getattr(options, name)) is not None}
