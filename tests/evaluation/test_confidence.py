"""Intervals, against printed tables and by counting how often they hold."""

import math

import pytest
import torch

from sd.evaluation.confidence import mean_with_ci, t_quantile


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
