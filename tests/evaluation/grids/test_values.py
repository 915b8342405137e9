"""Lists and ranges as the webui has them written."""

import pytest

from sd.evaluation.grids.values import expand_range, join_values, split_values
from sd.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2, 3 ", ["1", "2", "3"]),
        ('"a, b", c', ["a, b", "c"]),
        ('"say ""hi""", x', ['say "hi"', "x"]),
        ("a\nb", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
    ],
)
def test_a_list(text, values):
    assert split_values(text) == values
    assert split_values(join_values(values)) == values


def test_an_empty_value_is_kept_where_it_means_something():
    assert split_values('red, ""', keep_empty=True) == ["red", ""]


def test_hostile_texts_are_refused_or_no_range():
    assert expand_range(f"{'9' * 5000}-1", whole=True) == [f"{'9' * 5000}-1"]
    with pytest.raises(UserError, match="characters"):
        split_values("1," * 100_000)


def test_an_open_quote_is_refused():
    with pytest.raises(UserError, match="close each quote"):
        split_values('"a, b')


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1-5", [1, 2, 3, 4, 5]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("1-10 (+2)", [1, 3, 5, 7, 9]),
        ("10-5 (-3)", [10, 7]),
        ("1-10 [5]", [1, 3, 5, 7, 10]),  # the webui's documented example
        ("1 - 3", [1, 2, 3]),
        ("-2-2 (+2)", [-2, 0, 2]),
        ("7", [7]),
        ("3-3", [3]),
        ("4-9 [1]", [4]),
        ("0-18446744073709551615 [2]", [0, 2**64 - 1]),
    ],
)
def test_whole_numbers(text, numbers):
    assert expand_range(text, whole=True) == [str(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-1 (+0.2)", ["0", "0.2", "0.4", "0.6", "0.8", "1"]),  # 0.6 and not 0.6000000000000001
        ("0-1 [5]", ["0", "0.25", "0.5", "0.75", "1"]),
        ("1-2.5", ["1", "2"]),
        ("0.3-0.1 (-.1)", ["0.3", "0.2", "0.1"]),
        ("-0.5", ["-0.5"]),
        ("1e-5", ["1e-5"]),  # a number, and no range
    ],
)
def test_other_numbers(text, numbers):
    assert expand_range(text, whole=False) == numbers


@pytest.mark.parametrize("text", ["1-5 (+0)", "1-5 (-1)", "5-1 (+1)", "1-5 [0]", "1-2000", "1-2.5", "1-2 [99999]"])
def test_a_range_that_cannot_be_walked_is_refused(text):
    with pytest.raises(UserError, match="range"):
        expand_range(text, whole=True)
