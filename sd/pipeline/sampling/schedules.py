"""Further schedules, beside those of `sd/schedule.py`: the noise levels that other programs' runs visit.

Each is a function (noise_schedule, steps, to_zero) that returns falling noise levels above 0. With `to_zero` the run's
last step goes from the last of them to 0; otherwise `sigma_list` appends the level of t = 0 as the end.
"""

import math

import numpy as np

from sd.schedule import SCHEDULES, SD1_SCHEDULE, NoiseSchedule, evenly_spaced, sigma_list
from sd.utils.errors import UserError

TURBO_STEPS = 10  # the steps that SD Turbo's list has in all
# Sabour et al. 2024, "Align Your Steps": the levels that they optimized for Stable Diffusion 1.5, for 10 steps.
AYS_LEVELS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def normal_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Space the levels evenly in t, from 999 to 0 with both ends: ComfyUI's "normal", the webui's "Uniform"."""
    points = steps if to_zero else steps + 1
    return evenly_spaced(noise_schedule, points, noise_schedule.t_of, noise_schedule.sigma_of)[:steps]


def simple_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Take every (1000 / steps)-th level of the table, from the largest down: "simple" of ComfyUI and the webui."""
    stride = len(noise_schedule) / steps
    return [noise_schedule.sigmas[-1 - int(k * stride)].item() for k in range(steps)]


def ddim_uniform_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Take t = 1 + k * (1000 // steps) up to 999: "ddim_uniform" of ComfyUI, "DDIM" of the webui.

    Where steps does not divide 1000 the list is longer than requested, usually by one step.
    """
    return noise_schedule.sigmas[1 :: max(len(noise_schedule) // steps, 1)].flip(0).tolist()


def beta_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Space the times by the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, "Beta Sampling is All You Need").

    The times are whole, as in ComfyUI; equal ones are visited once, so that runs of over 80 steps or so are shorter.
    """
    quantiles = beta_quantiles(1 - np.linspace(0, 1, steps, endpoint=False), 0.6)
    times = (quantiles * (len(noise_schedule) - 1)).round(9)  # so that the median, 499.5, is one exactly
    times = np.rint(times).astype(int).tolist()
    return [noise_schedule.sigmas[t].item() for t in dict.fromkeys(times)]


def beta_in_sigma_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Space the levels themselves, not the times, by the quantiles of Beta(0.6, 0.6): the webui's "Beta"."""
    smallest, largest = noise_schedule.sigmas[0].item(), noise_schedule.sigmas[-1].item()
    points = steps if to_zero else steps + 1
    quantiles = beta_quantiles(1 - np.linspace(0, 1, points), 0.6)[:steps]
    return (smallest + quantiles * (largest - smallest)).tolist()


def beta_quantiles(shares: np.ndarray, shape: float) -> np.ndarray:
    """Return the quantiles of the symmetric distribution Beta(shape, shape) for shares in 0 ... 1, by bisection."""
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(60):
        middle = (low + high) / 2
        below = beta_cdf(middle, shape) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shares == 0, 0.0, np.where(shares == 1, 1.0, high))


def beta_cdf(x: np.ndarray, shape: float) -> np.ndarray:
    """Return the distribution function of Beta(shape, shape): its power series at the nearer end (DLMF 8.17.7)."""
    near = np.minimum(x, 1 - x)
    total, term = np.zeros_like(near), np.ones_like(near)
    for n in range(60):  # near is at most 1/2, so the terms fall below 2^-60
        total += term / (shape + n)
        term = term * near * (n + 1 - shape) / (n + 1)
    share = near**shape * total * math.gamma(2 * shape) / math.gamma(shape) ** 2
    return np.where(x <= 1 / 2, share, 1 - share)


def ays_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Take the levels of Align Your Steps (Sabour et al. 2024); those of 10 steps are theirs, as in ComfyUI.

    Other numbers of steps interpolate between them, evenly in log(sigma). The last level is left out: the run ends in
    its place.
    """
    return interpolate_in_log(AYS_LEVELS, steps + 1)[:steps]


def align_your_steps_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Take the levels of Align Your Steps as the webui does: with the last level too, so one more step reaches it.

    The webui's list for a single step starts at 0.029, which generates nothing; here it starts at the largest level.
    """
    points = steps if to_zero else steps + 1
    return interpolate_in_log(AYS_LEVELS, points)[:steps]


def interpolate_in_log(levels: tuple[float, ...], points: int) -> list[float]:
    """Return `points` levels from the first to the last of `levels`, along straight lines in log(sigma)."""
    places = np.linspace(0, len(levels) - 1, points)
    return np.exp(np.interp(places, np.arange(len(levels)), np.log(levels))).tolist()


def kl_optimal_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Space the levels evenly in arctan(sigma) (Sabour et al. 2024, section 3.1 and appendix).

    With `to_zero` the list is ComfyUI's; without it, it is the webui's, which ends at the smallest level.
    """
    return evenly_spaced(noise_schedule, steps if to_zero else steps + 1, math.atan, math.tan)[:steps]


def polyexponential_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool, rho: float = 1.0) -> list[float]:
    """Space log(sigma) by a ramp to the power `rho`; 1, the webui's value, is the schedule "exponential"."""
    smallest, largest = noise_schedule.log_sigmas[0], noise_schedule.log_sigmas[-1]
    ramp = np.linspace(1, 0, steps if to_zero else steps + 1)[:steps] ** rho
    return np.exp(smallest + ramp * (largest - smallest)).tolist()


def trailing_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Take the times round(1000 - k * 1000 / steps) - 1 (Lin et al. 2023, section 3.3): diffusers' "trailing"."""
    count = len(noise_schedule)
    times = np.round(np.arange(count, 0, -count / steps))[:steps].astype(int) - 1
    return [noise_schedule.sigmas[t].item() for t in times]


def turbo_sigmas(noise_schedule: NoiseSchedule, steps: int, to_zero: bool) -> list[float]:
    """Take the first `steps` of the ten times 999, 899 ... 99, for SD Turbo, as in ComfyUI.

    Raises UserError for more than 10 steps.
    """
    if steps > TURBO_STEPS:
        raise UserError(f"invalid number of steps: {steps} (the turbo schedule has at most {TURBO_STEPS}).")
    stride = len(noise_schedule) // TURBO_STEPS
    return [noise_schedule.sigmas[-1 - k * stride].item() for k in range(steps)]


def linear_quadratic_sigmas(
    noise_schedule: NoiseSchedule, steps: int, to_zero: bool, threshold: float = 0.025
) -> list[float]:
    """Lower sigma linearly by the share `threshold` over the first half of the steps, then quadratically to 0.

    It is the list of the video model Mochi, as ComfyUI scales it. The parabola meets the line with its slope.
    """
    largest = noise_schedule.sigmas[-1].item()
    half = steps // 2
    if half == 0:
        return [largest]
    slope, rest = threshold / half, steps - half
    curvature = (1 - threshold - slope * rest) / rest**2  # so that the parabola reaches 1 after the last step
    shares = [slope * k for k in range(half)]
    shares += [threshold + slope * k + curvature * k**2 for k in range(rest)]
    return [largest * (1 - share) for share in shares]


EXTRA_SCHEDULES = {
    "normal": normal_sigmas,
    "simple": simple_sigmas,
    "ddim_uniform": ddim_uniform_sigmas,
    "beta": beta_sigmas,
    "beta_in_sigma": beta_in_sigma_sigmas,
    "ays": ays_sigmas,
    "align_your_steps": align_your_steps_sigmas,
    "kl_optimal": kl_optimal_sigmas,
    "polyexponential": polyexponential_sigmas,
    "trailing": trailing_sigmas,
    "turbo": turbo_sigmas,
    "linear_quadratic": linear_quadratic_sigmas,
}
ALL_SCHEDULES = SCHEDULES | EXTRA_SCHEDULES


def sigmas_for(
    steps: int, schedule: str, to_zero: bool = True, noise_schedule: NoiseSchedule = SD1_SCHEDULE
) -> list[float]:
    """Return the noise levels of a run as `sigma_list` does, for all schedules.

    They fall to 0, or with `to_zero` False to the level of t = 0. Raises UserError for an unknown schedule, and for
    steps that are not an integer from 1 to 1000, or more than the schedule has.
    """
    if schedule in SCHEDULES:
        return sigma_list(steps, schedule, to_zero, noise_schedule)
    if schedule not in EXTRA_SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}; choose from {', '.join(ALL_SCHEDULES)}.")
    end = sigma_list(steps, to_zero=to_zero, noise_schedule=noise_schedule)[-1]  # it checks steps, too
    return [*EXTRA_SCHEDULES[schedule](noise_schedule, int(steps), to_zero), end]
