"""Samplers: from noise to a latent, in small steps down a list of noise levels.

Each is a generator over (denoise, x, sigmas, noise) that yields (x, x0) after every step: the caller shows progress,
previews x0, or stops. None knows a model, a prompt or a mask.

    denoise   callable (x, sigma) -> x0, see denoiser.py
    x         (B, 4, h, w) in sigma space. From pure noise it is noise * sqrt(1 + sigmas[0]²), as LDM has it
    sigmas    falling floats from `sigma_list`; each pair of neighbours is a step
    noise     callable () -> a fresh standard normal tensor shaped like x

A list that ends at 0 ends in x = x0. One that ends above is finished by the caller: x / sqrt(1 + sigmas[-1]²).

The probability-flow ODE is dx/dsigma = (x - x0) / sigma = eps (Karras et al. 2022, eq. 1 and 3), so all of these are
ways to step along eps, some with fresh noise for what they took away too much. Over one step x0 is nearly constant, and
if it were quite so, x = x0 + (to / sigma) * (x - x0) would be exact: every formula here is that line and a correction.
"""

import math
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from sd.schedule import SD1_SCHEDULE


def split_variance(sigma, to, eta=1.0):
    """Go below `to` and come back up with fresh noise: (down, up) with down² + up² = to².

    At eta 1 it is DDPM's posterior variance (Ho et al. 2020, eq. 7) in sigma space; eta scales `up` (Song et al. 2021,
    "Denoising Diffusion Implicit Models", eq. 16).
    """
    up = eta * to * math.sqrt(1 - (to / sigma) ** 2)
    return math.sqrt(to**2 - up**2), up


def ddim(denoise, x, sigmas, noise, eta=0.0):
    """DDIM (Song et al. 2021, eq. 12), which in sigma space is Euler's method; eta 0 … 1 adds noise as DDPM does."""
    for sigma, to in pairwise(sigmas):
        down, up = split_variance(sigma, to, eta)
        x0 = denoise(x, sigma)
        x = x0 + (down / sigma) * (x - x0)
        if up > 0:
            x = x + up * noise()
        yield x, x0


def ddpm(denoise, x, sigmas, noise):
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2) over a thinned list: DDIM with eta 1."""
    yield from ddim(denoise, x, sigmas, noise, eta=1.0)


def euler(denoise, x, sigmas, noise):
    """Euler's method (Karras et al. 2022, algorithm 1 without its correction): DDIM down to 0."""
    yield from ddim(denoise, x, sigmas, noise, eta=0.0)


def euler_a(denoise, x, sigmas, noise):
    """k-diffusion's ancestral Euler: the same as DDPM here; the two names are what people look for."""
    yield from ddim(denoise, x, sigmas, noise, eta=1.0)


ADAMS_BASHFORTH = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(denoise, x, sigmas, noise):
    """PLMS (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models", eq. 12), as in LDM.

    Adams-Bashforth of order 4 on eps, as though the levels were evenly spaced: that is its "pseudo". Warms up with one
    improved Euler step (its second evaluation looks ahead to the next level), then orders 2 and 3.
    """
    slopes = deque(maxlen=4)  # newest first
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slopes.appendleft((x - x0) / sigma)
        if len(slopes) == 1 and len(sigmas) > 2:
            ahead = x + (to - sigma) * slopes[0]
            slope = (slopes[0] + (ahead - denoise(ahead, to)) / to) / 2
        else:
            weights = ADAMS_BASHFORTH[len(slopes) - 1]
            slope = sum(weight * eps for weight, eps in zip(weights, slopes))
        x = x + (to - sigma) * slope
        yield x, x0


def heun(denoise, x, sigmas, noise):
    """Heun's method (Karras et al. 2022, algorithm 1): the mean of the slopes at both ends. Two evaluations a step."""
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        if to > 0:
            ahead = x + (to - sigma) * slope
            slope = (slope + (ahead - denoise(ahead, to)) / to) / 2
            x = x + (to - sigma) * slope
        else:
            x = x0
        yield x, x0


def dpm2(denoise, x, sigmas, noise):
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1) as k-diffusion has it: the slope at the geometric middle.

    Two evaluations a step.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to > 0:
            middle = math.sqrt(sigma * to)
            halfway = x + (middle - sigma) * (x - x0) / sigma
            x = x + (to - sigma) * (halfway - denoise(halfway, middle)) / middle
        else:
            x = x0
        yield x, x0


def dpmpp_2m(denoise, x, sigmas, noise):
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): as x0 changed over the last step, so it goes on to change."""
    yield from dpmpp_2m_sde(denoise, x, sigmas, noise, eta=0.0)


def dpmpp_2m_sde(denoise, x, sigmas, noise, eta=1.0):
    """SDE-DPM-Solver++(2M) of the same paper, in k-diffusion's midpoint form; eta 0 leaves the ODE."""
    last_x0 = last_h = None
    for sigma, to in pairwise(sigmas):
        target = x0 = denoise(x, sigma)
        if to > 0:
            h = math.log(sigma / to)
            if last_x0 is not None:
                target = x0 + (h / last_h) / 2 * (x0 - last_x0)
            last_x0, last_h = x0, h
        x = target + (to / sigma) ** (1 + eta) * (x - target)
        up = to * math.sqrt(1 - (to / sigma) ** (2 * eta))
        if up > 0:
            x = x + up * noise()
        yield x, x0


def dpmpp_sde(denoise, x, sigmas, noise):
    """DPM-Solver++ of one step on the SDE, as in k-diffusion with r = 1/2: x0 is taken at the geometric middle.

    Two evaluations a step. The noise up to the middle is part of the noise of the whole step: one Brownian path, whose
    time is sigma. k-diffusion looks it up in a tree; independent draws for the two halves have the same law.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to > 0:
            middle = math.sqrt(sigma * to)
            down, up = split_variance(sigma, middle)
            first = noise()
            target = denoise(x0 + (down / sigma) * (x - x0) + up * first, middle)
            share = (sigma - middle) / (sigma - to)
            whole = math.sqrt(share) * first + math.sqrt(1 - share) * noise()
            down, up = split_variance(sigma, to)
            x = target + (down / sigma) * (x - target) + up * whole
        else:
            x = x0
        yield x, x0


def unipc(denoise, x, sigmas, noise):
    """UniPC of order 2 for a model of x0 (Zhao et al. 2023, algorithms 1 and 2), "bh2" as diffusers has it.

    Its predictor is DPM-Solver++(2M). Its corrector takes the last step again, now that x0 at the step's end is known;
    that costs no evaluation, for x0 at the predicted x serves as x0 at the corrected one.
    """
    start = start_x0 = None  # x and x0 where the last step began
    h = r = trend = 0  # its length in log(sigma), how many times as long the one before it was, and x0's trend over it
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if start is not None:
            on_trend, on_change = corrector_weights(h, r) if r else (0, 1 / 2)
            target = start_x0 + on_trend * trend + on_change * (x0 - start_x0)
            x = target + math.exp(-h) * (start - target)
        trend = 0
        if to > 0:
            last_h, h = h, math.log(sigma / to)
            r = last_h / h
            trend = (x0 - start_x0) / r if r else 0
        start, start_x0 = x, x0
        target = x0 + trend / 2
        x = target + (to / sigma) * (x - target)
        yield x, x0


def corrector_weights(h, r):
    """Weights v and w of x0's trend and of its change over a step of length h, the step before being r times as long.

    They solve the order conditions of Zhao et al. 2023, theorem 3.1, here v + w = b1 and w - r v = b2.
    """
    decay = math.expm1(-h)
    phi2 = -decay / h - 1
    phi3 = -phi2 / h - 1 / 2
    b1, b2 = phi2 / decay, 2 * phi3 / decay
    on_trend = (b1 - b2) / (1 + r)
    return on_trend, b1 - on_trend


def lcm(denoise, x, sigmas, noise, schedule=SD1_SCHEDULE):
    """Consistency sampling in 1 to 8 steps (Luo et al. 2023, "Latent Consistency Models"): jump to x0, add noise again.

    It needs an LCM checkpoint or an LCM LoRA; its times are those of the schedule "lcm". The boundary condition (Song
    et al. 2023, "Consistency Models", eq. 5) mixes the model's x0 with x in VP form, which is all of it at t = 0.
    """
    data = 0.5  # sigma_data, the spread of latents that the distillation assumed
    for sigma, to in pairwise(sigmas):
        t = 10 * schedule.t_of(sigma)  # timestep_scaling
        skip, out = data**2 / (t**2 + data**2), t / math.sqrt(t**2 + data**2)
        x0 = out * denoise(x, sigma) + skip * x / math.sqrt(1 + sigma**2)
        x = x0 + to * noise() if to > 0 else x0
        yield x, x0


class Sampler(NamedTuple):
    """label: the webui's name for it. to_zero: where its list ends. schedule: which list it takes unless told."""

    run: Callable
    label: str
    to_zero: bool = True
    schedule: str = "ldm"


SAMPLERS = {
    "ddpm": Sampler(ddpm, "DDPM"),
    "ddim": Sampler(ddim, "DDIM", to_zero=False),
    "plms": Sampler(plms, "PLMS", to_zero=False),
    "euler": Sampler(euler, "Euler"),
    "euler_a": Sampler(euler_a, "Euler a"),
    "heun": Sampler(heun, "Heun"),
    "dpm2": Sampler(dpm2, "DPM2"),
    "dpmpp_2m": Sampler(dpmpp_2m, "DPM++ 2M"),
    "dpmpp_sde": Sampler(dpmpp_sde, "DPM++ SDE"),
    "dpmpp_2m_sde": Sampler(dpmpp_2m_sde, "DPM++ 2M SDE"),
    "unipc": Sampler(unipc, "UniPC"),
    "lcm": Sampler(lcm, "LCM", schedule="lcm"),
}
