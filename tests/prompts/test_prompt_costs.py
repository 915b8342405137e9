"""No prompt takes long to parse: white space, digits, underscores and brackets in any number."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd.checkpoints.predictions import YAML_V
from sd.prompts.editing import schedule_prompt
from sd.prompts.weighting import parse_prompt, split_breaks
from sd.prompts.wildcards import LIBRARY_SYNTAX

LENGTH = 10_000  # letters: the longest text that any interface accepts
SLOW = 2.0  # seconds of the processor; thousands of nested brackets take one, and others took three before
HARD = [
    "\n",
    " ",
    "(a:1",
    ":9",
    "9",
    "_",
    "__",
    "__a__",
    "{",
    "{9",
    "| 9",
    "\\",
    "(",
    "[",
    "[a:b:",
    "{ ",
    "__a(=",
    "$$",
    "=",
]


@pytest.mark.parametrize("piece", HARD)
def test_a_prompt_of_one_piece_again_and_again(piece):
    text = (piece * LENGTH)[:LENGTH]
    for case in (text, f":{text}", f"{{{text}", f"__{text}", f"[a:b:{text}"):
        began = time.process_time()
        parse_prompt(case)
        schedule_prompt(case[:LENGTH], 20)
        LIBRARY_SYNTAX.search(case)
        YAML_V.search(case)
        assert time.process_time() - began < SLOW


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["BREAK", " ", "\n", "\u2003", "a", "BREAKS", "_", ","])).map("".join))
def test_breaks_take_the_white_space_around_them(text):
    """The plain expression says the same, in quadratic time."""
    assert split_breaks(text) == re.split(r"\s*\bBREAK\b\s*", text)


@pytest.mark.parametrize(
    ("text", "is_of_the_library"),
    [
        ("{2$$a|b}", True),
        ("{1.5::a|b}", True),
        ("{.5::a|b}", True),
        ("{a|2::b}", True),
        ("__*__", True),
        ("__a/b*__", True),
        ("__~a__", True),
        ("__a(x=b)__", True),
        ("${x=a}", True),
        ("{a|b}", False),
        ("__a__", False),
        ("__a/b-c.d__", False),
        ("a: 1.5, b", False),
        ("__a(b)__", False),
    ],
)
def test_what_is_read_by_the_library(text, is_of_the_library):
    assert bool(LIBRARY_SYNTAX.search(text)) == is_of_the_library
