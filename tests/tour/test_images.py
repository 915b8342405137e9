"""The pictures that chapters train on, and the ideal denoiser of a few of them."""

import numpy as np
import pytest
import torch

from tour.figures.copies import ideal_denoiser
from tour.images import EMOJI_ROWS, NAMES, SIDE, emoji, sheet_image
from tour.measures import latent_scale

PICTURES = [sheet_image(name) for name in NAMES] + [
    emoji(name, second) for name in EMOJI_ROWS for second in (False, True)
]


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_is_cut_out_as_a_whole(picture):
    pixels = np.asarray(picture)
    assert pixels.shape == (SIDE, SIDE, 3)
    # Something is drawn in the middle, and at least one corner is the white of the sheet.
    assert pixels[32:96, 32:96].min() < 200
    assert max(pixels[y, x].min() for y in (0, -1) for x in (0, -1)) > 240


def test_ideal_denoiser_is_the_mean_from_afar_and_the_nearest_picture_from_near():
    pictures = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    denoise = ideal_denoiser(pictures)
    x = pictures[:1] + 0.01
    assert torch.allclose(denoise(x, 0.1), pictures[:1])
    # The exponents are of size 256 / sigma², so the weights differ from 1/3 by 1e-6.
    assert torch.allclose(denoise(x, 1e4), pictures.mean(dim=0, keepdim=True), atol=1e-5)


def test_ideal_denoiser_has_a_smaller_loss_than_other_answers():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 4, 2, 2, generator=generator)
    sigma, count = 4.0, 2000
    truth = pictures[torch.randint(2, (count,), generator=generator)]
    x = truth + sigma * torch.randn(truth.shape, generator=generator)
    ideal = ideal_denoiser(pictures)

    def loss(answer):
        return (answer - truth).square().mean().item()

    mean = pictures.mean(dim=0, keepdim=True).expand_as(truth)
    assert loss(ideal(x, sigma)) < min(loss(mean), loss(x), loss(ideal(x, sigma / 2)), loss(ideal(x, 2 * sigma)))


def test_latent_scale_is_one_over_the_deviation():
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (latents * latent_scale(latents)).std().item() == pytest.approx(1, abs=1e-5)  # float32
