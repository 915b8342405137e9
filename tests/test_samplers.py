"""Samplers against diffusers' schedulers, k-diffusion's formula, and a Gaussian whose answer is known."""

import functools
import importlib
import itertools
import math
import re

import diffusers
import numpy as np
import pytest
import torch

from sd.denoiser import Denoiser, Inpaint
from sd.pipeline.sampler_names import find_sampler
from sd.samplers import SAMPLERS, split_variance
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.utils.errors import UserError

STEPS = (1, 2, 3, 5, 20, 50)
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

# Both sides compute in float32, and diffusers' tables are float32 where ours are float64: measured, that leaves 5e-8 to
# 1.3e-6 over the whole runs below. A wrong coefficient shows as 1e-3 and more.
TOLERANCE = 1e-5


class Unet(torch.nn.Module):
    """Predicts noise of the right sign and size: nonlinear in x, mixing places, depending on t. Counts its calls."""

    def __init__(self, timeless=False):
        super().__init__()
        self.timeless, self.calls = timeless, 0

    def forward(self, x, t, context=None):
        self.calls += 1
        t = t.reshape(-1, 1, 1, 1) / 1000 * (not self.timeless)
        return torch.tanh(x * (0.5 + t) + 0.3 * torch.sin(3 * x.roll(1, -1))) * (1 - 0.2 * t)


def draws(count, shape=(2, 4, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def sample(name, steps, noises, schedule=None, unet=None, **options):
    """Our whole run from noises[0], fresh noise from the rest, finished in VP form."""
    sampler = SAMPLERS[name]
    sigmas = sigma_list(steps, schedule or sampler.schedule, sampler.to_zero)
    start, *fresh = noises
    denoise = Denoiser(unet or Unet(), torch.zeros(len(start), 1, 1))
    x = start * math.sqrt(1 + sigmas[0] ** 2)
    *_, (x, _) = sampler.run(denoise, x, sigmas, iter(fresh).__next__, **options)
    return x / math.sqrt(1 + sigmas[-1] ** 2)


def peer(scheduler, noises, monkeypatch, unet=None, **options):
    """diffusers' whole run from the same noises, its times being set already."""
    start, *fresh = noises
    fresh, unet = iter(fresh), unet or Unet()
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(fresh), raising=False)
    in_vp = scheduler.init_noise_sigma == 1
    x = start if in_vp else start * (1 + scheduler.sigmas[0] ** 2).sqrt()
    for t in scheduler.timesteps:
        eps = unet(scheduler.scale_model_input(x, t), t.float())
        x = scheduler.step(eps, t, x, **options).prev_sample
    return x


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


LEADING = {"timestep_spacing": "leading"}
PEERS = {
    "ddpm": diffusers.DDPMScheduler(**SD15, clip_sample=False),
    "ddim": diffusers.DDIMScheduler(**SD15, clip_sample=False, set_alpha_to_one=False),
    "plms": diffusers.PNDMScheduler(**SD15, skip_prk_steps=True),
    "euler": diffusers.EulerDiscreteScheduler(**SD15, **LEADING),
    "euler_a": diffusers.EulerAncestralDiscreteScheduler(**SD15, **LEADING),
    "heun": diffusers.HeunDiscreteScheduler(**SD15, **LEADING),
    "dpm2": diffusers.KDPM2DiscreteScheduler(**SD15, **LEADING),
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler(**SD15),
    "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler(**SD15, algorithm_type="sde-dpmsolver++"),
    "unipc": diffusers.UniPCMultistepScheduler(**SD15),
    "lcm": diffusers.LCMScheduler(**SD15),
}


def set_times(scheduler, steps):
    """Give a scheduler LDM's times. The two that divide 1000 by steps + 1 must be told."""
    times = [round(SD1_SCHEDULE.t_of(sigma)) for sigma in sigma_list(steps)[:-1]]
    if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        scheduler.set_timesteps(timesteps=times)
    else:
        scheduler.set_timesteps(steps)
    if isinstance(scheduler, diffusers.UniPCMultistepScheduler):
        scheduler.timesteps = torch.tensor(times)
        scheduler.sigmas = torch.tensor(sigma_list(steps)).float()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", PEERS)
def test_whole_run_equals_diffusers(name, steps, monkeypatch):
    noises = draws(steps + 1)
    set_times(PEERS[name], steps)
    expected = peer(PEERS[name], noises, monkeypatch)
    assert relative_error(sample(name, steps, noises), expected) < TOLERANCE


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_takes_eta_as_diffusers_does(eta, monkeypatch):
    noises = draws(21)
    set_times(PEERS["ddim"], 20)
    expected = peer(PEERS["ddim"], noises, monkeypatch, eta=eta)
    assert relative_error(sample("ddim", 20, noises, eta=eta), expected) < TOLERANCE


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm2", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_other_schedules_equal_diffusers(name, schedule, steps, monkeypatch):
    # In linspace, diffusers' Euler and its like take the table's ends for the list's, as the webui does (their list of
    # one step is an accident: it starts at the smallest level).
    options = {f"use_{schedule}_sigmas": True, "timestep_spacing": "linspace"}
    scheduler = type(PEERS[name]).from_config(PEERS[name].config, **options)
    scheduler.set_timesteps(steps)
    noises = draws(steps + 1)
    # diffusers rounds t to whole numbers between the table's levels and we do not, so this U-Net does not look at t.
    expected = peer(scheduler, noises, monkeypatch, unet=Unet(timeless=True))
    # two steps go from 14.6 to 0.03 in one, where float32 leaves heun and dpm2 1e-5; the rest is at 2e-6
    assert relative_error(sample(name, steps, noises, schedule, Unet(timeless=True)), expected) < 5 * TOLERANCE


@pytest.mark.parametrize(("t", "before"), [(999, 998), (981, 961), (500, 1), (1, 0)])
def test_split_variance_is_ddpms_equation_7_in_sigma_space(t, before):
    """Ho et al. 2020, eq. 7: the mean's weights of x0 and x_t, and the variance. docs/how-it-works.md derives it."""
    a = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    alpha = a[t] / a[before]
    beta = 1 - alpha
    of_x0, of_x = math.sqrt(a[before]) * beta / (1 - a[t]), math.sqrt(alpha) * (1 - a[before]) / (1 - a[t])
    variance = (1 - a[before]) / (1 - a[t]) * beta

    sigma, to = (math.sqrt((1 - a[i]) / a[i]) for i in (t, before))
    down, up = split_variance(sigma, to)
    to_vp, from_vp = 1 / math.sqrt(1 + to**2), math.sqrt(1 + sigma**2)
    # float64 holds 16 digits; 1 - a and 1 - alpha lose up to 4 of them each
    assert to_vp * (1 - down / sigma) == pytest.approx(of_x0, rel=1e-8)
    assert to_vp * (down / sigma) * from_vp == pytest.approx(of_x, rel=1e-8)
    assert (to_vp * up) ** 2 == pytest.approx(variance, rel=1e-8)


def test_dpmpp_sde_is_k_diffusions_formula_on_one_brownian_path():
    sigmas = sigma_list(10, "karras")
    increments = draws(19)
    denoise = Denoiser(Unet(), torch.zeros(2, 1, 1))
    start = increments[-1] * sigmas[0]
    *_, (ours, _) = SAMPLERS["dpmpp_sde"].run(denoise, start, sigmas, iter(increments).__next__)

    x, drawn = start, iter(increments)
    for sigma, to in itertools.pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to == 0:
            x = x + (x - x0) / sigma * (to - sigma)
            continue
        t, t_to = -math.log(sigma), -math.log(to)
        middle = math.exp(-(t + (t_to - t) / 2))
        # the path's own values, W(sigma) = 0, and its normalised differences from there
        path_middle = next(drawn) * math.sqrt(sigma - middle)
        path_to = path_middle + next(drawn) * math.sqrt(middle - to)
        up = math.sqrt(middle**2 * (sigma**2 - middle**2) / sigma**2)
        down = math.sqrt(middle**2 - up**2)
        x2 = (down / sigma) * x - math.expm1(t + math.log(down)) * x0 + up * path_middle / math.sqrt(sigma - middle)
        x0 = denoise(x2, middle)
        up = math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2)
        down = math.sqrt(to**2 - up**2)
        x = (down / sigma) * x - math.expm1(t + math.log(down)) * x0 + up * path_to / math.sqrt(sigma - to)
    assert relative_error(ours, x) < TOLERANCE


# x0 of data that is normal with this mean and spread is known in closed form; so are the ODE's path and x's law.
MEAN, SPREAD = 0.7, 0.5


def gaussian(x, sigma, mean=MEAN):
    return (SPREAD**2 * x + sigma**2 * mean) / (SPREAD**2 + sigma**2)


@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("euler", 1), ("plms", 2), ("heun", 2), ("dpm2", 2), ("dpmpp_2m", 2), ("unipc", 3)],
)
def test_order_of_convergence(name, order):
    """Twice the steps, an error 2^order times smaller. PLMS takes its levels for evenly spaced, which costs it two."""
    errors = []
    for steps in (80, 160):
        sigmas = np.geomspace(10, 0.1, steps + 1).tolist()
        start = torch.tensor([-8.0, 3.0], dtype=torch.float64)
        *_, (x, _) = SAMPLERS[name].run(gaussian, start, sigmas, None)
        shrink = math.sqrt((SPREAD**2 + sigmas[-1] ** 2) / (SPREAD**2 + sigmas[0] ** 2))
        errors.append((x - MEAN - (start - MEAN) * shrink).abs().max().item())
    # measured 0.99 … 3.00: at these lengths the next order still has up to 5 % of a say
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("name", "order", "bias"),
    [("ddpm", 1, 0.03), ("euler_a", 1, 0.03), ("dpmpp_sde", 2, 2e-4), ("dpmpp_2m_sde", 2, 2e-4)],
)
def test_sde_samplers_keep_the_law(name, order, bias):
    """On a Gaussian x is linear in the noises: given unit vectors for them, it comes out as its coefficients in each,
    and the variance of x is the sum of their squares, with no chance in it."""
    errors = []
    for steps in (80, 160):
        sigmas = np.geomspace(10, 0.1, steps + 1).tolist()
        noise = iter(torch.eye(1 + 2 * steps, dtype=torch.float64)).__next__
        start = noise() * math.sqrt(SPREAD**2 + sigmas[0] ** 2)
        *_, (x, _) = SAMPLERS[name].run(functools.partial(gaussian, mean=0), start, sigmas, noise)
        errors.append(abs(x.square().sum().item() / (SPREAD**2 + sigmas[-1] ** 2) - 1))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)  # measured 0.97, 0.97, 2.09, 1.98
    assert errors[1] < bias  # measured 0.027, 0.027, 1.1e-4, 1.9e-4


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_all_samplers_find_the_mean(name):
    sigmas = sigma_list(50, to_zero=SAMPLERS[name].to_zero)
    start = torch.zeros(2, dtype=torch.float64)
    *_, (x, _) = SAMPLERS[name].run(gaussian, start, sigmas, lambda: torch.zeros_like(start))
    # the ODE takes a start 0.7 off the mean in a spread of 13 to one 0.027 off it in a spread of 0.5; an SDE forgets it
    assert x.tolist() == pytest.approx([MEAN, MEAN], abs=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_is_yielded_as_it_is_made(name):
    sampler, unet = SAMPLERS[name], Unet()
    sigmas = sigma_list(6, sampler.schedule, sampler.to_zero)
    start = draws(1)[0]
    kept = start.clone()
    run = sampler.run(Denoiser(unet, torch.zeros(2, 1, 1)), start, sigmas, lambda: torch.zeros_like(start))
    assert unet.calls == 0
    x, x0 = next(run)
    twice = name in ("heun", "dpm2", "dpmpp_sde")
    assert unet.calls == (2 if twice or name == "plms" else 1)
    assert x.shape == x0.shape == start.shape
    steps = [(x, x0), *run]
    assert len(steps) == 6
    assert unet.calls == {True: 11, False: 6 + (name == "plms")}[twice]
    assert torch.equal(start, kept)
    if sampler.to_zero:
        x, x0 = steps[-1]
        assert torch.equal(x, x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name):
    together = sample(name, 8, draws(17))
    alone = sample(name, 8, [noise[1:] for noise in draws(17)])
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_inpainting_leaves_the_rest_as_it_was(name):
    sampler = SAMPLERS[name]
    sigmas = sigma_list(7, sampler.schedule, sampler.to_zero)
    known, start, *fresh = draws(20)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:5, 3:] = 1
    mask[..., 5, 3:] = 0.25
    denoise = Inpaint(Denoiser(Unet(), torch.zeros(2, 1, 1)), known, mask)
    x = known + start * sigmas[0]
    outside = (mask == 0).expand_as(x)
    steps = list(sampler.run(denoise, x, sigmas, iter(fresh).__next__))
    for sigma, (between, _) in zip(sigmas[1:-1], steps):
        # on its way the outside is the known latent under noise of unit size: 352 numbers, five standard errors
        added = ((between - known) / sigma)[outside]
        assert added.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * added.numel()))
    latent = denoise.keep(steps[-1][0] / math.sqrt(1 + sigmas[-1] ** 2))
    assert torch.equal(latent[outside], known[outside])
    assert (latent[~outside] - known[~outside]).std() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["ldm", "karras", "exponential", "sgm_uniform"])
def test_every_sampler_takes_every_schedule(name, schedule):
    for steps in (1, 2, 7):
        assert sample(name, steps, draws(15), schedule).isfinite().all()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "plms", "dpmpp_2m", "unipc"])
def test_a_thousand_steps(name):
    assert sample(name, 1000, draws(1001, (1, 1, 2, 2))).isfinite().all()


@pytest.mark.parametrize(
    ("spelling", "found"),
    [
        ("ddpm", ("ddpm", "ldm")),
        ("LCM", ("lcm", "lcm")),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", ("euler_a", "ldm")),
        ("k_euler_a", ("euler_a", "ldm")),
        ("k_dpm_2", ("dpm2", "ldm")),
        ("KDPM2DiscreteScheduler", ("dpm2", "ldm")),
        ("EulerAncestralDiscreteScheduler", ("euler_a", "ldm")),
        ("DPMSolverMultistepScheduler", ("dpmpp_2m", "ldm")),
        ("DPMSolverSDEScheduler", ("dpmpp_sde", "ldm")),
        ("PNDMScheduler", ("plms", "ldm")),
        ("uni_pc", ("unipc", "ldm")),
        ("heun_sgm_uniform", ("heun", "sgm_uniform")),
    ],
)
def test_spellings(spelling, found):
    assert find_sampler(spelling) == found


def test_every_name_and_label_is_found():
    for name, sampler in SAMPLERS.items():
        assert find_sampler(name) == find_sampler(sampler.label) == (name, sampler.schedule)


def test_a_schedule_given_apart_goes_first():
    assert find_sampler("DPM++ 2M Karras", "SGM Uniform") == ("dpmpp_2m", "sgm_uniform")
    assert find_sampler("DPM++ 2M", "Automatic") == ("dpmpp_2m", "ldm")


@pytest.mark.parametrize("name", ["", "karras", "DPM++ 3M", "euler b", "ddpm karras karras"])
def test_unknown_samplers_are_named_with_the_known_ones(name):
    with pytest.raises(UserError, match=f"unknown sampler '{re.escape(name)}'; choose from ddpm, ddim"):
        find_sampler(name)


def test_unknown_schedules_are_named_with_the_known_ones():
    with pytest.raises(UserError, match="unknown schedule 'gamma'; choose from ldm, karras"):
        find_sampler("euler", "gamma")
