"""The mean of measurements, and the ratio of two means, with their 95 % confidence intervals."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL = 1.959964  # standard deviations to either side of the mean that hold 95 % of a normal distribution
T_QUANTILES = {1: 12.7062, 2: 4.3027, 3: 3.1824}  # the same for Student's t, by degrees of freedom
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class MeanCI:
    """A mean of `count` values with its 95 % confidence interval, value ± half_width.

    half_width: NaN for a single value, of which nothing tells the spread.
    """

    value: float
    half_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.half_width) else f"{self.value:.3f} ± {self.half_width:.3f}"


def mean_with_ci(values: Tensor | list[float]) -> MeanCI:
    """Return the mean of independent values, (N,), with Student's 95 % confidence interval."""
    values = torch.as_tensor(values, dtype=torch.float64)
    count = len(values)
    half_width = math.nan if count < 2 else t_quantile(count - 1) * values.std().item() / math.sqrt(count)
    return MeanCI(values.mean().item(), half_width, count)


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution: Abramowitz & Stegun 1964, 26.7.5, from 4 degrees on.

    The series is not exact enough for 1 to 3 degrees of freedom, which have a table.
    """
    z = NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return T_QUANTILES.get(degrees) or sum(term / degrees**k for k, term in enumerate(terms))


@dataclass(frozen=True)
class RatioCI:
    """The ratio of two means over the same items, with its 95 % confidence interval from `low` to `high`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_with_ci(first: list[float], second: list[float], seed: int = 0) -> RatioCI:
    """Return mean(first) / mean(second) with the percentile bootstrap's interval (Efron 1979).

    Both have a value for each item, and items are resampled in pairs. A denominator of 0 gives infinity, 0 / 0 NaN.
    """
    pairs = torch.tensor([first, second], dtype=torch.float64)  # (2, N)
    count = pairs.shape[1]
    chosen = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    tops, bottoms = pairs[:, chosen].mean(dim=2)  # (RESAMPLES,) each
    low, high = (tops / bottoms).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = (pairs[0].mean() / pairs[1].mean()).item()
    return RatioCI(value, low, high)
