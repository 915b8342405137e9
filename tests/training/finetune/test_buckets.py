"""Aspect-ratio buckets: which sizes exist, which one an image gets, and what is cropped."""

import math

import numpy as np
import pytest
from PIL import Image

from sd.training.finetune.data.buckets import bucket_sizes, cover_scale, crop_to_size, nearest_bucket, side_step
from sd.utils.errors import UserError

WIDE = [(384, 640), (384, 704), (448, 576), (512, 512), (576, 448), (640, 384), (704, 384)]


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_the_same_seven_shapes_at_each_size_by_powers_of_two(size):
    assert bucket_sizes(size) == [(w * size // 512, h * size // 512) for w, h in WIDE]


@pytest.mark.parametrize(("size", "step"), [(64, 8), (120, 8), (128, 16), (256, 32), (448, 32), (512, 64), (1024, 64)])
def test_steps(size, step):
    assert side_step(size) == step


@pytest.mark.parametrize("size", [64, 128, 320, 448, 512, 640, 768])
def test_shapes_are_of_the_area_and_within_1_to_2_and_each_has_its_mirror_image(size):
    sizes = bucket_sizes(size)
    assert (size, size) in sizes
    for width, height in sizes:
        assert width % side_step(size) == height % side_step(size) == 0
        assert max(width, height) <= 2 * min(width, height)
        assert math.isclose(width * height, size * size, rel_tol=1 / 16)
        assert (height, width) in sizes


def test_a_size_between_the_steps():
    with pytest.raises(UserError, match="use 512 or 576"):
        bucket_sizes(520)


def test_the_nearest_shape_by_brute_force():
    sizes = bucket_sizes(512)
    generator = np.random.default_rng(0)
    for width, height in generator.integers(1, 4000, (500, 2)).tolist():
        ratio = width / height
        off = [max(ratio / (w / h), (w / h) / ratio) for w, h in sizes]  # the ratio of the ratios, 1 at best
        assert (
            off[sizes.index(nearest_bucket(width, height, sizes))] <= min(off) + 1e-12
        )  # rounding, where two are as far


@pytest.mark.parametrize(
    ("image", "taken"),
    [
        ((1000, 1000), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((6000, 4000), (640, 384)),
        ((1920, 1080), (704, 384)),
        ((9000, 100), (704, 384)),
        ((1, 1000), (384, 704)),
    ],
)
def test_shapes_of_cameras(image, taken):
    assert nearest_bucket(*image, bucket_sizes(512)) == taken


def test_cut_keeps_the_ends_and_the_middle():
    stripes = np.zeros((100, 300, 3), np.uint8)
    stripes[:, :100, 0], stripes[:, 100:200, 1], stripes[:, 200:, 2] = 255, 255, 255
    image = Image.fromarray(stripes)
    for place, channel in ((0.0, 0), (0.5, 1), (1.0, 2)):
        square = np.asarray(crop_to_size(image, (50, 50), place))
        assert square.shape == (50, 50, 3)
        inside = square[:, 3:-3]  # LANCZOS looks three target pixels across the edge between two stripes
        assert (inside[..., channel] == 255).all()
        assert inside.sum() == 255 * 50 * 44
        assert (
            np.asarray(crop_to_size(image.rotate(90, expand=True), (50, 50), 1 - place))[3:-3, :, channel] == 255
        ).all()


def test_cut_neither_stretches_nor_leaves_a_border():
    """A circle stays a circle: as wide as high, and as large as the scale says."""
    y, x = np.mgrid[:400, :600]
    disc = ((x - 299.5) ** 2 + (y - 199.5) ** 2 <= 100**2) * np.uint8(255)
    size = (64, 80)
    scale = cover_scale((600, 400), size)
    assert scale == 80 / 400
    shrunk = np.asarray(crop_to_size(Image.fromarray(disc).convert("RGB"), size))[..., 0] >= 128
    assert shrunk.shape == (80, 64)
    assert shrunk.any(0).sum() == shrunk.any(1).sum() == 200 * scale
    white = Image.new("RGB", (37, 91), "white")
    assert np.asarray(crop_to_size(white, (64, 48), 0.3)).min() == 255


def test_cover_scale():
    assert cover_scale((1024, 512), (512, 512)) == 1
    assert cover_scale((256, 1000), (512, 512)) == 2
