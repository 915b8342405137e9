import re

import pytest
import torch
from reference_models import TINY, peer_vae, randomize, relative_error

from sd.checkpoints.diffusers_keys import vae_to_diffusers
from sd.vae import AutoencoderKL, sample_latent

SIZES = [
    pytest.param(TINY["vae"], 16, id="tiny"),
    pytest.param({}, 128, marks=pytest.mark.slow, id="v1-5"),
]
# fp32 holds 7 digits; some forty layers of sums in another order cost one of them.
TOLERANCE = 1e-5


@pytest.mark.parametrize(("sizes", "side"), SIZES)
def test_both_ways_equal_diffusers(sizes, side):
    ours = randomize(AutoencoderKL(**sizes), seed=1)
    peer = peer_vae(ours, vae_to_diffusers, **sizes)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, side, side + 8, generator=generator) * 2 - 1
    with torch.no_grad():
        mean, logvar = ours.encode(image)
        theirs = peer.encode(image).latent_dist
        assert mean.shape == (2, 4, side // ours.downsample, (side + 8) // ours.downsample)
        assert relative_error(mean, theirs.mean) < TOLERANCE
        assert relative_error(logvar, theirs.logvar) < TOLERANCE
        latent = torch.randn(mean.shape, generator=generator)
        assert relative_error(ours.decode(latent), peer.decode(latent).sample) < TOLERANCE


def test_sample_latent_has_the_mean_and_variance_asked_for():
    mean, logvar = torch.full((1, 4, 8, 8), 3.0), torch.full((1, 4, 8, 8), 2.0).log()
    noise = torch.randn(500, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = sample_latent(mean, logvar, noise)
    # 128,000 draws: the mean is known to sqrt(2 / 128000) = 0.004, the variance to 0.008; five of each.
    assert drawn.mean() == pytest.approx(3, abs=0.02)
    assert drawn.var() == pytest.approx(2, abs=0.04)
    assert torch.equal(sample_latent(mean, logvar, torch.zeros(1, 4, 8, 8)), mean)


@pytest.mark.parametrize(("part", "shape"), [("encoder", (1, 3, 512, 512)), ("decoder", (1, 4, 64, 64))])
def test_the_docstrings_give_each_levels_size_and_channels(part, shape):
    row = re.compile(r"^ +(\d+)x\d+ +(\d+) -> +(\d+)  (\w+)(?:\.(\d))?", re.MULTILINE)
    with torch.device("meta"):
        network, x = getattr(AutoencoderKL(), part), torch.empty(shape)
    rows = row.findall(type(network).__doc__)
    assert len(rows) == 7
    for size, before, after, name, level in rows:
        assert x.shape[1:] == (int(before), int(size), int(size))
        if name == "norm_out":
            x = network.conv_out(network.norm_out(x))
        else:
            layer = getattr(network, name)
            x = (layer[int(level)] if level else layer)(x)
        assert x.shape[1] == int(after)
