"""Denoisers: a U-Net that predicts noise becomes a callable (x, sigma) -> x0.

That is all a sampler knows of the model (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models", table 1, column "VP"). Here x (B, 4, h, w) is in sigma space (see schedule.py), sigma is one float
above 0 for the whole batch, and x0 (B, 4, h, w) is the estimate of the clean latent. `Denoiser` makes one from a U-Net,
`Guidance` from two contexts, and `Inpaint` wraps around either.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sd.schedule import SD1_SCHEDULE, NoiseSchedule


class Denoiser:
    """Turns the noise-predicting U-Net into a denoiser: x0 = x - sigma * eps. Everything else goes through this class.

    unet: callable (x, t, context) -> eps, see unet.py.
    context: (B, M, D), in the dtype that the U-Net runs in; x keeps its own, float32 as a rule.
    inpaint_channels: for the 9-channel inpainting U-Net, (B, 5, h, w): the mask, 1 where to generate, and the latent of
    the masked image.
    schedule: the noise schedule that the U-Net was trained with.
    """

    def __init__(
        self,
        unet: Callable,
        context: Tensor,
        inpaint_channels: Tensor | None = None,
        schedule: NoiseSchedule = SD1_SCHEDULE,
    ):
        self.unet, self.context = unet, context
        self.inpaint_channels, self.schedule = inpaint_channels, schedule

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of level sigma."""
        scaled = x / math.sqrt(1 + sigma**2)  # VP form: unit variance, as the U-Net was trained
        if self.inpaint_channels is not None:
            scaled = torch.cat([scaled, self.inpaint_channels], dim=1)  # (B, 9, h, w); these five are never scaled
        t = torch.full((len(x),), self.schedule.t_of(sigma), device=x.device)
        eps = self.unet(scaled.to(self.context.dtype), t, self.context)  # (B, 4, h, w)
        return x - sigma * eps.to(x.dtype)  # x = x0 + sigma * noise, solved for x0


class Guidance:
    """Classifier-free guidance: x0 = uncond + scale * (cond - uncond), which makes the image follow the prompt.

    What it is for: a plain sample of "a red apple" is often only loosely one, because the U-Net also models all the
    vaguely matching images of its training data. The difference cond - uncond is what the prompt adds to the estimate,
    and scale > 1 exaggerates it. `scale` is LDM's; Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6,
    count w = scale - 1. Guidance in x0, here, and in eps, there, are the same: x0 = x - sigma * eps is affine in eps,
    and the weights 1 - scale and scale sum to 1, so the x of both terms adds up to one x.

    cond, uncond: (B, M, D) each, of one length or two. Both go through the U-Net as one batch, uncond first; at scale
    1, or where sigma is outside of `interval`, cond goes alone.
    interval: (lowest, highest) sigma to guide at (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
    rescale: 0 … 1, how much of the contrast that guidance adds to remove (Lin et al. 2023, "Common Diffusion Noise
    Schedules and Sample Steps are Flawed", section 3.4).
    inpaint_channels, schedule: see `Denoiser`.
    """

    def __init__(
        self,
        unet: Callable,
        cond: Tensor,
        uncond: Tensor,
        scale: float,
        inpaint_channels: Tensor | None = None,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
        schedule: NoiseSchedule = SD1_SCHEDULE,
    ):
        self.cond_only = Denoiser(unet, cond, inpaint_channels, schedule)
        both = torch.cat(equal_lengths(uncond, cond))  # (2B, M, D)
        doubled = None if inpaint_channels is None else torch.cat([inpaint_channels, inpaint_channels])
        self.both = Denoiser(unet, both, doubled, schedule)
        self.scale, self.interval, self.rescale = scale, interval, rescale

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the guided estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of sigma."""
        lowest, highest = self.interval
        if self.scale == 1 or not lowest <= sigma <= highest:
            return self.cond_only(x, sigma)
        uncond, cond = self.both(torch.cat([x, x]), sigma).chunk(2)  # (B, 4, h, w) each
        x0 = uncond + self.scale * (cond - uncond)
        return rescale_noise(x, x0, cond, self.rescale) if self.rescale else x0


def sigmas_between(start: float, end: float, schedule: NoiseSchedule = SD1_SCHEDULE) -> tuple[float, float]:
    """Return (lowest, highest) sigma between two fractions of the sampling, from noise (0) to the image (1).

    The fraction is measured in t, as ComfyUI measures its percents, so that no sampler or number of steps changes it.
    With the schedules ldm and sgm_uniform it is also the fraction of the steps, diffusers' measure. A fraction of 0 or
    1 leaves its side without a bound.
    """
    last = len(schedule) - 1
    lowest = 0.0 if end == 1 else schedule.sigma_of(last * (1 - end))
    highest = math.inf if start == 0 else schedule.sigma_of(last * (1 - start))
    return lowest, highest


def equal_lengths(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat two contexts (B, M, D) and (B, N, D) along their length until both are (B, lcm(M, N), D).

    This changes no image: where every key occurs r times, softmax gives each copy 1 / r of the weight, and the sum over
    the copies is the value as before.
    """
    length = math.lcm(a.shape[1], b.shape[1])
    return a.repeat(1, length // a.shape[1], 1), b.repeat(1, length // b.shape[1], 1)


def rescale_noise(x: Tensor, x0: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Return x0 (B, 4, h, w) with its noise x - x0 scaled towards the standard deviation of cond's noise, x - cond.

    amount: 0 leaves x0 as it is, 1 takes that deviation entirely; each image of the batch has its own.
    """
    std, target = ((x - estimate).std(dim=(1, 2, 3), keepdim=True) for estimate in (x0, cond))  # (B, 1, 1, 1) each
    return x - (x - x0) * (1 + amount * (target / std - 1))


class Inpaint:
    """Inpainting with any checkpoint: where the mask is 0, the estimate of x0 is the latent of the given image.

    mask: (B, 1, h, w), 1 where to generate, 0 where to keep, soft edges between. init_latent: (B, 4, h, w). Both in x's
    dtype. Since a sampler moves x towards x0, the kept part of x becomes init_latent plus noise of the right level
    without further code. Its last rounding and LDM's last level remain: apply `keep` to the finished latent too, so
    that the kept part is equal bit for bit.
    """

    def __init__(self, denoise: Callable, init_latent: Tensor, mask: Tensor):
        self.denoise, self.init_latent, self.mask = denoise, init_latent, mask

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of level sigma."""
        return self.keep(self.denoise(x, sigma))

    def keep(self, latent: Tensor) -> Tensor:
        """Return latent (B, 4, h, w) where the mask is 1 and init_latent where it is 0, both without rounding."""
        return torch.lerp(self.init_latent, latent, self.mask)  # lerp returns either end exactly
