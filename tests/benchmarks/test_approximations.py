"""The measuring of what is quicker and not quite the same: its figures, and that its script runs."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import approximations, sampler_steps
from benchmarks.approximations import EXACT, Measured, psnr, step_time_ratios
from benchmarks.sampler_steps import Row
from benchmarks.tasks import Options
from sd.evaluation.confidence import MeanCI


def test_psnr_written_out():
    a = np.zeros((4, 4, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 51  # a fifth of the range in one of 48 values
    assert psnr(Image.fromarray(a), Image.fromarray(b)) == pytest.approx(10 * math.log10(48 / 0.2**2))
    assert psnr(Image.fromarray(a), Image.fromarray(a)) == approximations.HIGHEST_PSNR


def test_ratios_and_changes_are_of_pairs():
    exact = Measured(EXACT, seconds=[2.0, 4.0], clip_t=[0.3, 0.5])
    half = Measured("half", seconds=[1.0, 3.0], clip_t=[0.2, 0.5])
    assert half.ratios(exact) == [0.5, 0.75]
    assert half.clip_t_change(exact).value == pytest.approx(-0.05)


def test_steps_of_every_way_are_timed_in_turn():
    ways = {EXACT: {}, "cache": dict(step_cache=3), "merging": dict(token_merging=0.5), "half": dict(guidance_end=0.5)}
    ways["plain"] = dict(optimizations=[])
    ratios = step_time_ratios(Options(tiny=True, steps=6, rounds=2), ways)
    assert ratios.keys() == ways.keys()
    assert ratios[EXACT] == [1.0, 1.0]
    assert all(len(part) == 2 and min(part) > 0 for part in ratios.values())


def test_ratios_at_v1_5s_size_are_kept_where_they_are_not_measured_again(tmp_path):
    assert approximations.full_size_ratios(0, {EXACT: {}}, tmp_path) == {}
    kept = {EXACT: [1.0, 1.0], "cache": [0.6, 0.7]}
    (tmp_path / "approximations.json").write_text(json.dumps({"ways": [], "full size": kept}))
    assert approximations.full_size_ratios(0, {EXACT: {}}, tmp_path) == kept


def row(sampler: str, steps: int, right: float, change: float | None) -> Row:
    return Row(
        sampler, steps, steps, right, MeanCI(0.3, 0.01, 100), None if change is None else MeanCI(change, 0.01, 100)
    )


def test_what_is_as_good_as_the_reference_is_bold():
    """100 images, half of them right: one standard error of a difference of shares is 7 %."""
    rows = [row("ddpm", 50, 0.5, None), row("euler", 10, 0.42, 0.0), row("euler", 20, 0.44, -0.005)]
    rows += [row("euler", 30, 0.6, -0.02), row("heun", 10, 0.1, 0.0)]
    assert [one.reaches(rows[0]) for one in rows] == [True, False, True, False, False]
    ddpm, euler, heun = sampler_steps.table(rows).splitlines()[4:]
    assert ddpm == "| DDPM |  |  |  | **50%, 0.300** | 50 steps, 50 calls |"
    assert euler == "| Euler | 42%, 0.300 | **44%, 0.300** | 60%, 0.300 |  | 20 steps, 20 calls |"
    assert heun.endswith("| none |")


@pytest.mark.slow
def test_the_script_writes_its_page(run, tmp_path):
    code, out, err = run("approximations.py", "--count", 1, "--images", 1, "--steps", 3, "--out", tmp_path)
    assert code == 0, err
    figures = json.loads((tmp_path / "approximations.json").read_text())
    ways = approximations.available_ways(torch.device("cpu"), torch.float32)
    assert [one["name"] for one in figures["ways"]] == list(ways)
    assert out in (tmp_path / "approximations.md").read_text()
    assert Image.open(tmp_path / "approximations.png").width > 10 * 128
