"""LoRAs named in prompts, and found by name."""

import pytest

from sd.adapters.lora_tags import split_tags
from sd.utils.errors import UserError


@pytest.mark.parametrize(
    ("prompt", "rest", "tags"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:paper>", "a cat ", [("paper", 1.0, 1.0)]),
        ("<lora:paper:0.8> a cat", " a cat", [("paper", 0.8, 0.8)]),
        ("a<lora:x:0.5:.7>b<lora:my style.v2:-1>c", "abc", [("x", 0.5, 0.7), ("my style.v2", -1.0, -1.0)]),
        ("<lora:x:te=0.5:unet=0.7>", "", [("x", 0.5, 0.7)]),
        ("<lora:x:unet=0.7>", "", [("x", 1.0, 0.7)]),
        ("<lora:x:0>", "", [("x", 0.0, 0.0)]),
        ("<my-dog> a < b <lora> <hypernet:x:1>", "<my-dog> a < b <lora> ", []),
        ("(<lora:x:1>:1.2)", "(:1.2)", [("x", 1.0, 1.0)]),
    ],
)
def test_split_tags(prompt, rest, tags):
    text, found, _ = split_tags(prompt)
    assert (text, [tag[:3] for tag in found]) == (rest, tags)


@pytest.mark.parametrize("tag", ["<lora:x:strong>", "<lora:x:>", "<lora:x:nan>", "<lora:x:inf>", "<lora:x:1:1:32>"])
def test_tags_that_are_no_numbers(tag):
    with pytest.raises(UserError, match="write <lora:name"):
        split_tags(f"a cat {tag}")


@pytest.mark.parametrize(
    ("prompt", "tag"),
    [
        ("a <lyco:x:1>cat", ("x", 1.0, 1.0)),
        ("a < LoRA : my style : 0.8 >cat", ("my style", 0.8, 0.8)),
        ("a <lora:sub/x:UNET=0.5>cat", ("sub/x", 1.0, 0.5)),
    ],
)
def test_other_spellings_of_a_lora_tag(prompt, tag):
    assert split_tags(prompt) == ("a cat", [(*tag, "")], [])


def test_what_is_not_supported_is_said_and_is_no_text():
    text, tags, notes = split_tags("a <hypernet:anime:1>cat <lora:x:0.8:lbw=ALL:stop=5>")
    assert (text, tags) == ("a cat ", [("x", 0.8, 0.8, "ALL")])
    assert notes == [
        "<hypernet:anime:1> is not supported: it is left out of the prompt.",
        "<lora:x:0.8:lbw=ALL:stop=5>: stop=5 is not supported and is ignored.",
    ]


@pytest.mark.parametrize("prompt", ["a <lora:x:1", "<lora:x:1 a cat", "<LyCO:x <lora:y:1>", "<lora x:1>", "<lora:>"])
def test_a_broken_tag_is_no_text(prompt):
    with pytest.raises(UserError, match="lora:"):
        split_tags(prompt)
