"""Texts are checked in one place, whatever way they come in."""

import pytest

from sd.pipeline.options import check_text
from sd.pipeline.settings import GenerationSettings
from sd.prompts.weighting import MAX_CHARACTERS
from sd.utils.errors import UserError

REFUSED = {
    "half \ud83d": "lone surrogate",
    "\udcff": "not UTF-8",  # as Python reads an argument of other bytes
    "a\0b": "NUL",
    "x" * (MAX_CHARACTERS + 1): f"at most {MAX_CHARACTERS}",
    "{" * 40_000 + "a|b" + "}" * 40_000: f"at most {MAX_CHARACTERS}",  # before wildcards are expanded
}


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(("text", "words"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_no_file_can_hold_is_refused(field, text, words):
    with pytest.raises(UserError, match=words) as caught:
        GenerationSettings(**{field: text})
    assert str(caught.value).isprintable()


def test_every_option_of_text_passes_the_gate():
    for field in ("prompt", "negative_prompt", "sampler", "schedule", "hires_upscaler"):
        for value in ("\ud800", None, 5, ["a"]):
            with pytest.raises(UserError):
                GenerationSettings(**{field: value})


@pytest.mark.parametrize("text", ["", "a red apple 🍎", "zwei\nZeilen\t", "\x07", "\N{ZERO WIDTH JOINER}", "é" * 9999])
def test_every_other_text_passes(text):
    check_text("prompt", text)
    assert GenerationSettings(prompt=text).prompt == text


def test_a_script_says_so_in_one_sentence(run):
    code, _, err = run("txt2img.py", "a red apple \udcf0\udc9f")
    assert code == 2
    assert err == (
        "error: the prompt holds half of a character (a lone surrogate) or bytes that are not UTF-8: type it again.\n"
    )
