"""Models that predict v instead of noise, and noise schedules of zero terminal signal-to-noise ratio.

v = sqrt(a) * noise - sqrt(1 - a) * x0 (Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion
Models", appendix D), with a = alphas_cumprod[t].
"""

import math
from functools import cache

import torch
from torch import Tensor

from sd.checkpoints.predictions import Prediction
from sd.denoiser import Denoiser, Guidance
from sd.schedule import SD1_SCHEDULE, NoiseSchedule, scaled_linear_betas

NEVER_PURE_NOISE = ("ldm", "ddim_uniform")  # schedules that begin below the last timestep
LAST_ALPHA = 4.8973451890853435e-08  # the share of signal at t = 999 that ComfyUI and the webui leave: sigma is 4519


class VDenoiser(Denoiser):
    """Turns a U-Net that predicts v into a denoiser: x0 = x / (1 + sigma²) - sigma / sqrt(1 + sigma²) * v."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of level sigma."""
        v = (x - super().__call__(x, sigma)) / sigma  # the U-Net's output, which `Denoiser` takes for eps
        return x / (1 + sigma**2) - sigma / math.sqrt(1 + sigma**2) * v


def predict_v(guidance: Guidance) -> Guidance:
    """Make a guidance take its U-Net's output for v. Returns the same object."""
    for name in ("cond_only", "both", "every"):
        one = getattr(guidance, name, None)
        if one is not None:
            setattr(guidance, name, VDenoiser(one.unet, one.context, one.inpaint_channels, one.schedule))
    return guidance


@cache
def schedule_of(prediction: Prediction) -> NoiseSchedule:
    """Return the noise schedule that a model of this prediction was trained with."""
    return zero_snr_schedule() if prediction.zero_snr else SD1_SCHEDULE


def velocity(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return v, (B, ...), of x0 and noise (B, ...) at the timesteps t (B,): what a v model is trained to predict."""
    sigma = schedule.sigmas.float().to(x0.device)[t].view(-1, *[1] * (x0.dim() - 1))
    return (noise - sigma * x0) / (1 + sigma**2).sqrt()


def zero_snr_schedule(betas: Tensor | None = None) -> NoiseSchedule:
    """Return the noise schedule whose last level is almost pure noise (Lin et al. 2023, algorithm 1).

    betas: (T,) those of the training without it; SD 1.x's if None. Lin et al. shift and scale sqrt(alphas_cumprod) so
    that the first value stays and the last is 0. Sigma would be infinite there, so the last alpha is LAST_ALPHA.
    """
    return NoiseSchedule(zero_snr_betas(scaled_linear_betas() if betas is None else betas))


def zero_snr_betas(betas: Tensor) -> Tensor:
    """Rescale betas (T,) to zero terminal signal-to-noise ratio, but for LAST_ALPHA; float64."""
    roots = torch.cumprod(1 - betas.double(), dim=0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    alphas_cumprod = roots**2
    alphas_cumprod[-1] = LAST_ALPHA
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
