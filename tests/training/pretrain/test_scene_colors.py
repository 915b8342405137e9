"""Color words: what is measured, named and recolored is what people would say."""

import numpy as np
import pytest

from sd.training.pretrain.scenes.colors import COLORS, color_rgb, color_word, from_oklab, main_color, recolor, to_oklab


def disc(rgb, size=48):
    """A shaded disc with a green corner, RGBA."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = np.zeros((size, size, 4), np.uint8)
    shading = 1 - 0.25 * (x + y)[..., None]
    image[..., :3] = np.clip(np.array(rgb) * shading, 0, 255)
    image[..., 3] = 255 * (x * x + y * y < 0.22)
    return image


def test_oklab_has_the_published_values_and_comes_back():
    white, red = to_oklab(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(white, [1, 0, 0], atol=1e-3)  # the published matrices have rows that sum to 1 +- 1e-3
    np.testing.assert_allclose(red, [0.628, 0.225, 0.126], atol=1e-3)  # three digits are published
    rgb = np.random.default_rng(0).random((100, 3), np.float32)
    np.testing.assert_allclose(from_oklab(to_oklab(rgb)), rgb, atol=1e-4)  # fp32 through two cube roots


@pytest.mark.parametrize("word", COLORS)
def test_a_typical_color_has_its_own_word(word):
    image = np.full((8, 8, 4), 255, np.uint8)
    image[..., :3] = color_rgb(word)
    assert color_word(main_color(image)) == word


@pytest.mark.parametrize("word", COLORS)
@pytest.mark.parametrize("start", ["red", "yellow", "gray"])
def test_a_recolored_disc_measures_as_the_new_word(start, word):
    image = disc(color_rgb(start))
    new = recolor(image, main_color(image), word)
    assert color_word(main_color(new)) == word
    assert (new[..., 3] == image[..., 3]).all()


def test_recoloring_leaves_other_colors_alone():
    image = disc(color_rgb("red"))
    image[20:26, 20:26, :3] = color_rgb("green")
    new = recolor(image, main_color(image), "blue")
    assert abs(new[20:26, 20:26].astype(int) - image[20:26, 20:26]).max() <= 1  # one rounding
    assert (new[10, 24, :3] != image[10, 24, :3]).any()


def test_shading_survives_recoloring():
    image = disc(color_rgb("red"))
    light = to_oklab(recolor(image, main_color(image), "blue")[..., :3] / 255)[..., 0]
    assert light[14, 14] > light[34, 34] + 0.02


def test_a_color_between_two_words_has_none():
    teal = np.full((8, 8, 4), 255, np.uint8)
    teal[..., :3] = (0, 150, 150)
    assert color_word(main_color(teal)) is None
