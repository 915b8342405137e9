"""The scripts' argument parser: one sentence for each mistake, in the words of the flags."""

import pytest

from sd.cli.parser import ArgumentParser
from sd.utils.errors import UserError


@pytest.fixture
def parser():
    parser = ArgumentParser()
    parser.add_argument("images", nargs="*")
    parser.add_argument("--steps", "--ddim_steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--size", nargs=2, type=int)
    parser.add_argument("--preview", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--stepz=3", "unknown flag --stepz: the nearest is --steps; see --help."),
        ("--stepz 3 --zzz", "unknown flag --stepz: the nearest is --steps; see --help."),
        ("--qqqqqq", "unknown flag --qqqqqq; see --help."),
        ("--ddim_steps many", "--steps must be a whole number, not 'many'; see --help."),
        ("--lr 1e-4x", "--lr must be a number, not '1e-4x'; see --help."),
        ("--precision fp8", "unknown --precision 'fp8': choose from fp32, bf16; see --help."),
        ("--steps", "--steps needs a value; see --help."),
        ("--size 3", "--size needs 2 values; see --help."),
        ("--preview=3", "--preview takes no value, and '3' is given; see --help."),
        ("--pre", "ambiguous option: --pre could match --precision, --preview; see --help."),
        ("a --steps 3 b", "unexpected argument 'b': put a text with spaces in quotes; see --help."),
    ],
)
def test_a_wrong_line_is_one_sentence(parser, line, said):
    with pytest.raises(UserError) as caught:
        parser.parse_args(line.split())
    assert str(caught.value) == said


def test_what_is_missing_is_named(parser):
    parser.add_argument("--word", required=True)
    with pytest.raises(UserError, match="missing --word; see --help"):
        parser.parse_args([])


def test_a_right_line_is_parsed_as_argparse_does(parser):
    found = parser.parse_args("a b --ddim_steps 3 --lr -1".split())
    assert (found.images, found.steps, found.lr) == (["a", "b"], 3, -1.0)
