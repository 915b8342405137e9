"""Samplers: from noise to a latent, in small steps down a list of noise levels.

Each is a generator over (denoise, x, sigmas, noise) that yields (x, x0) after every step, so that the caller can show
progress, preview x0, or stop. No sampler knows a model, a prompt or a mask.

    denoise   callable (x, sigma) -> x0, all tensors (B, 4, h, w); see denoiser.py
    x         (B, 4, h, w) in sigma space. From pure noise it is noise * sqrt(1 + sigmas[0]²), as LDM has it
    sigmas    falling floats from `sigma_list`; each pair of neighbors, `sigma` and `to`, is a step
    noise     callable () -> a new standard normal tensor (B, 4, h, w)

A list that ends at 0 ends in x = x0. One that ends above 0 is finished by the caller: x / sqrt(1 + sigmas[-1]²).

The probability-flow ODE is dx/dsigma = (x - x0) / sigma = eps (Karras et al. 2022, eq. 1 and 3), so every sampler is a
way to integrate eps. Over one step x0 is nearly constant, and if it were exactly so, x = x0 + (to / sigma) * (x - x0)
would be exact: every formula here is that line and a correction. Ancestral and SDE samplers step below the target noise
level and add new noise to return to it. That corrects earlier errors, but the image changes with the number of steps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from sd.schedule import SD1_SCHEDULE, NoiseSchedule

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]  # (x, x0) of each step


def split_variance(sigma: float, to: float, eta: float = 1.0) -> tuple[float, float]:
    """Return the level to step down to and the level of the new noise: (down, up) with down² + up² = to².

    At eta 1 they are DDPM's posterior (Ho et al. 2020, eq. 7) in sigma space; docs/how-it-works.md derives it. eta
    scales `up` (Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 16).
    """
    # Variances of independent noises add up, so the x after both has noise of level `to`.
    up = eta * to * math.sqrt(1 - (to / sigma) ** 2)
    return math.sqrt(to**2 - up**2), up


def ddim(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, eta: float = 0.0) -> Steps:
    """DDIM (Song et al. 2021, eq. 12), which in sigma space is Euler's method; eta 0 … 1 adds noise as DDPM does.

    Euler: x + (down - sigma) * (x - x0) / sigma. That is the line of the module's docstring, written the other way.
    """
    for sigma, to in pairwise(sigmas):
        down, up = split_variance(sigma, to, eta)
        x0 = denoise(x, sigma)
        x = x0 + (down / sigma) * (x - x0)
        if up > 0:
            x = x + up * noise()
        yield x, x0


def ddpm(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, eta: float = 1.0) -> Steps:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2) over fewer levels than in training: DDIM with eta 1."""
    yield from ddim(denoise, x, sigmas, noise, eta)


def euler(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise) -> Steps:
    """Euler's method (Karras et al. 2022, algorithm 1 without its correction): DDIM down to 0."""
    yield from ddim(denoise, x, sigmas, noise, eta=0.0)


def euler_a(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, eta: float = 1.0) -> Steps:
    """k-diffusion's ancestral Euler, which is the same as DDPM here; both names are in use."""
    yield from ddim(denoise, x, sigmas, noise, eta)


# Weights of the latest 1 to 4 slopes, the newest first; each row sums to 1.
ADAMS_BASHFORTH = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise) -> Steps:
    """PLMS (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models", eq. 12), as in LDM.

    It extrapolates eps from the last four steps (Adams-Bashforth of order 4) as though the levels were evenly spaced,
    which is its "pseudo". The first step has no history: it is one of Heun's, with a second evaluation at the next
    level. Orders 2 and 3 follow.
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


def heun(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise) -> Steps:
    """Heun's method (Karras et al. 2022, algorithm 1): the mean of the slopes at both ends of the step.

    It evaluates the model twice a step, but for a last step to 0, where the slope (x - x0) / 0 does not exist.
    """
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


def dpm2(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise) -> Steps:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1) as in k-diffusion: the slope at the geometric middle of the step.

    It evaluates the model twice a step, but for a last step to 0.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to > 0:
            middle = math.sqrt(sigma * to)  # the middle in log(sigma), in which the solution is smooth
            halfway = x + (middle - sigma) * (x - x0) / sigma
            x = x + (to - sigma) * (halfway - denoise(halfway, middle)) / middle
        else:
            x = x0
        yield x, x0


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): x0 is extrapolated along its change over the last step."""
    yield from dpmpp_2m_sde(denoise, x, sigmas, noise, eta=0.0)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, eta: float = 1.0) -> Steps:
    """SDE-DPM-Solver++(2M) of the same paper, in k-diffusion's midpoint form; eta 0 gives the ODE's solver."""
    last_x0 = last_h = None
    for sigma, to in pairwise(sigmas):
        target = x0 = denoise(x, sigma)
        if to > 0:
            h = math.log(sigma / to)  # the step's length in log(sigma)
            if last_x0 is not None:
                target = x0 + (h / last_h) / 2 * (x0 - last_x0)  # x0 at the middle of this step, were it linear
            last_x0, last_h = x0, h
        x = target + (to / sigma) ** (1 + eta) * (x - target)
        up = to * math.sqrt(1 - (to / sigma) ** (2 * eta))
        if up > 0:
            x = x + up * noise()
        yield x, x0


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, eta: float = 1.0) -> Steps:
    """Single-step DPM-Solver++ on the SDE, as in k-diffusion with r = 1/2: x0 is taken at the geometric middle.

    It evaluates the model twice a step, but for a last step to 0. The noise up to the middle is part of the noise of
    the whole step: both belong to one Brownian path, whose time is sigma. k-diffusion reads it from a tree; independent
    samples for the two halves have the same distribution.
    """
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if to > 0:
            middle = math.sqrt(sigma * to)
            down, up = split_variance(sigma, middle, eta)
            first = noise()
            target = denoise(x0 + (down / sigma) * (x - x0) + up * first, middle)
            fraction = (sigma - middle) / (sigma - to)  # of the step's time, hence of its noise's variance
            whole = math.sqrt(fraction) * first + math.sqrt(1 - fraction) * noise()
            down, up = split_variance(sigma, to, eta)
            x = target + (down / sigma) * (x - target) + up * whole
        else:
            x = x0
        yield x, x0


def unipc(denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise) -> Steps:
    """UniPC of order 2 for a model of x0 (Zhao et al. 2023, algorithms 1 and 2), in the variant "bh2" as in diffusers.

    Its predictor is DPM-Solver++(2M). Its corrector repeats the last step, now that x0 at the step's end is known. That
    costs no evaluation, because x0 at the predicted x serves as x0 at the corrected one.
    """
    start = start_x0 = None  # x and x0 at the beginning of the last step
    # Of the last step: its length in log(sigma), the ratio of the step before to it, and the trend of x0 over it.
    h, r = 0.0, 0.0
    trend: Tensor | float = 0
    for sigma, to in pairwise(sigmas):
        x0 = denoise(x, sigma)
        if start is not None:  # correct the last step
            on_trend, on_change = corrector_weights(h, r) if r else (0, 1 / 2)
            target = start_x0 + on_trend * trend + on_change * (x0 - start_x0)
            x = target + math.exp(-h) * (start - target)
        trend = 0
        if to > 0:  # predict this one
            last_h, h = h, math.log(sigma / to)
            r = last_h / h
            trend = (x0 - start_x0) / r if r else 0
        start, start_x0 = x, x0
        target = x0 + trend / 2
        x = target + (to / sigma) * (x - target)
        yield x, x0


def corrector_weights(h: float, r: float) -> tuple[float, float]:
    """Return the weights v of x0's trend and w of its change, for a step of length h after one r times as long.

    They solve the order conditions of Zhao et al. 2023, theorem 3.1, here v + w = b1 and w - r v = b2.
    """
    decay = math.expm1(-h)
    phi2 = -decay / h - 1
    phi3 = -phi2 / h - 1 / 2
    b1, b2 = phi2 / decay, 2 * phi3 / decay
    on_trend = (b1 - b2) / (1 + r)
    return on_trend, b1 - on_trend


def lcm(
    denoise: Denoise, x: Tensor, sigmas: list[float], noise: Noise, schedule: NoiseSchedule = SD1_SCHEDULE
) -> Steps:
    """Consistency sampling in 1 to 8 steps (Luo et al. 2023, "Latent Consistency Models"): jump to x0, add noise again.

    It needs an LCM checkpoint or an LCM LoRA; its times are those of the sampler schedule "lcm". The boundary condition
    (Song et al. 2023, "Consistency Models", eq. 5) mixes the model's x0 with x in VP form, which is all of it at t = 0.
    schedule: the noise schedule that the model was trained with.
    """
    for sigma, to in pairwise(sigmas):
        skip, out = consistency_scales(schedule.t_of(sigma))
        x0 = out * denoise(x, sigma) + skip * x / math.sqrt(1 + sigma**2)
        x = x0 + to * noise() if to > 0 else x0
        yield x, x0


def consistency_scales(t: Any) -> tuple[Any, Any]:
    """Return the shares of x in VP form and of the model's x0, at time t, a number or a tensor: all of x at t = 0."""
    sigma_data, scaled = 0.5, 10 * t  # the deviation of latents and the timestep scaling of the distillation
    return sigma_data**2 / (scaled**2 + sigma_data**2), scaled / (scaled**2 + sigma_data**2) ** 0.5


class Sampler(NamedTuple):
    """A sampler's function and the noise levels that suit it.

    label: the webui's name for it. to_zero: whether its list ends at 0. schedule: the name of its default list.
    """

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
