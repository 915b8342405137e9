"""DPM-Solver with singlestep updates (Lu et al. 2022a): "DPM fast" and "DPM adaptive"."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch import Tensor

from sd.pipeline.sampling.extra_samplers import Denoise, NoiseSource, Steps
from sd.samplers import split_variance


def dpm_fast(denoise: Denoise, x: Tensor, sigmas: list[float], noise: NoiseSource, eta: float = 0.0) -> Steps:
    """Sample with DPM-Solver-fast (Lu et al. 2022a, section 3.3): steps of order 3 that end with order 2 or 1.

    Only the first and the last level of `sigmas`, both above 0, and their number are used; the levels between are even
    in log(sigma). The model is evaluated once for each step of the list, and (x, x0) is yielded after each evaluation.
    eta: 0 is the paper's ODE solver; up to 1 makes each step ancestral (see `split_variance`), as k-diffusion does.
    """
    count = len(sigmas) - 1
    orders = [3] * (count // 3 - 1) + [2, 1] if count % 3 == 0 else [3] * (count // 3) + [count % 3]
    levels = np.geomspace(sigmas[0], sigmas[-1], len(orders) + 1).tolist()
    for order, (sigma, to) in zip(orders, pairwise(levels)):
        down, up = split_above(sigma, to, eta, sigmas[-1])
        evaluations = singlestep(denoise, x, sigma, down, order)
        for number, (x, x0, _) in enumerate(evaluations, 1):  # the last x is where the step ends
            if number == order and up > 0:
                x = x + up * noise()
            yield x, x0


def split_above(sigma: float, to: float, eta: float, end: float) -> tuple[float, float]:
    """Split a step as `split_variance` does, with the lower level not below `end`, where the solvers stop."""
    if eta == 0:
        return to, 0.0
    down = max(end, split_variance(sigma, to, eta)[0])
    return down, math.sqrt(max(to**2 - down**2, 0.0))


def singlestep(
    denoise: Denoise, start: Tensor, sigma: float, to: float, order: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Take one step of DPM-Solver-1, -2 or -3 (Lu et al. 2022a, eq. 3.7, algorithms 1 and 2).

    Yields (x, x0, low) after each of its `order` evaluations. The last x is where the step ends, `low` is the result of
    the next lower order (None for order 1); an earlier x is an intermediate point.
    """
    h = math.log(sigma / to)
    levels = [sigma * math.exp(-h * k / order) for k in range(1, order)] + [to]  # even in log(sigma)
    x, slopes = start, []
    for level, here in zip(levels, [sigma, *levels]):
        x0 = denoise(x, here)
        slopes.append((x - x0) / here)
        x = start + (level - sigma) * slopes[0]
        low = None if order == 1 else x
        if len(slopes) > 1:
            change = slopes[-1] - slopes[0]  # of eps, over a share of the step
            share = (len(slopes) - 1) / order
            second = x + (level - sigma) / (2 / order) * (slopes[1] - slopes[0])
            if order == 2:
                x = second
            else:
                low = second
                length = math.log(sigma / level)
                x = x - level * (math.expm1(length) / length - 1) * (length / h) / share * change
        yield x, x0, low


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    sigmas: list[float],
    noise: NoiseSource,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h: float = 0.05,
    eta: float = 0.0,
) -> Steps:
    """Sample with DPM-Solver-12/23 (Lu et al. 2022a, appendix C): each step is as long as an error estimate allows.

    Only the first and the last level of `sigmas`, both above 0, are used, not their number. rtol, atol: the error that
    is allowed, relative and in units of x. h: the first step's length in log(sigma). The estimate is one number for the
    whole batch. eta: as for `dpm_fast`. Yields after each step that is accepted; each step tried takes three
    evaluations.
    """
    sigma, end, last_low = sigmas[0], sigmas[-1], x
    exponent = 1 / 1.5 if eta else 1 / 3  # one over the order of the error, lower on the SDE
    while math.log(sigma / end) > 1e-5:
        to = max(end, sigma * math.exp(-h))
        down, up = split_above(sigma, to, eta, end)
        *_, (high, _, low) = steps = list(singlestep(denoise, x, sigma, down, 3))
        allowed = (rtol * low.abs().maximum(last_low.abs())).clamp(min=atol)
        error = ((low - high) / allowed).square().mean().sqrt().item()
        factor = 1 + math.atan((1 / (error + 1e-8)) ** exponent - 1)
        h *= factor
        if factor >= 0.81:
            last_low, x, sigma = low, high + up * noise() if up > 0 else high, to
            yield x, steps[0][1]
