"""Condition images: what is random in them, and that their lines are those of the image."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sd.training.controlnet.conditions import CONDITIONS, bend, make_condition, thicken
from sd.training.controlnet.edge_score import dilate
from sd.utils.errors import UserError


def square(side=128):
    """A red square on white , whose outline is known."""
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).rectangle((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill=(200, 30, 30))
    return image


def outline(side=128):
    lines = Image.new("L", (side, side))
    ImageDraw.Draw(lines).rectangle((side // 4, side // 4, 3 * side // 4, 3 * side // 4), outline=255)
    return np.asarray(lines) > 0


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_a_function_of_image_and_seed(name):
    image = Image.effect_mandelbrot((96, 64), (-2, -1.2, 1, 1.2), 60).convert("RGB")
    one, again, other = (make_condition(image, name, seed) for seed in (1, 1, 2))
    assert (one.shape, one.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("seed", range(8))
def test_canny_lines_lie_on_the_outline(seed):
    edges = make_condition(square(), "canny", seed)[..., 0] > 0
    assert not (edges & ~dilate(outline(), 1)).any()  # a step has its largest gradient at both of its pixels
    assert not (outline() & ~dilate(edges, 2)).any()  # a corner is cut by a pixel


@pytest.mark.parametrize("side", [128, 256])
def test_scribbles_follow_the_outline_of_any_size_and_are_thick(side):
    scale, widths = side / 128, []
    for seed in range(12):
        strokes = make_condition(square(side), "scribble", seed)[..., 0] > 0
        # Three deviations of 1.5 pixels of bending, half of the widest stroke, 2.4, and the rounding of both.
        assert not (strokes & ~dilate(outline(side), 8 * scale)).any()
        missing = (outline(side) & ~dilate(strokes, 5 * scale)).sum() / outline(side).sum()
        assert missing < 0.3  # four gaps of 16 pixels at most, of 256
        widths.append(strokes.sum() / outline(side).sum() / scale)
    assert 1.3 < min(widths) < max(widths) < 6.5  # in pixels at 128; gaps count as width 0


def test_a_stroke_is_as_wide_as_stated():
    lines = np.zeros((64, 64), np.uint8)
    lines[:, 32] = 255
    for sigma in (1.0, 2.0, 4.0, 6.0):
        width = (thicken(lines, sigma)[32] > 0).sum()
        assert width == pytest.approx(2 * sigma * np.sqrt(2 * np.log(2.5)), abs=1.5)  # whole pixels at both sides


def test_specks_do_not_become_strokes_and_an_even_image_has_none():
    specks = np.zeros((64, 64), np.uint8)
    specks[::16, ::16] = 255
    assert not thicken(specks, 2.0).any()
    assert not make_condition(Image.new("RGB", (64, 64), "gray"), "scribble", 0).any()


def test_bending_by_nothing_keeps_every_point_and_bending_stays_inside():
    points = np.argwhere(outline())
    assert np.array_equal(bend(points, (128, 128), 0.0, np.random.default_rng(0)), points)
    moved = bend(points, (128, 128), 100.0, np.random.default_rng(0))
    assert moved.min() == 0
    assert moved.max() == 127


def test_an_unknown_condition_is_named():
    with pytest.raises(UserError, match="unknown condition 'depth'; choose from canny"):
        make_condition(square(), "depth", 0)
