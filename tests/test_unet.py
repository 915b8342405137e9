import re

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from reference_models import TINY, peer_unet, randomize, relative_error

from sd.checkpoints.diffusers_keys import unet_to_diffusers
from sd.unet import ResBlock, UNetModel, timestep_embedding

THREE_LEVELS = dict(
    model_channels=32, channel_mult=(1, 3, 4), num_res_blocks=2, attention_levels=(1, 2), num_heads=4, context_dim=48
)
SIZES = [
    pytest.param(TINY["unet"], (8, 8), id="tiny"),
    pytest.param(THREE_LEVELS, (16, 8), id="three levels"),
    pytest.param(TINY["unet"] | dict(in_channels=9), (8, 8), id="inpainting"),
    pytest.param(TINY["unet"], (9, 7), id="odd sizes"),
    pytest.param({}, (32, 32), marks=pytest.mark.slow, id="v1-5"),
    pytest.param({}, (13, 9), marks=pytest.mark.slow, id="v1-5, odd sizes"),
]
# fp32 holds 7 digits; some two hundred layers of sums in another order cost one of them.
TOLERANCE = 1e-5


@pytest.mark.parametrize(("sizes", "latent"), SIZES)
def test_eps_equals_diffusers(sizes, latent):
    ours = randomize(UNetModel(**sizes), seed=1)
    peer = peer_unet(ours, unet_to_diffusers, **sizes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, ours.in_channels, *latent, generator=generator)
    context = torch.randn(2, 77, sizes.get("context_dim", 768), generator=generator)
    t = torch.tensor([1, 981])
    with torch.no_grad():
        theirs = peer(x, t, context).sample
        assert relative_error(ours(x, t, context), theirs) < TOLERANCE


def test_time_and_text_are_heard():
    unet = randomize(UNetModel(**TINY["unet"]), seed=1)
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
    with torch.no_grad():
        eps = unet(x, torch.tensor([500]), context)
        assert relative_error(unet(x, torch.tensor([100]), context), eps) > 0.01
        assert relative_error(unet(x, torch.tensor([500]), context.flip(2)), eps) > 0.01


def test_timestep_embedding_equals_diffusers():
    t = torch.tensor([0, 1, 17.5, 999])
    theirs = get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    # Angles reach 999 radians, where fp32 itself is coarse to 6e-5.
    torch.testing.assert_close(timestep_embedding(t, 320), theirs, rtol=0, atol=1e-4)


def test_the_docstring_gives_the_channels_of_each_concatenation():
    with torch.device("meta"):
        unet = UNetModel()
    levels = re.findall(r"(\d+), +(\d+), +(\d+)$", UNetModel.__doc__, re.MULTILINE)[::-1]  # the smallest comes first
    written = [int(count) for level in levels for count in level]
    assert written == [block[0].in_layers[0].num_channels for block in unet.output_blocks]


def test_the_time_is_one_shift_for_every_position():
    block = randomize(ResBlock(32, 64, 16), seed=1)
    shifted = []
    block.out_layers.register_forward_pre_hook(lambda _, inputs: shifted.append(inputs[0]))
    x, (early, late) = torch.randn(1, 32, 5, 4), torch.randn(2, 1, 16)
    with torch.no_grad():
        assert block(x, early).shape == (1, 64, 5, 4)
        block(x, late)
    difference = shifted[1] - shifted[0]
    # two float32 sums of numbers of size one
    assert torch.allclose(difference, difference[..., :1, :1].expand_as(difference), atol=1e-6)
    assert difference.abs().max() > 0.01
