"""Tiled diffusion: its windows, their mean, and that one window is the U-Net itself."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import UNET
from reference_models import randomize

from sd.control.controlled_unet import Control, ControlledUNet
from sd.control.controlnet import ControlNetModel
from sd.pipeline.sampling.tiled_diffusion import TiledUNet, spans
from sd.pipeline.settings import GenerationSettings
from sd.unet import UNetModel
from sd.utils.errors import UserError

SMALL = dict(steps=2, seed=5, guidance_scale=3.0, sampler="euler")


@pytest.fixture(scope="module")
def unet():
    return randomize(UNetModel(**UNET), seed=3)


def inputs(height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, height, width, generator=generator)
    return x, torch.full((2,), 501.0), torch.randn(2, 77, 64, generator=generator)


@pytest.mark.parametrize(("side", "tile", "overlap"), [(64, 64, 0.25), (65, 64, 0.25), (128, 64, 0.5), (512, 64, 0.75)])
def test_windows_cover_the_side_and_overlap_as_asked(side, tile, overlap):
    found = spans(side, tile, overlap)
    assert (found[0].start, found[-1].stop) == (0, side)
    assert all(one.stop - one.start == min(tile, side) for one in found)
    for one, following in pairwise(found):
        assert one.stop - following.start >= int(tile * overlap)


@torch.no_grad()
def test_it_is_the_mean_of_the_windows(unet):
    x, t, context = inputs(8, 12)
    made = TiledUNet(unet, 8, 0.5)(x, t, context)
    left, right = (unet(x[..., start : start + 8], t, context) for start in (0, 4))
    torch.testing.assert_close(made[..., :4], left[..., :4], rtol=0, atol=0)
    torch.testing.assert_close(made[..., 8:], right[..., 4:], rtol=0, atol=0)
    torch.testing.assert_close(made[..., 4:8], (left[..., 4:] + right[..., :4]) / 2)  # rounding


@torch.no_grad()
def test_one_window_is_the_unet_bit_for_bit(unet):
    given = inputs(8, 6)
    assert torch.equal(TiledUNet(unet, 8, 0.5)(*given), unet(*given))


@torch.no_grad()
def test_each_window_has_its_part_of_the_control_image(unet):
    x, t, context = inputs(8, 16)
    network = randomize(ControlNetModel(**UNET), seed=11)
    hint = network.embed_hint(torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(1)))
    made = TiledUNet(unet, 8, 0.0, [Control(network, hint)], batch=2)(x, t, context)
    for part in (slice(0, 8), slice(8, 16)):
        alone = ControlledUNet(unet, [Control(network, hint[..., part])], batch=2)
        assert torch.equal(made[..., part], alone(x[..., part], t, context))


def test_in_the_pipeline_with_img2img_and_the_second_pass(pipe, photo):
    large = photo.resize((128, 64))
    made = pipe("a cat", image=large, tile_size=64, tile_overlap=0.5, **SMALL)
    assert made.images[0].size == (128, 64)
    assert not np.array_equal(made.images[0], pipe("a cat", image=large, **SMALL).images[0])
    assert "Tiled diffusion size: 64, Tiled diffusion overlap: 0.5" in made.infotexts[0]
    first = pipe("a cat", tile_size=64, hires_scale=2.0, hires_strength=0.5, **SMALL)
    assert first.images[0].size == (128, 128)
    whole = pipe("a cat", tile_size=64, **SMALL)
    assert np.array_equal(whole.images[0], pipe("a cat", **SMALL).images[0])


def test_what_does_not_go_together_is_said(pipe):
    assert (
        "The step cache does not work with tiled diffusion"
        in pipe("a cat", tile_size=64, step_cache=2, **SMALL).notes[0]
    )
    with pytest.raises(UserError, match="tile_size must be a multiple of 64"):
        GenerationSettings(tile_size=100)
    with pytest.raises(UserError, match="makes an image seamless"):
        GenerationSettings(tile_size=64, tiling=True)
