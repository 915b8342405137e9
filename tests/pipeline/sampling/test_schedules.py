"""Schedules against the formulas of ComfyUI, the webui and diffusers, written out, and against their definitions."""

import math

import diffusers
import numpy as np
import pytest
import torch

from sd.pipeline.sampling.schedules import (
    ALL_SCHEDULES,
    AYS_LEVELS,
    EXTRA_SCHEDULES,
    beta_cdf,
    beta_quantiles,
    polyexponential_sigmas,
    sigmas_for,
)
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.utils.errors import UserError

TABLE = SD1_SCHEDULE.sigmas.numpy()
STEPS = (1, 2, 3, 4, 7, 10, 11, 20, 30, 50)


def log_interpolated(t):
    """Both programs' own conversion: the logarithms of the table's levels along straight lines."""
    return np.exp(np.interp(t, np.arange(1000), np.log(TABLE)))


def normal(n):
    return [*log_interpolated(np.linspace(999, 0, n)), 0.0]


def simple(n):
    return [TABLE[::-1][int(k * (1000 / n))] for k in range(n)] + [0.0]


def ddim_uniform(n):
    found, t = [0.0], 1
    while t < 1000:
        found.append(TABLE[t])
        t += max(1000 // n, 1)
    return found[::-1]


def beta(n):
    from scipy.stats import beta as distribution

    times = np.rint(distribution.ppf(1 - np.linspace(0, 1, n, endpoint=False), 0.6, 0.6) * 999).astype(int)
    kept = [t for i, t in enumerate(times) if i == 0 or t != times[i - 1]]
    return [*TABLE[kept], 0.0]


def beta_in_sigma(n):
    from scipy.stats import beta as distribution

    return [TABLE[0] + x * (TABLE[-1] - TABLE[0]) for x in distribution.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6)] + [0.0]


def ays(n):
    levels = np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, 11), np.log(AYS_LEVELS))
    return [*np.exp(levels[:-1]), 0.0]


def align_your_steps(n):
    return [*np.exp(np.interp(np.linspace(0, 1, n), np.linspace(0, 1, 11), np.log(AYS_LEVELS))), 0.0]


def kl_optimal(n):
    share = np.arange(n) / max(n - 1, 1)
    return [*np.tan(share * np.arctan(TABLE[0]) + (1 - share) * np.arctan(TABLE[-1])), 0.0]


def polyexponential(n):
    return [*np.exp(np.linspace(math.log(TABLE[-1]), math.log(TABLE[0]), n)), 0.0]


def turbo(n):
    return [TABLE[999 - 100 * k] for k in range(min(n, 10))] + [0.0]


def linear_quadratic(n):
    """Mochi's list as that program computes it: a polynomial in the number of the step, not in what is left of it."""
    if n == 1:
        return [TABLE[-1], 0.0]
    half, threshold = n // 2, 0.025
    shares = [i * threshold / half for i in range(half)]
    difference = half - threshold * n
    a = difference / (half * (n - half) ** 2)
    b = threshold / half - 2 * difference / (n - half) ** 2
    shares += [a * i**2 + b * i + a * half**2 for i in range(half, n)]
    return [TABLE[-1] * (1 - share) for share in [*shares, 1.0]]


WRITTEN_OUT = (
    normal,
    simple,
    ddim_uniform,
    beta,
    beta_in_sigma,
    ays,
    align_your_steps,
    kl_optimal,
    polyexponential,
    turbo,
    linear_quadratic,
)


@pytest.mark.parametrize("formula", WRITTEN_OUT, ids=lambda formula: formula.__name__)
@pytest.mark.parametrize("steps", STEPS)
def test_schedule_equals_the_formula_written_out(formula, steps):
    if formula is turbo and steps > 10:
        with pytest.raises(UserError, match=f"invalid number of steps: {steps} .* at most 10"):
            sigmas_for(steps, "turbo")
        return
    if "beta" in formula.__name__:
        pytest.importorskip("scipy")
    # both sides in float64
    np.testing.assert_allclose(sigmas_for(steps, formula.__name__), formula(steps), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_trailing_equals_diffusers(steps):
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    found = [SD1_SCHEDULE.t_of(sigma) for sigma in sigmas_for(steps, "trailing")[:-1]]
    assert found == pytest.approx(scheduler.timesteps.tolist(), abs=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_normal_equals_diffusers_linspace(steps):
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    first = 1 if steps == 1 else 0  # its list of one step starts at the smallest level
    # it interpolates sigma where k-diffusion interpolates log(sigma): 7.6e-5 apart at most
    np.testing.assert_allclose(
        sigmas_for(steps, "normal")[first:], scheduler.sigmas.numpy()[first:], rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_equals_k_diffusion(rho, k_sampling):
    expected = k_sampling.get_sigmas_polyexponential(12, TABLE[0], TABLE[-1], rho)[:-1]
    # its ramp is float32, and the exponential multiplies its rounding by up to 6
    np.testing.assert_allclose(polyexponential_sigmas(SD1_SCHEDULE, 12, True, rho), expected, rtol=2e-6)


def test_polyexponential_is_exponential_at_rho_1():
    assert sigmas_for(9, "polyexponential") == pytest.approx(sigma_list(9, "exponential"), rel=1e-12)


def test_beta_quantiles_are_scipys():
    distribution = pytest.importorskip("scipy.stats").beta
    shares = np.linspace(0, 1, 501)
    np.testing.assert_allclose(beta_quantiles(shares, 0.6), distribution.ppf(shares, 0.6, 0.6), atol=1e-12)
    np.testing.assert_allclose(beta_cdf(shares, 0.6), distribution.cdf(shares, 0.6, 0.6), atol=1e-13)


def test_beta_of_the_uniform_and_the_arcsine_distribution():
    shares = np.linspace(0, 1, 11)
    np.testing.assert_allclose(beta_quantiles(shares, 1.0), shares, atol=1e-14)
    np.testing.assert_allclose(beta_quantiles(shares, 0.5), np.sin(np.pi * shares / 2) ** 2, atol=1e-12)


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("steps", [*STEPS, 1000])
@pytest.mark.parametrize("name", ALL_SCHEDULES)
def test_levels_fall_to_the_end(name, steps, to_zero):
    if (name == "turbo" and steps > 10) or (name == "lcm" and steps > 50):
        return
    sigmas = sigmas_for(steps, name, to_zero)
    assert sigmas[-1] == (0.0 if to_zero else TABLE[0])
    assert all(isinstance(sigma, float) for sigma in sigmas)
    falls = np.diff(sigmas)
    if steps <= 50:
        assert (falls < 0).all()
    else:
        assert (falls <= 0).all()
    if name not in ("ddim_uniform", "beta"):
        assert len(sigmas) == steps + 1


def test_the_textbook_schedules_are_unchanged():
    for name in ALL_SCHEDULES.keys() - EXTRA_SCHEDULES.keys():
        for to_zero in (True, False):
            assert sigmas_for(8, name, to_zero) == sigma_list(8, name, to_zero)


@pytest.mark.parametrize("steps", [0, 1001, 2.5])
@pytest.mark.parametrize("name", ["normal", "ldm"])
def test_other_numbers_of_steps_are_refused(name, steps):
    with pytest.raises(UserError, match=f"invalid number of steps: {steps} "):
        sigmas_for(steps, name)


def test_an_unknown_schedule_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown schedule 'gamma'; choose from ldm, .*, normal, simple"):
        sigmas_for(5, "gamma")


def test_another_noise_schedule_gives_its_own_levels():
    from sd.schedule import NoiseSchedule

    other = NoiseSchedule(torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64))
    sigmas = sigmas_for(5, "normal", noise_schedule=other)
    assert sigmas[0] == pytest.approx(other.sigmas[-1].item())
    assert sigmas[-2] == pytest.approx(other.sigmas[0].item())
