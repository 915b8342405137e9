"""Further samplers, with the interface of `sd/samplers.py`, for images that other programs make.

Each one is a generator over (denoise, x, sigmas, noise) that yields (x, x0) after each step. All of them work on x0 or
on eps = (x - x0) / sigma. Where a docstring names a paper, the formula is the paper's, written for sigma space; the
choices that the papers leave open are those of k-diffusion (Katherine Crowson, 2022).
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from torch import Tensor

from sd.samplers import ADAMS_BASHFORTH, split_variance
from sd.schedule import SD1_SCHEDULE, NoiseSchedule

Denoise = Callable[[Tensor, float], Tensor]
NoiseSource = Callable[[], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]


def dpm2_a(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, eta: float = 1.0) -> Steps:
    """Sample with ancestral DPM-Solver-2 (Lu et al. 2022a, algorithm 1).

    Each step integrates to a level below the next one and adds fresh noise to return to it (Ho et al. 2020, eq. 7; see
    `split_variance`). The model is evaluated twice a step, once in the last one.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        down, up = split_variance(sigma, to, eta)
        if down > 0:
            middle = math.sqrt(sigma * down)
            halfway = x + (middle - sigma) * (x - x0) / sigma
            x = x + (down - sigma) * (halfway - denoise(halfway, middle)) / middle + up * noise()
        else:
            x = x0
        yield x, x0


def dpmpp_2s_a(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, eta: float = 1.0) -> Steps:
    """Sample with ancestral DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1, r = 1/2).

    The model is evaluated twice a step, once in the last one.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        down, up = split_variance(sigma, to, eta)
        if down > 0:
            middle = math.sqrt(sigma * down)
            target = denoise(x0 + (middle / sigma) * (x - x0), middle)
            x = target + (down / sigma) * (x - target) + up * noise()
        else:
            x = x0
        yield x, x0


def dpmpp_2m_sde_heun(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, eta: float = 1.0) -> Steps:
    """Sample with SDE-DPM-Solver++(2M) in its Heun form (Lu et al. 2022b, section 4 and algorithm 2, for the SDE).

    The midpoint form weights the change of x0 by 1/2; this form integrates it exactly over the step.
    """
    last_x0 = last_h = None
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to > 0:
            h = math.log(sigma / to)
            length = (1 + eta) * h
            x = x0 + (to / sigma) ** (1 + eta) * (x - x0)
            if last_x0 is not None:
                x = x + (1 + math.expm1(-length) / length) * (h / last_h) * (x0 - last_x0)
            x = x + to * math.sqrt(1 - (to / sigma) ** (2 * eta)) * noise()
            last_x0, last_h = x0, h
        else:
            x = x0
        yield x, x0


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, eta: float = 1.0) -> Steps:
    """Sample with SDE-DPM-Solver++(3M), which extrapolates x0 by a parabola through its last three values.

    The weights are those of Lu et al. 2022b, section 4, for the SDE: the functions phi_2 and phi_3 of (1 + eta) h, h
    being the step's length in log(sigma).
    """
    history: deque = deque(maxlen=2)  # (x0, length of the step that began there), newest first
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to > 0:
            h = math.log(sigma / to)
            length = (1 + eta) * h
            phi2 = 1 + math.expm1(-length) / length
            phi3 = phi2 / length - 1 / 2
            moved = x0 + (to / sigma) ** (1 + eta) * (x - x0)
            if len(history) == 2:
                (x0_1, h_1), (x0_2, h_2) = history
                r0, r1 = h_1 / h, h_2 / h
                slope, last_slope = (x0 - x0_1) / r0, (x0_1 - x0_2) / r1
                curvature = (slope - last_slope) / (r0 + r1)
                moved = moved + phi2 * (slope + r0 * curvature) - phi3 * curvature
            elif history:
                moved = moved + phi2 * (x0 - history[0][0]) * h / history[0][1]
            x = moved + to * math.sqrt(-math.expm1(-2 * h * eta)) * noise()
            history.appendleft((x0, h))
        else:
            x = x0
        yield x, x0


def lms(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, order: int = 4) -> Steps:
    """Sample with a linear multistep method (Adams-Bashforth on uneven levels, as in k-diffusion).

    Between two levels eps follows the polynomial in sigma through its last `order` values, 1 to 4.
    """
    slopes: deque = deque(maxlen=order)  # newest first
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes.appendleft((x - x0) / sigma)
        levels = [sigmas[i - k] for k in range(len(slopes))]
        x = x + sum(weight * eps for weight, eps in zip(integrate_lagrange(levels, sigma, to), slopes))
        yield x, x0


def integrate_lagrange(levels: list[float], start: float, end: float) -> list[float]:
    """Integrate from `start` to `end` each polynomial that is 1 at one of the n `levels` and 0 at the others.

    Two Gauss-Legendre points are exact for n up to 4, whose polynomials are of degree 3.
    """
    center, half = (start + end) / 2, (end - start) / 2
    points = [center - half / math.sqrt(3), center + half / math.sqrt(3)]

    def value_at(j: int, point: float) -> float:
        return math.prod((point - other) / (levels[j] - other) for k, other in enumerate(levels) if k != j)

    return [half * sum(value_at(j, point) for point in points) for j in range(len(levels))]


def ipndm(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource) -> Steps:
    """Sample with improved PNDM (Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator").

    It is Adams-Bashforth on eps (their appendix on PNDM), of orders 1, 2, 3 and then 4, without PLMS's second
    evaluation in the first step.
    """
    slopes: deque = deque(maxlen=4)  # newest first
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slopes.appendleft((x - x0) / sigma)
        weights = ADAMS_BASHFORTH[len(slopes) - 1]
        x = x + (to - sigma) * sum(weight * eps for weight, eps in zip(weights, slopes)) if to > 0 else x0
        yield x, x0


def deis(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, order: int = 2) -> Steps:
    """Sample with DEIS (Zhang & Chen 2023, section 3, rhoAB-DEIS, in log(rho) as diffusers has it; rho is sigma).

    eps follows the polynomial in log(sigma) through its last `order` values, 1 to 3, and is integrated exactly over
    sigma. In runs of fewer than 15 steps the last steps are of a lower order: 2, then 1.
    """
    slopes: deque = deque(maxlen=order)  # newest first
    steps = len(sigmas) - 1
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        slopes.appendleft((x - x0) / sigma)
        usable = min(len(slopes), steps - i) if steps < 15 else len(slopes)
        weights = integrate_in_log([sigmas[i - k] for k in range(usable)], sigma, to)
        x = x + sum(weight * eps for weight, eps in zip(weights, slopes))
        yield x, x0


def integrate_in_log(levels: list[float], start: float, end: float) -> list[float]:
    """Integrate, over sigma from `start` to `end`, polynomials in log(sigma), each 1 at one level and 0 at the others.

    With s = log(sigma) the integral of p(s) d(sigma) is e^s (p - p' + p'' - ...), which tends to 0 with sigma.
    """
    logs = np.log(levels)

    def primitive(polynomial: np.poly1d, sigma: float) -> float:
        if sigma == 0:
            return 0.0
        terms = [(-1) ** k * polynomial.deriv(k)(math.log(sigma)) for k in range(polynomial.order + 1)]
        return sigma * sum(terms)

    weights = []
    for j, log in enumerate(logs):
        others = np.delete(logs, j)
        polynomial = np.poly1d(others, r=True) / np.prod(log - others) if len(others) else np.poly1d([1.0])
        weights.append(float(primitive(polynomial, end) - primitive(polynomial, start)))
    return weights


def tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: list[float],
    noise: NoiseSource,
    gamma: float = 0.3,
    schedule: NoiseSchedule = SD1_SCHEDULE,
) -> Steps:
    """Sample with trajectory consistency distillation (Zheng et al. 2024, "strategic stochastic sampling").

    The model, or a TCD or Hyper-SD LoRA on it, jumps along the trajectory to the time (1 - gamma) * t of the next
    level, and fresh noise raises it to that level. gamma: 0 (deterministic) ... 1 (a new jump to x0 each time, as LCM).
    """
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        last = i == len(sigmas) - 2
        down = to if last or to == 0 else schedule.sigma_of(int((1 - gamma) * schedule.t_of(to)))
        x = x0 + (down / sigma) * (x - x0)
        if down < to:
            x = x + math.sqrt(to**2 - down**2) * noise()
        yield x, x0


def restart(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource) -> Steps:
    """Sample with Restart (Xu et al. 2023, algorithm 1) on Heun's method, with the webui's choice of intervals.

    From 20 steps on, the path returns from about sigma 0.1 to sigma 2 with fresh noise and descends again: once over 9
    steps, or from 36 steps on twice, over a quarter of all steps each. Only the first and the last level above 0 of
    `sigmas` and their number are used. The number of steps is that of the list, less the returns where the first level
    is too low for one. The model is evaluated twice a step, once in the last one.
    """
    reached = sigmas[0]
    for sigma, to in restart_path(sigmas):
        if sigma > reached:
            x = x + math.sqrt(sigma**2 - reached**2) * noise()
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        if to > 0:
            ahead = x + (to - sigma) * slope
            x = x + (to - sigma) * (slope + (ahead - denoise(ahead, to)) / to) / 2
        else:
            x = x0
        reached = to
        yield x, x0


def restart_path(sigmas: list[float]) -> list[tuple[float, float]]:
    """List the steps (from, to) of `restart`: down the Karras levels, with the returns in between."""
    steps, end = len(sigmas) - 1, sigmas[-2] if sigmas[-1] == 0 else sigmas[-1]
    length, times = (steps // 4, 2) if steps >= 36 else (9, 1) if steps >= 20 else (0, 0)
    levels = [*karras_levels(sigmas[0], end, steps - length * times), 0.0]
    path = list(pairwise(levels))
    low, high = (int(np.abs(np.array(levels) - level).argmin()) for level in (0.1, 2))
    if times and high < low:
        again = list(pairwise(karras_levels(levels[high], levels[low], length + 1)))
        path = [*path[:low], *again * times, *path[low:]]
    return path


def karras_levels(first: float, last: float, count: int) -> list[float]:
    """List `count` levels, even in sigma^(1/7), from `first` to `last` (Karras et al. 2022, eq. 5, rho = 7)."""
    return (np.linspace(first ** (1 / 7), last ** (1 / 7), count) ** 7).tolist()
