"""Soft inpainting: gray parts of a mask begin to change later than white ones, and so change less.

Levin and Fried 2023, "Differential Diffusion: Giving Each Pixel Its Strength", algorithm 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.pipeline.sampling.cfgpp import UncondInpaint
from sd.schedule import SD1_SCHEDULE, NoiseSchedule


def soft_latent_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """Returns a mask (1, 1, H, W) in [0, 1] as (1, 1, H / factor, W / factor): the means of its cells."""
    return F.avg_pool2d(mask, factor)


class SoftInpaint(UncondInpaint):
    """Inpainting with a mask in [0, 1]: a cell of value m changes during the last share m of the sampling.

    denoise, init_latent, mask: as for `Inpaint`. first: the sigma that the sampling starts from. Shares are measured in
    t, as the guidance interval is.
    """

    def __init__(
        self,
        denoise: Callable,
        init_latent: Tensor,
        mask: Tensor,
        first: float,
        schedule: NoiseSchedule = SD1_SCHEDULE,
    ):
        super().__init__(denoise, init_latent, mask)
        self.schedule, self.first_t = schedule, schedule.t_of(first)

    def mask_at(self, sigma: float) -> Tensor:
        """Return (1, 1, h, w): 1 for the cells that change at this level of noise, 0 for the others."""
        left = min(1.0, self.schedule.t_of(sigma) / self.first_t) if self.first_t > 0 else 1.0
        return ((self.mask >= left) & (self.mask > 0)).to(self.mask.dtype)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of level sigma."""
        return torch.lerp(self.init_latent, self.denoise(x, sigma), self.mask_at(sigma))

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Estimate x0 with guidance and without the prompt: (x0, uncond), each (B, 4, h, w)."""
        mask = self.mask_at(sigma)
        x0, uncond = self.denoise.with_uncond(x, sigma)
        return torch.lerp(self.init_latent, x0, mask), torch.lerp(self.init_latent, uncond, mask)

    def keep(self, latent: Tensor) -> Tensor:
        """Return latent (B, 4, h, w) where the mask is over 0 and init_latent where it is 0, both without rounding."""
        return torch.lerp(self.init_latent, latent, (self.mask > 0).to(self.mask.dtype))
