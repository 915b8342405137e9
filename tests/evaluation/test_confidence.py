"""Intervals, against printed tables and by counting how often they hold."""

import math

import pytest
import torch

from sd.evaluation.confidence import mean_with_ci, ratio_with_ci, t_quantile


@pytest.mark.parametrize(
    ("degrees", "printed"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (7, 2.365), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_the_tables(degrees, printed):
    assert t_quantile(degrees) == pytest.approx(printed, abs=1e-3)  # the tables have three decimals


def test_a_mean_of_five_by_hand():
    # Deviations -2, -1, 0, 1, 2: variance 10 / 4, standard error sqrt(2.5 / 5), times 2.776 for 4 degrees of freedom.
    found = mean_with_ci([8.0, 9.0, 10.0, 11.0, 12.0])
    assert (found.value, found.count) == (10.0, 5)
    assert found.half_width == pytest.approx(2.776 * math.sqrt(0.5), abs=1e-3)
    assert str(found) == "10.000 ± 1.963"


def test_the_interval_holds_the_truth_19_times_in_20():
    draws = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    held = [abs(found.value) <= found.half_width for found in map(mean_with_ci, draws)]
    # Four deviations of a share of 4,000: 4 * sqrt(0.95 * 0.05 / 4000) = 0.014.
    assert sum(held) / len(held) == pytest.approx(0.95, abs=0.014)


def test_one_value_has_no_interval():
    found = mean_with_ci(torch.tensor([0.25]))
    assert (found.value, str(found)) == (0.25, "0.250")
    assert math.isnan(found.half_width)


def test_a_ratio_of_means_by_hand():
    # 6 / 2; each item has the ratio 3, so that every resample has it too.
    assert str(ratio_with_ci([3.0, 6.0, 9.0], [1.0, 2.0, 3.0])) == "3.00 [3.00, 3.00]"
    assert ratio_with_ci([1.0, 1.0], [0.0, 0.0]).value == math.inf


def test_the_interval_of_a_ratio_holds_the_truth_19_times_in_20():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for k in range(300):
        second = 1 + 0.3 * torch.randn(60, generator=generator)
        first = 2 * second + 0.4 * torch.randn(60, generator=generator)
        found = ratio_with_ci(first.tolist(), second.tolist(), seed=k)
        held += found.low <= 2 <= found.high
    # Four deviations of a share of 300, 0.05, and the percentile interval's own shortfall of a percent at 60 items.
    assert held / 300 == pytest.approx(0.95, abs=0.06)


def test_pairing_makes_the_interval_of_a_ratio_narrow():
    generator = torch.Generator().manual_seed(1)
    second = (1 + 0.5 * torch.randn(100, generator=generator)).tolist()
    paired = ratio_with_ci([2 * value for value in second], second)
    shuffled = ratio_with_ci([2 * value for value in reversed(second)], second)
    assert paired.high - paired.low < 1e-9 < 0.1 < shuffled.high - shuffled.low
