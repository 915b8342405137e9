"""F1 of edges against values by hand, and against distances by brute force."""

import numpy as np
import pytest

from sd.training.controlnet.edge_score import dilate, edge_f1


def columns(*numbers, side=32):
    """Upright lines in these columns."""
    edges = np.zeros((side, side), np.uint8)
    edges[:, list(numbers)] = 255
    return edges


@pytest.mark.parametrize(
    ("found", "asked", "f1"),
    [
        (columns(10), columns(10), 1.0),
        (columns(12), columns(10), 1.0),  # 2 pixels away counts
        (columns(13), columns(10), 0.0),  # 3 do not
        (columns(10, 20), columns(10), 2 / 3),  # precision 1/2, recall 1
        (columns(10), columns(10, 20), 2 / 3),  # precision 1, recall 1/2
        (columns(10, 20, 30), columns(10, 22, 5), 2 / 3),  # two of three, both ways
        (columns(), columns(), 1.0),
        (columns(), columns(10), 0.0),
        (columns(10), columns(), 0.0),
    ],
)
def test_lines_by_hand(found, asked, f1):
    assert edge_f1(found, asked) == pytest.approx(f1, abs=1e-12)  # fractions in double precision


def test_the_tolerance_is_euclidean_and_can_be_chosen():
    one, other = np.zeros((9, 9)), np.zeros((9, 9))
    one[4, 4], other[6, 5] = 1, 1  # sqrt(5) = 2.24 pixels apart
    assert (edge_f1(one, other), edge_f1(one, other, 2.3)) == (0.0, 1.0)
    assert edge_f1(one, one, 0) == 1.0


def test_dilation_is_the_distance_to_the_nearest_point():
    points = np.random.default_rng(0).random((20, 30)) < 0.02
    rows, cols = np.indices(points.shape)
    for radius in (1.0, 2.0, 3.5):
        distance = min_distance(rows, cols, points)
        assert np.array_equal(dilate(points, radius), distance <= radius)


def min_distance(rows, cols, points):
    return np.min([np.hypot(rows - r, cols - c) for r, c in np.argwhere(points)], axis=0)
