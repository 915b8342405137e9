"""The further samplers against k-diffusion, diffusers, formulas written out, and a Gaussian whose answer is known."""

import importlib
import math
from functools import partial
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from sd.denoiser import Denoiser, Inpaint
from sd.pipeline.sampler_names import ALL_SAMPLERS, EXTRA_SAMPLERS
from sd.pipeline.sampling.dpm_solver import dpm_adaptive, dpm_fast
from sd.pipeline.sampling.extra_samplers import (
    deis,
    dpm2_a,
    dpmpp_2m_sde_heun,
    dpmpp_2s_a,
    dpmpp_3m_sde,
    integrate_in_log,
    integrate_lagrange,
    ipndm,
    karras_levels,
    lms,
    restart,
    tcd,
)
from sd.schedule import SD1_SCHEDULE, sigma_list

LEVELS = {
    "karras": [*karras_levels(14.6, 0.03, 12), 0.0],
    "two": [14.6, 0.5, 0.0],
    "long": [*karras_levels(14.6, 0.03, 30), 0.0],
}
# Both sides compute in float64 with float64 levels: measured 1e-15 to 1e-9 (LMS's reference integrates numerically). A
# wrong coefficient shows as 1e-3 and more.
TOLERANCE = 1e-7


def last_x(run):
    *_, (x, _) = run
    return x


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


def batched(denoise):
    """Call a denoiser as k-diffusion does: with one sigma for each image, all equal."""
    return lambda x, sigma: denoise(x, sigma.flatten()[0].item())


NAMES_IN_K = {
    dpm2_a: ("sample_dpm_2_ancestral", {}),
    dpmpp_2s_a: ("sample_dpmpp_2s_ancestral", {}),
    dpmpp_2m_sde_heun: ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    dpmpp_3m_sde: ("sample_dpmpp_3m_sde", {}),
    lms: ("sample_lms", None),
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("sampler", NAMES_IN_K, ids=lambda run: run.__name__)
def test_whole_run_equals_k_diffusion(sampler, levels, denoise, tensors, k_sampling):
    sigmas = LEVELS[levels]
    start, *fresh = tensors(1 + len(sigmas))
    start = start * sigmas[0]
    ours = last_x(sampler(denoise, start, sigmas, iter(fresh).__next__))
    name, options = NAMES_IN_K[sampler]
    if options is not None:
        noises = iter(fresh)
        options = {**options, "noise_sampler": lambda *_: next(noises)}
    levels = torch.tensor(sigmas, dtype=torch.float64)
    theirs = getattr(k_sampling, name)(batched(denoise), start, levels, disable=True, **(options or {}))
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("sampler", NAMES_IN_K, ids=lambda run: run.__name__)
def test_one_step_to_zero_is_the_first_estimate(sampler, denoise, tensors):
    (start,) = tensors(1)
    ((x, x0),) = sampler(denoise, start, [14.6, 0.0], None)
    torch.testing.assert_close(x, denoise(start, 14.6), rtol=1e-12, atol=1e-12)
    assert torch.equal(x0, denoise(start, 14.6))


@pytest.fixture
def float64():
    """k-diffusion makes these levels in the default type; in float32 its last noise level is a root of -1e-9."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 20])
def test_dpm_fast_equals_k_diffusion(steps, eta, denoise, tensors, k_sampling, float64):
    start, *fresh = tensors(22)
    first, last = (torch.tensor(level, dtype=torch.float64) for level in (14.6, 0.03))
    sigmas = [first.item(), *[1.0] * (steps - 1), last.item()]
    states = list(dpm_fast(denoise, start * first, sigmas, iter(fresh).__next__, eta=eta))
    assert len(states) == steps
    noises = iter(fresh)
    options = {"disable": True, "eta": eta, "noise_sampler": lambda *_: next(noises)}
    theirs = k_sampling.sample_dpm_fast(batched(denoise), start * first, last, first, steps, **options)
    assert relative_error(states[-1][0], theirs) < TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_adaptive_equals_k_diffusion(eta, denoise, tensors, k_sampling):
    start, *fresh = tensors(200)
    first, last = (torch.tensor(level, dtype=torch.float64) for level in (14.6, 0.03))
    states = list(dpm_adaptive(denoise, start * first, [14.6, 1.0, 0.03], iter(fresh).__next__, eta=eta))
    noises = iter(fresh)
    theirs, info = k_sampling.sample_dpm_adaptive(
        batched(denoise),
        start * first,
        last,
        first,
        disable=True,
        eta=eta,
        noise_sampler=lambda *_: next(noises),
        return_info=True,
    )
    assert len(states) == info["n_accept"] > 10
    # its bounds rtol and atol are float32 tensors, which changes the steps' lengths in their eighth digit
    assert relative_error(states[-1][0], theirs) < 1e-6


def test_dpm_adaptive_meets_a_tighter_bound_with_more_steps(denoise, tensors):
    (start,) = tensors(1)
    loose = list(dpm_adaptive(denoise, start * 14.6, [14.6, 0.03], None))
    tight = list(dpm_adaptive(denoise, start * 14.6, [14.6, 0.03], None, rtol=0.005, atol=0.0008))
    tightest = list(dpm_adaptive(denoise, start * 14.6, [14.6, 0.03], None, rtol=0.0005, atol=0.00008))
    assert len(loose) < len(tight) < len(tightest)
    assert relative_error(tight[-1][0], tightest[-1][0]) < relative_error(loose[-1][0], tightest[-1][0])


@pytest.mark.parametrize("steps", [1, 10, 19, 20, 35, 36, 50])
def test_restart_is_heun_with_the_returns_of_the_webui(steps, denoise, tensors):
    sigmas = [*np.linspace(14.6, 0.03, steps).tolist(), 0.0] if steps > 1 else [14.6, 0.0]
    start, *fresh = tensors(4)
    noises = iter(fresh)
    ours = list(restart(denoise, start * 14.6, sigmas, iter(fresh).__next__))
    assert len(ours) == steps

    def heun_step(x, sigma, to):
        slope = (x - denoise(x, sigma)) / sigma
        if to == 0:
            return x + slope * (to - sigma)
        ahead = x + slope * (to - sigma)
        return x + (slope + (ahead - denoise(ahead, to)) / to) / 2 * (to - sigma)

    def ramp(first, last, count):
        return [
            (first ** (1 / 7) + i / max(count - 1, 1) * (last ** (1 / 7) - first ** (1 / 7))) ** 7 for i in range(count)
        ]

    inner, times = {0: (0, 0), 1: (9, 1), 2: (steps // 4, 2)}[(steps >= 20) + (steps >= 36)]
    levels = [*ramp(14.6, sigmas[-2], steps - inner * times), 0.0]
    low = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.1))
    high = min(range(len(levels)), key=lambda i: abs(levels[i] - 2))
    x = start * 14.6
    for i, (sigma, to) in enumerate(pairwise(levels)):
        x = heun_step(x, sigma, to)
        for _ in range(times if i + 1 == low else 0):
            x = x + next(noises) * math.sqrt(levels[high] ** 2 - levels[low] ** 2)
            for a, b in pairwise(ramp(levels[high], levels[low], inner + 1)):
                x = heun_step(x, a, b)
    assert relative_error(ours[-1][0], x) < TOLERANCE


def test_restart_from_a_low_level_makes_no_return(denoise, tensors):
    sigmas = [*karras_levels(0.08, 0.03, 40), 0.0]
    states = list(restart(denoise, tensors(1)[0], sigmas, None))  # it would fail if it took noise
    assert len(states) == 20


def test_ipndm_is_adams_bashforth_on_eps(denoise, tensors):
    sigmas = LEVELS["karras"]
    x = start = tensors(1)[0] * sigmas[0]
    ours = list(ipndm(denoise, start, sigmas, None))
    eps = []
    for (sigma, to), (ours_x, _) in zip(pairwise(sigmas), ours):
        eps.append((x - denoise(x, sigma)) / sigma)
        if to == 0:
            x = denoise(x, sigma)
        elif len(eps) == 1:
            x = x + (to - sigma) * eps[-1]
        elif len(eps) == 2:
            x = x + (to - sigma) * (3 * eps[-1] - eps[-2]) / 2
        elif len(eps) == 3:
            x = x + (to - sigma) * (23 * eps[-1] - 16 * eps[-2] + 5 * eps[-3]) / 12
        else:
            x = x + (to - sigma) * (55 * eps[-1] - 59 * eps[-2] + 37 * eps[-3] - 9 * eps[-4]) / 24
        assert relative_error(ours_x, x) < TOLERANCE


def test_integrals_of_polynomials_are_exact():
    """The weights integrate x³ over sigma, and log(sigma)² over sigma, as their primitives do."""
    levels = [3.0, 4.5, 7.0, 12.0]
    weights = integrate_lagrange(levels, 3.0, 1.2)
    assert sum(w * level**3 for w, level in zip(weights, levels)) == pytest.approx((1.2**4 - 3.0**4) / 4, rel=1e-12)

    def primitive(sigma):
        return sigma * (math.log(sigma) ** 2 - 2 * math.log(sigma) + 2)

    weights = integrate_in_log(levels[:3], 3.0, 1.2)
    expected = primitive(1.2) - primitive(3.0)
    assert sum(w * math.log(level) ** 2 for w, level in zip(weights, levels)) == pytest.approx(expected, rel=1e-11)
    assert integrate_in_log([3.0], 3.0, 0.0) == [-3.0]


SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Unet(torch.nn.Module):
    """Predicts noise of the right sign and size: nonlinear in x, mixing places, depending on t."""

    def forward(self, x, t, context=None):
        t = t.reshape(-1, 1, 1, 1) / 1000
        return torch.tanh(x * (0.5 + t) + 0.3 * torch.sin(3 * x.roll(1, -1))) * (1 - 0.2 * t)


def run_diffusers(scheduler, noises, monkeypatch, **options):
    x, *fresh = noises
    fresh, unet = iter(fresh), Unet()
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(fresh), raising=False)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t.float()), t, x, **options).prev_sample
    return x


def run_ours(sampler, sigmas, noises, **options):
    start, *fresh = noises
    denoise = Denoiser(Unet(), torch.zeros(len(start), 1, 1))
    x = start * math.sqrt(1 + sigmas[0] ** 2)
    return last_x(sampler(denoise, x, sigmas, iter(fresh).__next__, **options)) / math.sqrt(1 + sigmas[-1] ** 2)


# float32 on both sides, and diffusers' tables are float32: measured 1e-7 to 3e-6.
IN_FLOAT32 = 2e-5


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 20])
def test_deis_equals_diffusers(steps, order, tensors, monkeypatch):
    scheduler = diffusers.DEISMultistepScheduler(**SD15, solver_order=order, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    sigmas = [*scheduler.sigmas[:-1].double().tolist(), sigma_list(1, to_zero=False)[-1]]
    noises = tensors(1, dtype=torch.float32)
    expected = run_diffusers(scheduler, noises, monkeypatch)
    assert relative_error(run_ours(deis, sigmas, noises, order=order), expected) < IN_FLOAT32


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_tcd_equals_diffusers(steps, gamma, tensors, monkeypatch):
    scheduler = diffusers.TCDScheduler(**SD15, clip_sample=False)
    scheduler.set_timesteps(steps)
    sigmas = sigma_list(steps, "lcm", to_zero=False)
    assert [round(SD1_SCHEDULE.t_of(sigma)) for sigma in sigmas[:-1]] == scheduler.timesteps.tolist()
    noises = tensors(1 + steps, dtype=torch.float32)
    expected = run_diffusers(scheduler, noises, monkeypatch, eta=gamma)
    assert relative_error(run_ours(tcd, sigmas, noises, eta=gamma), expected) < IN_FLOAT32


# x0 of data that is normal with this mean and spread is known in closed form; so are the ODE's path and x's law.
MEAN, SPREAD = 0.7, 0.5


def gaussian(x, sigma, mean=MEAN):
    return (SPREAD**2 * x + sigma**2 * mean) / (SPREAD**2 + sigma**2)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (ipndm, 2),
        (partial(deis, order=1), 1),
        (deis, 2),
        (partial(deis, order=3), 2),
        (dpm_fast, 2),
    ],
)
def test_order_of_convergence(sampler, order):
    """Twice the steps give an error 2^order times smaller.

    A single step of order 1, the first of DEIS and the last of DPM fast, limits the whole run to order 2.
    """
    errors = []
    for steps in (90, 180):
        sigmas = np.geomspace(10, 0.1, steps + 1).tolist()
        start = torch.tensor([-8.0, 3.0], dtype=torch.float64)
        x = last_x(sampler(gaussian, start, sigmas, None))
        shrink = math.sqrt((SPREAD**2 + sigmas[-1] ** 2) / (SPREAD**2 + sigmas[0] ** 2))
        errors.append((x - MEAN - (start - MEAN) * shrink).abs().max().item())
    # the next order still has some influence at these lengths: measured 0.99 to 2.1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("sampler", "bias"),
    [(dpm2_a, 2e-3), (dpmpp_2s_a, 2e-3), (dpmpp_2m_sde_heun, 2e-3), (dpmpp_3m_sde, 2e-3), (restart, 2e-3)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_samplers_with_noise_keep_the_law(sampler, bias):
    """On a Gaussian x is linear in the noises: given unit vectors, the sum of its squares is its variance, exactly."""
    sigmas = karras_levels(10, 0.1, 161)
    noise = iter(torch.eye(400, dtype=torch.float64)).__next__
    start = noise() * math.sqrt(SPREAD**2 + sigmas[0] ** 2)
    if sampler is restart:
        sigmas = [*karras_levels(10, 0.01, 160), 0.0]
    x = last_x(sampler(partial(gaussian, mean=0), start, sigmas, noise))
    assert x.square().sum().item() / (SPREAD**2 + sigmas[-1] ** 2) == pytest.approx(1, abs=bias)


@pytest.mark.parametrize("name", EXTRA_SAMPLERS)
def test_all_find_the_mean(name):
    sampler = EXTRA_SAMPLERS[name]
    sigmas = sigma_list(50, to_zero=sampler.to_zero)
    start = torch.zeros(2, dtype=torch.float64)
    x = last_x(sampler.run(gaussian, start, sigmas, lambda: torch.zeros_like(start)))
    # the ODE takes a start 0.7 off the mean in a spread of 13 to one 0.027 off it in a spread of 0.5
    assert x.tolist() == pytest.approx([MEAN, MEAN], abs=0.03)


@pytest.mark.parametrize("name", EXTRA_SAMPLERS)
def test_each_yields_a_state_a_step_and_leaves_its_start_alone(name, denoise, tensors):
    sampler = EXTRA_SAMPLERS[name]
    sigmas = sigma_list(6, to_zero=sampler.to_zero)
    (start,) = tensors(1)
    kept = start.clone()
    states = list(sampler.run(denoise, start, sigmas, lambda: torch.zeros_like(start)))
    assert len(states) == 6 or name == "dpm_adaptive"
    assert all(x.shape == x0.shape == start.shape and x.isfinite().all() for x, x0 in states)
    assert torch.equal(start, kept)
    if sampler.to_zero and name not in ("lms", "deis"):
        assert torch.equal(*states[-1])


@pytest.mark.parametrize("name", [name for name in EXTRA_SAMPLERS if name != "dpm_adaptive"])
def test_an_image_does_not_depend_on_its_batch(name, denoise, tensors):
    sampler = EXTRA_SAMPLERS[name]
    sigmas = sigma_list(8, to_zero=sampler.to_zero)
    noises = tensors(17)
    both = last_x(sampler.run(denoise, noises[0], sigmas, iter(noises[1:]).__next__))
    noises = [noise[1:] for noise in noises]
    alone = last_x(sampler.run(denoise, noises[0], sigmas, iter(noises[1:]).__next__))
    assert torch.equal(both[1:], alone)


@pytest.mark.parametrize("name", EXTRA_SAMPLERS)
def test_inpainting_keeps_the_rest(name, denoise, tensors):
    sampler = EXTRA_SAMPLERS[name]
    sigmas = sigma_list(7, to_zero=sampler.to_zero)
    known, start, *fresh = tensors(200)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    mask[..., 2:5, 3:] = 1
    inpaint = Inpaint(denoise, known, mask)
    latent = inpaint.keep(last_x(sampler.run(inpaint, known + start * sigmas[0], sigmas, iter(fresh).__next__)))
    outside = (mask == 0).expand_as(known)
    assert torch.equal(latent[outside], known[outside])
    assert (latent[~outside] - known[~outside]).std() > 0.1


def test_the_textbook_samplers_come_first_and_no_name_or_label_stands_twice():
    assert list(ALL_SAMPLERS)[12:] == list(EXTRA_SAMPLERS)
    assert len({one.label for one in ALL_SAMPLERS.values()}) == len(ALL_SAMPLERS)
