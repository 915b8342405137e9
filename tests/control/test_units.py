"""ControlNets in a text: what is read, what is written, what is refused."""

import pytest

from sd.control.units import NO_MODEL, ControlUnit, check_image_count, format_units, parse_units
from sd.utils.errors import UserError


def test_a_text_is_read_and_written():
    text = "canny:0.8:preprocessor=Canny:low=50:end=0.6 + C:\\my nets\\tile.pth:mode=control"
    first, second = parse_units(text)
    assert first == ControlUnit("canny", 0.8, "canny", a=50.0, end=0.6)
    assert second == ControlUnit("C:\\my nets\\tile.pth", mode="control")
    assert format_units([first, second]) == (
        "canny:weight=0.8:preprocessor=canny:a=50:end=0.6 + C:\\my nets\\tile.pth:mode=control"
    )
    assert parse_units(format_units([first, second])) == [first, second]
    assert parse_units("") == []
    (prompt,) = parse_units("face:0.6:encoder=vit-h")
    assert prompt == ControlUnit("face", 0.6, encoder="vit-h")
    assert format_units([prompt]) == "face:weight=0.6:encoder=vit-h"
    with pytest.raises(UserError, match="is no name: put it into weights/"):
        ControlUnit("face", encoder="C:\\vit-h")


def test_a_preprocessor_that_needs_no_controlnet_stands_in_place_of_its_name():
    text = "Reference_Only:0.8:a=0.7 + none:preprocessor=reference_adain+attn:mode=prompt + canny"
    first, second, third = parse_units(text)
    assert first == ControlUnit(NO_MODEL, 0.8, "reference_only", a=0.7)
    assert second == ControlUnit("None", preprocessor="reference_adain+attn", mode="prompt")
    again = "reference_only:weight=0.8:a=0.7 + reference_adain+attn:mode=prompt + canny"
    assert format_units([first, second, third]) == again
    assert parse_units(again) == [first, second, third]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x:3", "the control weight is 3"),
        ("x:weight=abc", "the control weight is 'abc': use a number"),
        ("x:0.5:weight=0.7", "is no ControlNet: write NAME:0.8"),
        ("x:colour=red", "is no ControlNet: write NAME:0.8"),
        ("x:mode=strong", "unknown mode 'strong'; choose from balanced, prompt, control"),
        ("x:preprocessor=midas", "unknown preprocessor 'midas'"),
        ("x:preprocessor=canny:a=999", "the low threshold is 999"),
        ("x:start=0.5:end=0.5", r"ends \(0.5\) before it starts"),
        (":0.8", "is no name"),
        ("none:preprocessor=canny", "is no name"),
        ("canny:preprocessor=reference_only", "reference_only works without a ControlNet: leave out 'canny'"),
        ("reference_only:a=1.5", "the style fidelity is 1.5: use a number from 0 to 1"),
        (" + ".join(["x"] * 11), "11 ControlNets are too many"),
    ],
)
def test_what_is_no_unit_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_units(text)


def test_images_are_one_each_or_one_for_all():
    units = parse_units("a + b")
    for count, has_init in ((1, False), (2, False), (0, True)):
        check_image_count(units, count, has_init)
    for count, has_init, said in ((0, False, "needs an image"), (3, True, "3 control images are given for 2")):
        with pytest.raises(UserError, match=said):
            check_image_count(units, count, has_init)
    with pytest.raises(UserError, match="without a ControlNet"):
        check_image_count([], 1, False)
