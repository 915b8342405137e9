"""Brownian noise for the SDE samplers, as the webui takes it: one path for each seed, whose time is sigma.

A sampler's noise for a step is the path's increment over it, divided by the square root of its length. So a run with
more steps, or a step taken in two halves, follows the same path, and images of different numbers of steps are alike.

The path is built by bisection (Levy's construction): the value in the middle of an interval, given its two ends, is
normal around their mean. Each middle has its own seed, made by numpy's `SeedSequence` from the path's seed and the
place in the tree of halves. That is the path of torchsde's `BrownianTree`, which k-diffusion and the webui use; it is
written here because it takes 40 lines, and torchsde and its requirement scipy would be two more packages.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

DIGITS = 6  # times are rounded to these decimals, so that the tree of halves ends
POOL = 24  # words of entropy in a SeedSequence

Randn = Callable[[int, tuple[int, ...]], Tensor]


def cpu_randn(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise, float32, of a generator on the CPU with this seed."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


class BrownianPath:
    """One path W over sigma from `start` to `end`, of tensors of `shape`, with W(start) = 0.

    randn: (seed, shape) -> standard normal noise; see `cpu_randn` and `philox.PhiloxGenerator`.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], start: float, end: float, randn: Randn = cpu_randn):
        self.seed, self.shape, self.randn = seed, shape, randn
        self.start, self.end = round(start, DIGITS), round(end, DIGITS)
        self.whole = self.noise_at(()) * math.sqrt(end - start)  # W(end) - W(start)

    def noise_at(self, place: tuple[int, ...]) -> Tensor:
        """Return the noise of a place in the tree: (number among those of its level, level), () for the whole path."""
        seed = np.random.SeedSequence(self.seed, spawn_key=place, pool_size=POOL).generate_state(1)
        return self.randn(int(seed[0]), self.shape)

    def __call__(self, sigma: float) -> Tensor:
        """Return W at a sigma between start and end; beyond them, the value at the nearer one."""
        time = min(max(round(sigma, DIGITS), self.start), self.end)
        low, high, increment = self.start, self.end, self.whole
        value, number, level = torch.zeros(self.shape), 0, 0
        while time not in (low, high):
            middle = round((low + high) / 2, DIGITS)
            left, right = middle - low, high - middle
            spread = math.sqrt(left * right / (high - low))
            first_half = left / (high - low) * increment + spread * self.noise_at((number, level))
            if time <= middle:
                high, increment, number = middle, first_half, 2 * number
            else:
                low, increment, number = middle, increment - first_half, 2 * number + 1
                value = value + first_half
            level += 1
        return value + increment if time == high else value


class BrownianNoise:
    """A sampler's `noise`, a callable () -> (B, 4, h, w): each call returns the paths' increment over the next levels.

    sampler: its name, one of SAMPLERS; it determines where noise is taken, see `noise_levels`. sigmas: the levels of
    the run, of which the largest and the smallest above 0 are the ends of the paths. seeds: one for each image.
    ends: other levels whose ends the paths have.
    """

    SAMPLERS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")

    def __init__(
        self,
        sampler: str,
        sigmas: list[float],
        seeds: list[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        randn: Randn = cpu_randn,
        ends: list[float] | None = None,
    ):
        levels = positive_levels(sigmas)
        outer = positive_levels(sigmas if ends is None else ends)
        self.paths = [BrownianPath(seed, shape, outer[-1], outer[0], randn) for seed in seeds]
        self.intervals = pairwise(noise_levels(sampler, levels))
        self.device = torch.device(device)

    def __call__(self) -> Tensor:
        sigma, to = next(self.intervals)
        # the path is followed downwards, from the largest sigma on
        increments = torch.stack([path(to) - path(sigma) for path in self.paths])
        return (increments / math.sqrt(sigma - to)).to(self.device)


def positive_levels(sigmas: list[float]) -> list[float]:
    """Return the levels above 0, rounded to float32."""
    return [level for level in torch.tensor(sigmas, dtype=torch.float32).tolist() if level > 0]


def noise_levels(sampler: str, levels: list[float]) -> list[float]:
    """List the levels between which a sampler takes noise, from the run's levels above 0, in float32 as the webui.

    DPM++ SDE takes its noise in two parts, with the geometric middle of the step between them; see
    `sd.samplers.dpmpp_sde`.
    """
    if sampler != "dpmpp_sde":
        return levels
    times = -torch.tensor(levels, dtype=torch.float32).log()
    middles = times[:-1] + (times[1:] - times[:-1]) * 0.5
    found = [*torch.stack([times[:-1], middles], dim=1).flatten().tolist(), times[-1].item()]
    return torch.tensor(found, dtype=torch.float32).neg().exp().tolist()
