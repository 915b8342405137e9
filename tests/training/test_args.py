"""The help of the pretraining scripts shows each default once, and only given options replace settings."""

import argparse

import torch

from sd.training.args import TRAIN_OPTIONS, HelpFormatter, add_train_options, given_train_options
from sd.training.loop import TrainConfig


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="first line\nsecond line", formatter_class=HelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="number of scenes")
    parser.add_argument("--out", help="output file")
    parser.add_argument("--small", action="store_true", help="fewer names")
    add_train_options(parser, "PARTS")
    return parser


def test_only_options_with_a_default_show_one():
    shown = parser().format_help()
    assert "first line\nsecond line" in shown
    assert "number of scenes (default: 64)" in shown
    assert "None" not in shown
    assert "False" not in shown


def test_given_options_are_fields_of_the_configuration():
    threads = torch.get_num_threads()
    given = given_train_options(parser().parse_args(["--steps", "7", "--lr", "0", "--save-minutes", "1.5"]))
    assert given == {"steps": 7, "lr": 0.0, "save_minutes": 1.5}
    assert torch.get_num_threads() == threads
    assert TRAIN_OPTIONS.keys() <= TrainConfig.__dataclass_fields__.keys()
