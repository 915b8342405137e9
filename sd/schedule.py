"""The noise schedule: how much noise there is at each time, and which times a picture visits.

Time t runs from 0 (almost clean) to 999 (almost pure noise). Two coordinates describe the same noisy latent:

    VP, what the U-Net was trained on:   sqrt(a) * x0 + sqrt(1 - a) * noise,    a = alphas_cumprod[t]
    sigma space, what samplers use:      x0 + sigma * noise,                    sigma = sqrt((1 - a) / a)

One is the other divided by sqrt(1 + sigma²).
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sd.utils.errors import UserError

TIMES = 1000
BETA_START, BETA_END = 0.00085, 0.012


def betas() -> Tensor:
    """Variances of the forward steps, (1000,) float64: LDM's "linear", which is linear in sqrt(beta)."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMES, dtype=torch.float64) ** 2


@cache
def sigma_table() -> Tensor:
    """sigma at t = 0 … 999: (1000,) float64, rising from 0.0292 to 14.61."""
    alphas_cumprod = torch.cumprod(1 - betas(), dim=0)
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def alphas_cumprod() -> Tensor:
    """Share of the signal's variance left at t = 0 … 999 (DDPM, eq. 4): (1000,) float32, as LDM's buffer."""
    return torch.cumprod(1 - betas(), dim=0).float()


@cache
def _sigmas():
    return sigma_table().tolist()


@cache
def _log_sigmas():
    return np.array([math.log(sigma) for sigma in _sigmas()])


def t_of(sigma: float) -> float:
    """Time of a noise level, a float in 0 … 999: exactly k for the table's entry k, log-linear between, clamped."""
    return float(np.interp(math.log(sigma), _log_sigmas(), np.arange(TIMES)))


def sigma_of(t: float) -> float:
    """Noise level at time t in 0 … 999, the inverse of `t_of`: a table's entry where t is whole, log-linear between."""
    low = int(t)
    high, weight = min(low + 1, TIMES - 1), t - low
    return _sigmas()[low] ** (1 - weight) * _sigmas()[high] ** weight


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The forward process in VP form, for training (DDPM, eq. 4): x0 and noise (B, ...), t (B,) long in 0 … 999."""
    sigma = sigma_table().float().to(x0.device)[t].view(-1, *[1] * (x0.dim() - 1))
    return ((x0 + sigma * noise) / (1 + sigma**2).sqrt()).to(x0.dtype)


def _ldm(steps, to_zero):
    # Leading spacing, moved up by one. At 1000 steps there is no room above, so nothing moves.
    stride = TIMES // steps
    offset = min(1, TIMES - 1 - (steps - 1) * stride)
    return [sigma_of(stride * k + offset) for k in reversed(range(steps))]


def _lcm(steps, to_zero):
    # The 50 times that LCMs were distilled on, 999, 979 … 19, thinned evenly.
    if steps > 50:
        raise UserError(f"the lcm schedule has at most 50 steps, not {steps}; 4 to 8 are usual")
    return [sigma_of(TIMES - 1 - 20 * (50 * k // steps)) for k in range(steps)]


def _even(points, measure, inverse):
    """`points` noise levels from the largest to the smallest, evenly spaced when seen through `measure`."""
    ends = measure(_sigmas()[-1]), measure(_sigmas()[0])
    return [inverse(value) for value in np.linspace(*ends, points).tolist()]


def _karras(steps, to_zero):
    return _even(steps if to_zero else steps + 1, lambda sigma: sigma ** (1 / 7), lambda value: value**7)[:steps]


def _exponential(steps, to_zero):
    return _even(steps if to_zero else steps + 1, math.log, math.exp)[:steps]


def _sgm_uniform(steps, to_zero):
    return _even(steps + 1, t_of, sigma_of)[:steps]


SCHEDULES = {
    "ldm": _ldm,
    "karras": _karras,
    "exponential": _exponential,
    "sgm_uniform": _sgm_uniform,
    "lcm": _lcm,
}


def sigma_list(steps: int, schedule: str = "ldm", to_zero: bool = True) -> list[float]:
    """The noise levels of a run, falling: a list of steps + 1 floats.

    It ends at 0 with `to_zero`, otherwise at sigma(t=0) = 0.0292, where LDM's DDIM and PLMS stop. Schedules:

    ldm          t = 1 + k * (1000 // steps): LDM's list, and diffusers' "leading" spacing with steps_offset 1. Where
                 steps does not divide 1000 the two differ (LDM makes extra steps, or runs off its table); here it is
                 diffusers': exactly `steps` of them, starting a little lower. Over 500 steps they start far too low
                 for a picture from pure noise; use 1000, or another schedule.
    karras       even in sigma^(1/7), from the table's largest to its smallest (Karras et al. 2022, eq. 5, rho = 7).
    exponential  even in log(sigma).
    sgm_uniform  even in t, from 999 down, as in Stability's generative-models.
    lcm          diffusers' times for latent consistency models: 999, 979 … 19, thinned to `steps` (at most 50).

    Raises UserError for an unknown schedule, or steps that are not a whole number in 1 … 1000.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"there is no schedule called {schedule!r}; known are {', '.join(SCHEDULES)}")
    if steps not in range(1, TIMES + 1):
        raise UserError(f"steps must be a whole number from 1 to {TIMES}, not {steps}")
    return SCHEDULES[schedule](int(steps), to_zero) + [0.0 if to_zero else sigma_of(0)]
