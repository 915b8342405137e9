"""Exercise 1: the noisy latent that the U-Net is trained on."""

from torch import Tensor


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return sqrt(a) x0 + sqrt(1 - a) noise, where a is `SD1_SCHEDULE.alphas_cumprod` at t (Ho et al. 2020, eq. 4).

    x0, noise: (B, 4, h, w). t: (B,) whole numbers 0 … 999, one for each latent. Returns (B, 4, h, w).

    `alphas_cumprod` has the shape (1000,). Indexed with t it is (B,), which has to become (B, 1, 1, 1) before it can
    multiply a latent. The project's own: `NoiseSchedule.add_noise` in sd/schedule.py, which writes the same in sigma.
    """
    raise NotImplementedError("write this function")
