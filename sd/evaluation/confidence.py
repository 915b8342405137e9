"""A mean and how far to trust it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL = 1.959964  # 95 % of a normal distribution lie within so many deviations
T_QUANTILES = {1: 12.7062, 2: 4.3027, 3: 3.1824}  # the same for Student's t, by degrees of freedom


@dataclass(frozen=True)
class Mean:
    """A mean of `count` values with half its 95 % interval, which is nan for a single value."""

    value: float
    half: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.half) else f"{self.value:.3f} ± {self.half:.3f}"


def mean_of(values: Tensor | list[float]) -> Mean:
    """The mean of independent values, one for each picture or each concept, with Student's 95 % interval."""
    values = torch.as_tensor(values, dtype=torch.float64)
    count = len(values)
    half = math.nan if count < 2 else t_quantile(count - 1) * values.std().item() / math.sqrt(count)
    return Mean(values.mean().item(), half, count)


def t_quantile(degrees: int) -> float:
    """How many deviations from the middle of Student's t hold 95 %: Abramowitz & Stegun 1964, 26.7.5, from 4 on."""
    z = NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return T_QUANTILES.get(degrees) or sum(term / degrees**k for k, term in enumerate(terms))
