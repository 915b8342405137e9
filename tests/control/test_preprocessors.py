"""Preprocessors: Canny against its definition, pixel by pixel, and the others on images with a known answer."""

import numpy as np
import pytest
from PIL import Image

from sd.control.edges import canny
from sd.control.preprocessors import PREPROCESSORS, find_preprocessor, preprocess
from sd.utils.errors import UserError


def pixel_by_pixel(pixels, low, high):
    """OpenCV's Canny as loops: Sobel with repeated edges, the strongest channel, thinning, hysteresis."""
    height, width, channels = pixels.shape
    p = np.pad(pixels.astype(int), ((1, 1), (1, 1), (0, 0)), mode="edge")
    dx, dy, size = (np.zeros((height + 2, width + 2), int) for _ in range(3))
    for i in range(height):
        for j in range(width):
            for c in range(channels):
                w = p[i : i + 3, j : j + 3, c]
                x = w[0, 2] + 2 * w[1, 2] + w[2, 2] - w[0, 0] - 2 * w[1, 0] - w[2, 0]
                y = w[2, 0] + 2 * w[2, 1] + w[2, 2] - w[0, 0] - 2 * w[0, 1] - w[0, 2]
                if c == 0 or abs(x) + abs(y) > size[i + 1, j + 1]:
                    dx[i + 1, j + 1], dy[i + 1, j + 1], size[i + 1, j + 1] = x, y, abs(x) + abs(y)
    weak, found = set(), []
    for i in range(1, height + 1):
        for j in range(1, width + 1):
            m, angle = size[i, j], np.degrees(np.arctan2(abs(dy[i, j]), abs(dx[i, j])))
            if m <= low:
                continue
            if angle < 22.5:
                peak = m > size[i, j - 1] and m >= size[i, j + 1]
            elif angle > 67.5:
                peak = m > size[i - 1, j] and m >= size[i + 1, j]
            else:
                s = -1 if (dx[i, j] < 0) != (dy[i, j] < 0) else 1
                peak = m > size[i - 1, j - s] and m > size[i + 1, j + s]
            if peak:
                weak.add((i, j))
                found += [(i, j)] if m > high else []
    edges, todo = set(found), list(found)
    while todo:
        i, j = todo.pop()
        for other in ((i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)):
            if other in weak and other not in edges:
                edges.add(other)
                todo.append(other)
    result = np.zeros((height, width), np.uint8)
    for i, j in edges:
        result[i - 1, j - 1] = 255
    return result


@pytest.mark.parametrize(("low", "high"), [(100, 200), (30, 60), (200, 250)])
def test_canny_is_its_definition(low, high):
    small = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(small).resize((44, 37), Image.Resampling.BICUBIC))
    expected = pixel_by_pixel(image, low, high)
    assert 0 < expected.mean() < 128
    assert np.array_equal(canny(image, low, high), expected)


def test_canny_finds_the_border_of_a_square():
    image = np.zeros((20, 20, 3), np.uint8)
    image[5:15, 5:15] = 255
    edges = canny(image, 100, 200) > 0
    assert edges[5:15, 4:6].any(axis=1).all()
    assert not edges[8:12, 8:12].any()
    assert not canny(image * 0, 100, 200).any()


def test_a_weak_line_counts_where_it_touches_a_strong_one():
    image = np.zeros((12, 60, 3), np.uint8)
    image[6:, :10] = 255
    image[6:, 10:] = 20  # a step of 20 gives a gradient of 80
    assert canny(image, 50, 500)[4:8, 30:].any()
    image[:, 20:25] = 0
    assert not canny(image, 50, 500)[:, 35:].any()


def test_black_lines_on_white_become_white_lines_on_black():
    page = Image.new("RGB", (64, 64), "white")
    page.paste("black", (30, 10, 33, 50))
    for name in ("invert", "scribble_xdog"):
        lines = preprocess(page, name)
        assert lines.shape == (64, 64, 3)
        assert lines[30, 31].tolist() == [255, 255, 255]
        assert lines[30, 5].tolist() == [0, 0, 0]


def test_threshold_is_the_mean_of_the_channels():
    image = Image.fromarray(np.array([[[10, 20, 30], [200, 0, 190]]], np.uint8))
    assert preprocess(image, "threshold", 20)[0, :, 0].tolist() == [0, 255]
    assert preprocess(image, "threshold", 19)[0, :, 0].tolist() == [255, 255]


def test_tile_keeps_the_image_or_takes_its_details(photo):
    assert np.array_equal(preprocess(photo, "tile_resample"), np.array(photo))
    coarse = preprocess(photo, "tile_resample", 8).astype(int)
    small = np.array(photo.resize((8, 8), Image.Resampling.BOX)).astype(int)
    assert coarse.shape == (64, 64, 3)
    assert abs(coarse.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) - small).mean() < 4  # of 255; bicubic overshoots


def test_blur_keeps_the_mean_and_flattens(photo):
    soft, plain = preprocess(photo, "blur_gaussian", 16), np.array(photo)
    assert abs(soft.mean() - plain.mean()) < 6  # of 255; the border repeats
    assert soft.std() < plain.std() * 0.6


def test_names_are_those_of_the_webui_in_any_case():
    assert find_preprocessor("Canny") == "canny"
    assert find_preprocessor("invert (from white bg & black line)") == "invert"
    assert find_preprocessor("Canny edges") == "canny"
    assert find_preprocessor("") == find_preprocessor("None") == "none"
    with pytest.raises(UserError, match="unknown preprocessor 'depth_midas'; choose from none, canny"):
        find_preprocessor("depth_midas")


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_each_gives_an_image_of_the_same_size(photo, name):
    made = preprocess(photo, name)
    assert (made.shape, made.dtype) == ((64, 64, 3), np.uint8)


def test_a_number_out_of_bounds_is_refused(photo):
    with pytest.raises(UserError, match="the low threshold is 300: use a number from 1 to 255"):
        preprocess(photo, "canny", 300)
