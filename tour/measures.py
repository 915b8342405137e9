"""Measures that chapters take of latents and weights."""

from torch import Tensor


def latent_scale(latents: Tensor) -> float:
    """Return the factor that gives latents (N, 4, h, w) a standard deviation of 1, over all their numbers.

    Over photographs the VAE of Stable Diffusion 1 has 0.18215 (Rombach et al. 2022, appendix G).
    """
    return 1 / latents.std().item()
