"""The builder: figures are reproducible, files are written and read back, and the command says what it does."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from sd.schedule import sigma_list
from sd.utils.errors import UserError
from tour.build import draw_chapters, make_figure, shorten, write_figure
from tour.figure import Figure, Models, reproducible
from tour.pages import PAGES, figure_homes, read_chapters, read_figure
from tour.source import ROOT

CHEAP = ("schedule_curves", "text_pieces", "causal_mask")  # a tenth of a second each, the first without a network
HOMES = figure_homes(read_chapters())


@pytest.fixture(scope="module")
def models():
    return Models()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


@pytest.mark.parametrize("name", CHEAP)
def test_a_figure_is_the_stored_one(models, name):
    figure = make_figure(name, models)
    stored = read_figure(HOMES[name])
    assert stored["alt"] == figure.alt
    for key, value in figure.numbers.items():
        if is_numeric(value):  # four digits are stored; another processor's sums differ in the sixth
            np.testing.assert_allclose(stored["numbers"][key], value, rtol=1e-3, atol=1e-4)
        else:
            assert stored["numbers"][key] == value
    with Image.open(PAGES / "figures" / f"{HOMES[name]}.png") as image:
        assert image.size == figure.image.size
        # One gray level: rounding decides it where a color lies between two. A line that moves by a fraction of a pixel
        # changes more, so a thousandth of the pixels may.
        different = np.abs(pixels(image) - pixels(figure.image)).max(axis=2) > 1
        assert different.mean() < 1e-3


def is_numeric(value) -> bool:
    try:
        return np.asarray(value, dtype=float).size > 0
    except (TypeError, ValueError):
        return False


def test_the_same_figure_twice_is_the_same_bytes(models, tmp_path):
    for folder in ("one", "two"):
        write_figure(make_figure("schedule_curves", models), "01-x", tmp_path / folder)
    for name in ("01-x.png", "01-x.json"):
        assert (tmp_path / "one/figures" / name).read_bytes() == (tmp_path / "two/figures" / name).read_bytes()


def test_numbers_are_stored_in_four_digits(tmp_path):
    assert shorten([1 / 3, [2e-6 / 3], "word", 7]) == [0.3333, [6.667e-07], "word", 7]
    write_figure(Figure(Image.new("RGB", (2, 2)), {"third": 1 / 3, "many": [1, 2.5]}, "A “dot”."), "01-x", tmp_path)
    assert read_figure("01-x", tmp_path) == {"alt": "A “dot”.", "numbers": {"third": 0.3333, "many": [1, 2.5]}}
    json.loads((tmp_path / "figures" / "01-x.json").read_text(encoding="utf-8"))


def test_figures_run_in_one_thread_without_gradients_and_the_number_of_threads_returns():
    before = torch.get_num_threads()
    with reproducible():
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
    assert torch.get_num_threads() == before
    assert torch.is_grad_enabled()


def test_models_sample_as_the_minimal_example_does(models):
    """`Models.generate` is the textbook's loop, written out here for DDIM."""
    with reproducible():
        latent = models.generate("a red apple", seed=3, steps=2, scale=2, sampler="ddim")
        sigmas = sigma_list(2, to_zero=False)
        x = models.noise(3) * (1 + sigmas[0] ** 2) ** 0.5
        cond, uncond = models.denoiser("a red apple", scale=1), models.denoiser("", scale=1)
        for sigma, to in pairwise(sigmas):
            x0 = uncond(x, sigma) + 2 * (cond(x, sigma) - uncond(x, sigma))
            x = x0 + to / sigma * (x - x0)
        # A batch of two sums in another order than two of one: 1e-5 of the values' size, over two steps.
        torch.testing.assert_close(latent, x / (1 + sigmas[-1] ** 2) ** 0.5, rtol=1e-4, atol=1e-4)


def test_unknown_chapters_and_figures_are_refused(models):
    with pytest.raises(UserError, match="no chapter 99"):
        draw_chapters([99], print)
    with pytest.raises(UserError, match="has a figure nothing"):
        make_figure("nothing", models)


def test_the_command_checks_and_refuses():
    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, ROOT / "scripts/tour.py", *args], capture_output=True, text=True)

    checked = run("--check")
    assert (checked.returncode, checked.stdout) == (0, "all pages of the tour are up to date\n")
    refused = run("--chapters", "99")
    assert refused.returncode == 2
    assert "there is no chapter 99" in refused.stderr
