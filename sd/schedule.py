"""The noise schedule: how much noise a latent holds at each time, and which noise levels a sampler visits.

Time t runs from 0 (almost clean) to 999 (almost pure noise). Two coordinates describe the same noisy latent:

    VP, what the U-Net was trained on:   sqrt(a) * x0 + sqrt(1 - a) * noise,    a = alphas_cumprod[t]
    sigma space, what samplers use:      x0 + sigma * noise,                    sigma = sqrt((1 - a) / a)

VP is sigma space divided by sqrt(1 + sigma²): 1 + sigma² = 1 / a, so the factor of x0 becomes sqrt(a). In VP ("variance
preserving") the latent has unit variance at every t, which suits a network's input. In sigma space x0 keeps its scale
and only the noise grows, which makes every formula of a sampler shorter.

Two things are called a schedule. A `NoiseSchedule` belongs to the model: it is the sigma of each t, fixed by training.
A sampler schedule ("karras", ...; see `sigma_list`) belongs to a run: it chooses the few levels that are visited.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sd.utils.errors import UserError

TIMES = 1000  # time steps that Stable Diffusion 1.x was trained with
BETA_START, BETA_END = 0.00085, 0.012


def scaled_linear_betas() -> Tensor:
    """Return the variances of the forward steps, (1000,) float64: LDM's "linear", which is linear in sqrt(beta)."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMES, dtype=torch.float64, device="cpu") ** 2


class NoiseSchedule:
    """The noise level of every time step of a model, and the conversions between the two.

    betas: (T,) variances of the forward steps, each in (0, 1); those of SD 1.x if None. Sigma must stay finite, so a
    schedule of zero terminal SNR needs a last beta slightly below 1.

    alphas_cumprod: (T,) float32, the share of the signal's variance that is left (Ho et al. 2020, eq. 4); LDM's buffer.
    sigmas:         (T,) float64, the noise level in sigma space; for SD 1.x it rises from 0.0292 to 14.61.
    log_sigmas:     (T,) float64 in numpy, their logarithms, between which `t_of` and `sigma_of` interpolate.
    """

    def __init__(self, betas: Tensor | None = None):
        betas = scaled_linear_betas() if betas is None else betas.double()
        # One forward step multiplies the latent by sqrt(1 - beta), so t steps leave the product of all 1 - beta.
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        self.alphas_cumprod = alphas_cumprod.float()
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        self.log_sigmas = np.array([math.log(sigma) for sigma in self.sigmas.tolist()])

    def __len__(self) -> int:
        return len(self.sigmas)

    def t_of(self, sigma: float) -> float:
        """Return the time of a noise level, a float in 0 … T - 1.

        It is exactly k for `sigmas[k]`, linear in log(sigma) between two entries, and clamped outside of the table.
        """
        return float(np.interp(math.log(sigma), self.log_sigmas, np.arange(len(self))))

    def sigma_of(self, t: float) -> float:
        """Return the noise level at time t in 0 … T - 1, the inverse of `t_of`."""
        low = int(t)
        high, weight = min(low + 1, len(self) - 1), t - low
        # The geometric mean is the arithmetic mean of the logarithms. A whole t has weight 0 and gives its very entry.
        return self.sigmas[low].item() ** (1 - weight) * self.sigmas[high].item() ** weight

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the noisy input of training in VP form (Ho et al. 2020, eq. 4), of the shape and dtype of x0.

        x0, noise: (B, ...). t: (B,) long, each in 0 … T - 1.
        """
        sigma = self.sigmas.float().to(x0.device)[t].view(-1, *[1] * (x0.dim() - 1))  # (B, 1, 1, 1) for latents
        return ((x0 + sigma * noise) / (1 + sigma**2).sqrt()).to(x0.dtype)


SD1_SCHEDULE = NoiseSchedule()  # what every Stable Diffusion 1.x checkpoint that predicts noise was trained with


def ldm_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    # Leading spacing, moved up by one. At 1000 steps there is no room above, so nothing moves.
    stride = len(noise_schedule) // steps
    offset = min(1, len(noise_schedule) - 1 - (steps - 1) * stride)
    return [noise_schedule.sigma_of(stride * k + offset) for k in reversed(range(steps))]


def lcm_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    # The 50 times that LCMs were distilled on, 999, 979 … 19, thinned evenly.
    if steps > 50:
        raise UserError(f"invalid number of steps: {steps} (the lcm schedule has at most 50; 4 to 8 are usual).")
    last, stride = len(noise_schedule) - 1, len(noise_schedule) // 50
    return [noise_schedule.sigma_of(last - stride * (50 * k // steps)) for k in range(steps)]


def evenly_spaced(
    noise_schedule: NoiseSchedule, points: int, measure: Callable[[float], float], inverse: Callable[[float], float]
) -> list[float]:
    """Return `points` noise levels from the largest to the smallest that are evenly spaced in `measure(sigma)`."""
    largest, smallest = noise_schedule.sigmas[-1].item(), noise_schedule.sigmas[0].item()
    return [inverse(value) for value in np.linspace(measure(largest), measure(smallest), points).tolist()]


# With `to_zero` the smallest level of the table takes the last step, to 0. Otherwise it is the end of the list itself,
# which `sigma_list` appends, so one more point is spaced and then dropped here.
def karras_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    points = steps if to_zero else steps + 1
    return evenly_spaced(noise_schedule, points, lambda sigma: sigma ** (1 / 7), lambda value: value**7)[:steps]


def exponential_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    return evenly_spaced(noise_schedule, steps if to_zero else steps + 1, math.log, math.exp)[:steps]


def sgm_uniform_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    return evenly_spaced(noise_schedule, steps + 1, noise_schedule.t_of, noise_schedule.sigma_of)[:steps]


SCHEDULES = {
    "ldm": ldm_sigmas,
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "sgm_uniform": sgm_uniform_sigmas,
    "lcm": lcm_sigmas,
}


def sigma_list(
    steps: int, schedule: str = "ldm", to_zero: bool = True, noise_schedule: NoiseSchedule = SD1_SCHEDULE
) -> list[float]:
    """Return the noise levels of a run: steps + 1 falling floats, of which each pair of neighbors is one step.

    It ends at 0 with `to_zero`, otherwise at the level of t = 0, 0.0292, where LDM's DDIM and PLMS stop. Schedules:

    ldm          t = 1 + k * (1000 // steps): LDM's list, and diffusers' "leading" spacing with steps_offset 1. Where
                 steps does not divide 1000 the two differ (LDM makes extra steps, or runs off its table); here it is
                 diffusers': exactly `steps` of them, starting a little lower. Over 500 steps they start far too low
                 for an image from pure noise; use 1000, or another schedule.
    karras       even in sigma^(1/7), from the table's largest to its smallest (Karras et al. 2022, eq. 5, rho = 7).
    exponential  even in log(sigma).
    sgm_uniform  even in t, from 999 down, as in Stability's generative-models.
    lcm          diffusers' times for latent consistency models: 999, 979 … 19, thinned to `steps` (at most 50).

    Raises UserError for an unknown schedule, and for steps that are not an integer from 1 to 1000.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}; choose from {', '.join(SCHEDULES)}.")
    if steps not in range(1, len(noise_schedule) + 1):
        raise UserError(f"invalid number of steps: {steps} (expected an integer from 1 to {len(noise_schedule)}).")
    sigmas = SCHEDULES[schedule](noise_schedule, int(steps), to_zero)
    return [*sigmas, 0.0 if to_zero else noise_schedule.sigma_of(0)]
