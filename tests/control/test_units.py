"""ControlNets in a text: what is read, what is written, what is refused."""

import pytest

from sd.control.units import ControlUnit, check_image_count, format_units, parse_units
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
