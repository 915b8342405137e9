"""Prompts in regions: which text works where, and by which words and ratios the image is divided."""

import pytest

from sd.prompts.regions import RegionalPrompt, divide, has_regions, parse_ratios, parse_regions
from sd.utils.errors import UserError


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", (None, ("a cat",), (1,))),
        ("a cat ADDCOL a dog", (None, ("a cat", "a dog"), (2,))),
        ("a ADDCOL b ADDROW c\nADDCOL\nd ADDCOL e", (None, ("a", "b", "c", "d", "e"), (2, 3))),
        ("x ADDCOMM a ADDROW b", (None, ("x, a", "x, b"), (1, 1))),
        ("x ADDBASE a ADDCOL b", ("x", ("a", "b"), (2,))),
        ("x ADDBASE y ADDCOMM a ADDCOL ", ("x", ("y, a", "y"), (2,))),
        ("y ADDCOMM x ADDBASE a", ("x", ("y, a",), (1,))),
        ("ADDCOL a", (None, ("", "a"), (2,))),
        ("a ADDCOLUMN b", (None, ("a ADDCOLUMN b",), (1,))),
        ("an addcol b", (None, ("an addcol b",), (1,))),
        ("a BREAK b ADDCOL c AND d", (None, ("a BREAK b", "c AND d"), (2,))),
    ],
)
def test_a_prompt_in_parts(prompt, expected):
    assert parse_regions(prompt) == RegionalPrompt(*expected)
    assert has_regions(prompt) == ("ADD" in prompt and "ADDCOLUMN" not in prompt)


@pytest.mark.parametrize("prompt", ["a ADDCOL b ADDBASE c", "a ADDBASE b ADDBASE c", "a ADDROW b ADDCOMM c"])
def test_a_base_after_a_region_is_refused(prompt):
    with pytest.raises(UserError, match="stands once in a prompt, before the first ADDCOL"):
        parse_regions(prompt)


@pytest.mark.parametrize(
    ("columns", "ratios", "expected"),
    [
        ((1,), "", [((0, 1), (0, 1))]),
        ((2,), "1,3", [((0, 1), (0, 0.25)), ((0, 1), (0.25, 1))]),
        ((1, 1), "1;3", [((0, 0.25), (0, 1)), ((0.25, 1), (0, 1))]),
        ((1, 1), "1,3", [((0, 0.25), (0, 1)), ((0.25, 1), (0, 1))]),
        ((1, 2), "3;1,1,3", [((0, 0.75), (0, 1)), ((0.75, 1), (0, 0.25)), ((0.75, 1), (0.25, 1))]),
        ((1, 2), "3;1", [((0, 0.75), (0, 1)), ((0.75, 1), (0, 0.5)), ((0.75, 1), (0.5, 1))]),
    ],
)
def test_ratios_divide_the_image(columns, ratios, expected):
    assert divide(columns, ratios) == expected


@pytest.mark.parametrize(
    ("columns", "ratios"), [((2,), "1"), ((2,), "1,2,3"), ((1, 2), "1,2"), ((2, 2), "1,1;1"), ((1, 1), "1;2;3")]
)
def test_ratios_that_do_not_fit_are_refused(columns, ratios):
    with pytest.raises(UserError, match="do not fit the prompt's"):
        divide(columns, ratios)


@pytest.mark.parametrize("ratios", ["a", "1,,2", "0,1", "-1,2", "nan,1", "1;", "inf,1", ","])
def test_ratios_that_are_no_numbers_are_refused(ratios):
    if ratios == "1;":
        assert parse_ratios(ratios) == [[1.0]]
        return
    with pytest.raises(UserError, match="use numbers over 0"):
        parse_ratios(ratios)
