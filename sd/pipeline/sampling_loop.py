"""The walk from noise to a latent, down a list of noise levels; and which levels those are."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sd.denoiser import Guidance, Inpaint, sigmas_between
from sd.optimization.deepcache import StepCached
from sd.optimization.token_merging import token_merging
from sd.pipeline.init_image import Start
from sd.pipeline.noise import Noise
from sd.pipeline.settings import GenerationSettings
from sd.samplers import SAMPLERS
from sd.schedule import sigma_list
from sd.unet import UNetModel

OnStep = Callable[[int, int, Tensor], None]


def walk(
    unet: UNetModel,
    settings: GenerationSettings,
    sigmas: list[float],
    contexts: tuple[Tensor, Tensor],
    start: Start,
    noise: Noise,
    on_each: Callable[[Tensor], None],
) -> Tensor:
    """From noise, or from `start.known` with noise on it, down one list of noise levels.

    contexts: uncond and cond, each (1, M, D). on_each: called with each step's x0. Returns the latent (B, 4, h, w),
    scaled, B being the number of `noise`'s generators.
    """
    batch = len(noise.generators)
    known = None if start.known is None else start.known.expand(batch, -1, -1, -1)
    if len(sigmas) < 2:
        return known  # strength 0: the picture as it is
    if known is None or (start.mask is not None and settings.strength == 1):
        x = noise() * math.sqrt(1 + sigmas[0] ** 2)
    else:
        x = known + sigmas[0] * noise()

    uncond, cond = (context.expand(batch, -1, -1) for context in contexts)
    scale = 1 if torch.equal(uncond, cond) else settings.guidance_scale  # equal: nothing to be guided away from
    extra = None if start.extra is None else start.extra.expand(batch, -1, -1, -1)
    cached = unet if settings.step_cache == 1 else StepCached(unet, settings.step_cache)
    interval = sigmas_between(settings.guidance_start, settings.guidance_end)
    denoise = Guidance(cached, cond, uncond, scale, extra, interval, settings.guidance_rescale)
    if start.mask is not None:
        denoise = Inpaint(denoise, known, start.mask)
    with token_merging(unet, settings.token_merging):
        for state in SAMPLERS[settings.sampler].run(denoise, x, sigmas, noise):
            x, x0 = state
            on_each(x0)
    latent = x / math.sqrt(1 + sigmas[-1] ** 2)
    return latent if start.mask is None else denoise.keep(latent)


def sigma_lists(settings: GenerationSettings, from_image: bool) -> list[list[float]]:
    """The noise levels of each walk: from pure noise or from a picture, then, with `hires_scale`, the second."""
    to_zero = SAMPLERS[settings.sampler].to_zero
    sigmas = sigma_list(settings.steps, settings.schedule, to_zero)
    walks = [last_part(sigmas, settings.strength) if from_image else sigmas]
    if settings.hires_scale > 1:
        again = sigma_list(settings.hires_steps or settings.steps, settings.schedule, to_zero)
        walks.append(last_part(again, settings.hires_strength))
    return walks


def last_part(sigmas: list[float], strength: float) -> list[float]:
    """The part of a list that a picture taken back to noise by `strength` still has to walk: int(strength * steps)."""
    steps = len(sigmas) - 1
    return sigmas[steps - min(int(steps * strength), steps) :]


class Progress:
    """Counts the steps of a whole call and tells `on_step`."""

    def __init__(self, on_step: OnStep | None, total: int):
        self.on_step, self.total, self.done = on_step, total, 0

    def __call__(self, x0: Tensor) -> None:
        self.done += 1
        if self.on_step is not None:
            self.on_step(self.done, self.total, x0)
