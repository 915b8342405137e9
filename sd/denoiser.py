"""From a U-Net that predicts noise to a denoiser: a callable (x, sigma) -> x0.

That is all a sampler knows of the model (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", table 1, column "VP"). Here x (B, 4, h, w) is in sigma space (see schedule.py), sigma is one float
above 0 for the whole batch, and x0 is the estimate of the clean latent. Guidance and masks wrap around it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sd.schedule import TIMES, sigma_of, t_of


class Denoiser:
    """The only door to the U-Net: x0 = x - sigma * eps.

    context: (B, M, D), in the dtype that the U-Net runs in; x keeps its own, float32 as a rule.
    extra: for the 9-channel inpainting U-Net, (B, 5, h, w): the mask, 1 where to draw, and the masked picture's latent.
    """

    def __init__(self, unet: Callable, context: Tensor, extra: Tensor | None = None):
        self.unet, self.context, self.extra = unet, context, extra

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        scaled = x / math.sqrt(1 + sigma**2)  # of unit variance, as the U-Net was trained
        if self.extra is not None:
            scaled = torch.cat([scaled, self.extra], dim=1)  # (B, 9, h, w)
        t = torch.full((len(x),), t_of(sigma), device=x.device)
        eps = self.unet(scaled.to(self.context.dtype), t, self.context)
        return x - sigma * eps.to(x.dtype)


class Guidance:
    """Classifier-free guidance, uncond + scale * (cond - uncond): LDM's scale, 1 + w in Ho and Salimans 2022, eq. 6.

    cond, uncond: (B, M, D) each, of one length or two. Both go through the U-Net as one batch, uncond first; at scale
    1, or where sigma is outside of `interval`, cond goes alone.
    interval: (lowest, highest) sigma to guide at (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
    rescale: 0 … 1, how far to take back the contrast that guidance adds (Lin et al. 2023, "Common Diffusion Noise
    Schedules and Sample Steps are Flawed", section 3.4).
    """

    def __init__(
        self,
        unet: Callable,
        cond: Tensor,
        uncond: Tensor,
        scale: float,
        extra: Tensor | None = None,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
    ):
        self.cond_only = Denoiser(unet, cond, extra)
        both = torch.cat(equal_lengths(uncond, cond))  # (2B, M, D)
        self.both = Denoiser(unet, both, None if extra is None else torch.cat([extra, extra]))
        self.scale, self.interval, self.rescale = scale, interval, rescale

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        lowest, highest = self.interval
        if self.scale == 1 or not lowest <= sigma <= highest:
            return self.cond_only(x, sigma)
        uncond, cond = self.both(torch.cat([x, x]), sigma).chunk(2)
        x0 = uncond + self.scale * (cond - uncond)
        return rescaled(x, x0, cond, self.rescale) if self.rescale else x0


def sigmas_between(start: float, end: float) -> tuple[float, float]:
    """(lowest, highest) sigma between two shares of the way, from noise (0) to picture (1): all there is at 0 and 1.

    The way is measured in t, as ComfyUI measures its percents, so that no sampler or number of steps changes it. With
    the schedules ldm and sgm_uniform it is also the share of steps, diffusers' measure.
    """
    lowest = 0.0 if end == 1 else sigma_of((TIMES - 1) * (1 - end))
    highest = math.inf if start == 0 else sigma_of((TIMES - 1) * (1 - start))
    return lowest, highest


def equal_lengths(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat two contexts (B, M, D) and (B, N, D) along their length until both are as long.

    Attention over keys that are all repeated equally often is the same attention, so this changes no picture.
    """
    length = math.lcm(a.shape[1], b.shape[1])
    return a.repeat(1, length // a.shape[1], 1), b.repeat(1, length // b.shape[1], 1)


def rescaled(x: Tensor, x0: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Scale the noise that guidance predicts, x - x0, towards the spread of the noise that cond alone predicts."""
    spread, wanted = ((x - estimate).std(dim=(1, 2, 3), keepdim=True) for estimate in (x0, cond))
    return x - (x - x0) * (1 + amount * (wanted / spread - 1))


class Inpaint:
    """Inpainting with any checkpoint: where the mask is 0, the estimate of x0 is the known latent.

    mask: (B, 1, h, w), 1 where to draw, 0 where to keep, soft edges between. known: (B, 4, h, w). Both of x's dtype.
    A sampler's x then is the known latent plus noise of the right level there, without being told. Its last rounding
    and LDM's last level remain: `keep` the finished latent too, and what was to be kept is there bit for bit.
    """

    def __init__(self, denoise: Callable, known: Tensor, mask: Tensor):
        self.denoise, self.known, self.mask = denoise, known, mask

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.keep(self.denoise(x, sigma))

    def keep(self, latent: Tensor) -> Tensor:
        """The latent where the mask is 1, the known one where it is 0, exactly (lerp gives its very ends back)."""
        return torch.lerp(self.known, latent, self.mask)
