"""The ControlNet that comes with the bundled model: a scribble decides where things are, and how large."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sd.checkpoints.discovery import BUNDLED, BUNDLED_CONTROLNET
from sd.checkpoints.model_files import content_of
from sd.pipeline.stable_diffusion import StableDiffusion

SETTINGS = dict(steps=12, sampler="dpmpp_2m", guidance_scale=4.0, seed=3)
# Pixels that a generated circle may be away from the asked one, and larger or smaller: a cell of the latent has 8, and
# an orange has a leaf.
CENTER, SIDE = 10, 14


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusion.from_pretrained(BUNDLED, "cpu", torch.float32)


def circle(x, y, radius):
    """A white circle on black, 128 x 128, as a person would paint it."""
    image = Image.new("RGB", (128, 128))
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), outline="white", width=3)
    return image


def box_of(image):
    """(x, y) of the center and the sides (width, height) of what is not white."""
    rows, columns = np.nonzero(np.asarray(image).min(axis=2) < 200)
    (left, right), (top, bottom) = (np.percentile(one, (2, 98)) for one in (columns, rows))
    return np.array([(left + right) / 2, (top + bottom) / 2]), np.array([right - left, bottom - top])


@pytest.mark.parametrize(("x", "y", "radius"), [(36, 64, 26), (92, 64, 26), (64, 36, 26), (64, 64, 24)])
def test_an_orange_is_where_the_circle_is(pipe, x, y, radius):
    image = pipe("an orange", control="emoji-edges", control_image=circle(x, y, radius), **SETTINGS).images[0]
    center, sides = box_of(image)
    assert np.abs(center - (x, y)).max() < CENTER
    assert np.abs(sides - 2 * radius).max() < SIDE


def test_without_it_the_same_seed_gives_another_place(pipe):
    center, sides = box_of(pipe("an orange", **SETTINGS).images[0])
    assert np.abs(center - 64).max() < CENTER
    assert sides.min() > 2 * 26 + SIDE  # larger than all circles above


def test_it_is_recognized_by_its_contents_and_has_at_most_12_megabytes():
    assert content_of(BUNDLED_CONTROLNET).kind == "ControlNet"
    assert BUNDLED_CONTROLNET.stat().st_size < 12e6
