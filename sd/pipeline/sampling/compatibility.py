"""Where other programs generate otherwise than this one with the same settings: the webui 1.10 and ComfyUI.

                     here                        webui                            ComfyUI
start                noise * sqrt(1 + sigma²)    noise * sigma, but for DDIM,     noise * sqrt(1 + sigma²)
                                                 PLMS and UniPC
SDE samplers' noise  independent in each step    a Brownian path                  a Brownian path
ancestral noise      the starting noise's        the starting noise's             a generator of the same seed, as a
                     generator                   generator                        GPU draws
steps from an image  int(strength * steps)       one more, but for DDIM, PLMS     exactly `steps`, of a list of
                                                 and UniPC                        steps / strength
second pass          as from an image; goes on   exactly `steps`, as ComfyUI;     as from an image
                     with the noise              begins again with the seed
last level but one   visited                     left out by DPM2, DPM2 a and     left out by DPM2, DPM2 a and UniPC
                                                 DPM++ 3M SDE
prompts of two       padded to one length        each at its own                  each at its own
lengths
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sd.pipeline.noise import SeededNoise, source_of
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.sampling.brownian import BrownianNoise
from sd.pipeline.sampling.schedules import sigmas_for
from sd.pipeline.settings import GenerationSettings
from sd.schedule import NoiseSchedule

VP_SAMPLERS = ("ddim", "ddim_cfgpp", "plms", "unipc")  # the webui runs these in VP form
DISCARDING = {"webui": ("dpm2", "dpm2_a", "dpmpp_3m_sde"), "comfyui": ("dpm2", "dpm2_a", "unipc")}
MOST_STRENGTH = 0.999  # the webui's


def start_scale(settings: GenerationSettings, sigma: float) -> float:
    """Return the factor of the noise from which an image from text starts, at the first level, sigma."""
    in_sigma_space = settings.compat == "webui" and settings.sampler not in VP_SAMPLERS
    return sigma if in_sigma_space else math.sqrt(1 + sigma**2)


def whole_sigmas(settings: GenerationSettings, steps: int, noise_schedule: NoiseSchedule) -> list[float]:
    """Return the levels of a run of `steps` steps from pure noise."""
    to_zero = ALL_SAMPLERS[settings.sampler].to_zero
    discards = settings.sampler in DISCARDING.get(settings.compat, ())
    sigmas = sigmas_for(steps + discards, settings.schedule, to_zero, noise_schedule)
    return [*sigmas[:-2], sigmas[-1]] if discards else sigmas


def sigmas_from_image(
    settings: GenerationSettings, steps: int, strength: float, noise_schedule: NoiseSchedule, second_pass: bool
) -> list[float]:
    """Return the levels of a run that starts from an image; one level, and so no step, where nothing may change."""
    compat = settings.compat
    if compat == "comfyui" or (compat == "webui" and second_pass):
        most = MOST_STRENGTH if compat == "webui" else 1.0
        whole = min(int(steps / min(strength, most)), len(noise_schedule) - 1) if strength > 0 else 0
        return whole_sigmas(settings, whole, noise_schedule)[-steps - 1 :] if whole >= steps else [0.0]
    sigmas = whole_sigmas(settings, steps, noise_schedule)
    if compat == "webui" and settings.sampler not in VP_SAMPLERS:
        return sigmas[-int(min(strength, MOST_STRENGTH) * steps) - 2 :]
    return truncate_sigmas(sigmas, strength)


def truncate_sigmas(sigmas: list[float], strength: float) -> list[float]:
    """Returns the last int(strength * steps) steps of a list: those of an image that is noised by `strength`."""
    steps = len(sigmas) - 1
    return sigmas[steps - min(int(steps * strength), steps) :]


def sampler_noise(
    settings: GenerationSettings, noise: SeededNoise, sigmas: list[float], noise_schedule: NoiseSchedule
) -> Callable[[], Tensor]:
    """Return the noise that the sampler takes in its steps. sigmas: the run's levels.

    The webui's paths begin at the level of pure noise, wherever the run begins.
    """
    if settings.compat == "none" or settings.sampler not in BrownianNoise.SAMPLERS:
        return noise
    largest = whole_sigmas(settings, settings.steps, noise_schedule)[0]
    ends = [largest, *sigmas[1:]] if settings.compat == "webui" else sigmas
    return BrownianNoise(settings.sampler, sigmas, noise.seeds, noise.shape, noise.device, randn_of(settings), ends)


def randn_of(settings: GenerationSettings) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Return (seed, shape) -> standard normal noise of the settings' source."""

    def randn(seed: int, shape: tuple[int, ...]) -> Tensor:
        return source_of(seed, settings.rng)(torch.Size(shape))

    return randn
