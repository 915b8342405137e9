import torch

from sd.vae import LATENT_SCALE
from tour.figure import Models
from tour.images import NAMES, encode_pictures, sheet_image


def test_scaled_numbers_have_deviation_one(exercise):
    latents = 5.489 * torch.randn(10, 4, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.3
    assert abs((latents * exercise.latent_scale(latents)).std().item() - 1) < 1e-5  # float32


def test_a_hundred_latents_of_that_deviation_give_the_known_factor(exercise):
    latents = torch.randn(100, 4, 16, 16, generator=torch.Generator().manual_seed(0)) / LATENT_SCALE
    # four standard errors of 102,400 numbers are 0.9 %
    assert abs(exercise.latent_scale(latents) / LATENT_SCALE - 1) < 0.009


def test_drawings_through_the_bundled_vae(exercise):
    latents = encode_pictures(Models().vae, [sheet_image(name) for name in NAMES]) / LATENT_SCALE
    # ten images are not the data set that this VAE was fitted to
    assert abs(exercise.latent_scale(latents) / LATENT_SCALE - 1) < 0.35
