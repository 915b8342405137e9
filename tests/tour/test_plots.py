"""The plots: places on axes, ticks, colors, and images side by side."""

import numpy as np
import pytest
import torch
from PIL import Image

from tour.plots import (
    SEQUENTIAL,
    Axes,
    below,
    beside,
    color_bar,
    colors_of,
    fraction,
    heat_map,
    histogram,
    image_rows,
    overlay,
    principal_plane,
    ticks_of,
)


def test_places_on_linear_and_logarithmic_axes():
    assert fraction(5, (0, 10), log=False) == 0.5
    assert fraction(10, (1, 100), log=True) == pytest.approx(0.5)
    assert fraction(20, (0, 10), log=False) == 1
    assert fraction(0, (1, 100), log=True) == 0


@pytest.mark.parametrize(
    ("ends", "log", "texts"),
    [
        ((0, 1), False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ((0, 1000), False, ["0", "200", "400", "600", "800", "1000"]),
        ((-3, 3), False, ["-3", "-2", "-1", "0", "1", "2", "3"]),
        ((0.02, 20), True, ["0.1", "1", "10"]),
    ],
)
def test_ticks_are_round(ends, log, texts):
    assert list(ticks_of(ends, log).values()) == texts


def test_lines_are_drawn_where_they_belong():
    axes = Axes((0, 10), (0, 10), size=(200, 200)).line([0, 10], [5, 5], (255, 0, 0))
    image = np.asarray(axes.render())
    red = (image[..., 0] > 200) & (image[..., 1] < 60)
    rows = np.flatnonzero(red.any(axis=1))
    left, top, _, bottom = (side / 2 for side in axes.box)
    assert abs(rows.mean() - (top + bottom) / 2) <= 1  # pixel
    assert abs(np.flatnonzero(red.any(axis=0)).min() - left) <= 2


def test_everything_else_draws_and_has_its_size():
    axes = Axes((0, 4), (0, 1), "title", "x", "y", size=(300, 200))
    axes.points([1, 2], [0.5, 0.6], label="dots", texts=["a", "b"]).arrow((0, 0), (1, 1)).bars([0, 1, 2], [0.2, 0.4])
    for corner in ("top right", "bottom left"):
        assert axes.render(corner).size == (300, 200)
    small = Image.new("RGB", (10, 20))
    assert beside([small, small], gap=5).size == (25, 20)
    assert below([small, small], gap=5).size == (10, 45)
    assert color_bar(0, 1).height == 140
    assert image_rows({"a": [small]}, ["b"], 32).width > 32
    assert overlay(small, [[0.0, 1.0]], 0, 1).size == small.size


def test_colors_go_from_the_first_to_the_last():
    assert colors_of(np.array([0.0, 1.0]), SEQUENTIAL).tolist() == [[68, 1, 84], [253, 231, 37]]
    image = heat_map(torch.tensor([[0.0, 1.0], [2.0, 4.0]]), side=20)
    assert image.size == (20, 20)
    assert image.getpixel((0, 0)) == (68, 1, 84)
    assert image.getpixel((19, 19)) == (253, 231, 37)


def test_a_histogram_is_a_density():
    edges, density = histogram(torch.linspace(-1, 1, 1000), -1, 1, 4)
    assert (density * np.diff(edges)).sum() == pytest.approx(1)


def test_the_principal_plane_holds_the_largest_variance():
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5, 1, 1, 1, 1])
    mean, directions = principal_plane(points)
    torch.testing.assert_close(mean, points.mean(dim=0))
    torch.testing.assert_close(directions.T @ directions, torch.eye(2), rtol=0, atol=1e-5)  # rounding of an SVD
    assert directions[0, 0] > 0.9
    assert directions[1, 1] > 0.9
