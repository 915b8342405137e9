"""The sampling loop: from noise to a latent along a list of sigmas, and the choice of those sigmas."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sd.control.controlled_unet import ControlledUNet
from sd.denoiser import Guidance, Inpaint, sigmas_between
from sd.optimization.deepcache import StepCached
from sd.optimization.token_merging import token_merging
from sd.pipeline.init_image import InitImage
from sd.pipeline.inputs.soft_inpaint import SoftInpaint
from sd.pipeline.noise import SeededNoise
from sd.pipeline.sampler_names import ALL_SAMPLERS, CFG_PLUS_PLUS
from sd.pipeline.sampling.cfgpp import UncondGuidance, UncondInpaint
from sd.pipeline.sampling.schedules import sigmas_for
from sd.pipeline.sampling.tiled_diffusion import TiledUNet
from sd.pipeline.settings import GenerationSettings
from sd.unet import UNetModel

OnStep = Callable[[int, int, Tensor], object]


def sample(
    unet: UNetModel,
    settings: GenerationSettings,
    sigmas: list[float],
    contexts: tuple[Tensor, Tensor],
    init: InitImage,
    noise: SeededNoise,
    on_each: Callable[[Tensor], None],
) -> Tensor:
    """Denoises pure noise, or `init.init_latent` with noise added, along one list of sigmas.

    contexts: uncond and cond, each (1, M, D). on_each: called with each step's x0. Returns the latent (B, 4, h, w),
    scaled; B is the number of `noise`'s generators.
    """
    batch = len(noise.generators)
    init_latent = None if init.init_latent is None else init.init_latent.expand(batch, -1, -1, -1)
    if len(sigmas) < 2 and init_latent is not None:
        return init_latent  # strength 0: the image as it is
    if init_latent is None or (init.latent_mask is not None and settings.strength == 1):
        x = noise() * math.sqrt(1 + sigmas[0] ** 2)
    else:
        x = add_noise(init_latent, init, settings, sigmas[0], noise())

    denoise = guided_denoiser(unet, settings, contexts, init, batch)
    inpaint = inpainting(denoise, settings, init, init_latent, sigmas[0])
    with token_merging(unet, settings.token_merging):
        for state in ALL_SAMPLERS[settings.sampler].run(inpaint or denoise, x, sigmas, noise):
            x, x0 = state
            on_each(x0)
    latent = x / math.sqrt(1 + sigmas[-1] ** 2)
    return latent if inpaint is None else inpaint.keep(latent)


def add_noise(
    init_latent: Tensor, init: InitImage, settings: GenerationSettings, sigma: float, noise: Tensor
) -> Tensor:
    """Returns the latent that img2img starts from. The masked part may be noise or nothing before it is noised."""
    if init.latent_mask is not None and settings.masked_content in ("noise", "nothing"):
        content = noise if settings.masked_content == "noise" else torch.zeros_like(noise)
        init_latent = torch.where(init.latent_mask > 0, content, init_latent)
    return init_latent + sigma * noise


def inpainting(
    denoise: Callable, settings: GenerationSettings, init: InitImage, init_latent: Tensor | None, first: float
) -> Inpaint | None:
    """Returns the denoiser that keeps the part outside of the mask; None without a mask. first: the first sigma."""
    if init.latent_mask is None or init_latent is None:
        return None
    if init.soft_mask is not None:
        return SoftInpaint(denoise, init_latent, init.soft_mask, first)
    kind = UncondInpaint if settings.sampler in CFG_PLUS_PLUS else Inpaint
    return kind(denoise, init_latent, init.latent_mask)


def guided_denoiser(
    unet: UNetModel, settings: GenerationSettings, contexts: tuple[Tensor, Tensor], init: InitImage, batch: int
) -> Guidance:
    """Returns the U-Net as a denoiser with classifier-free guidance, for a batch of images of one prompt."""
    uncond, cond = (context.expand(batch, -1, -1) for context in contexts)
    scale = 1 if torch.equal(uncond, cond) else settings.guidance_scale  # equal contexts: guidance changes nothing
    extra = None if init.inpaint_channels is None else init.inpaint_channels.expand(batch, -1, -1, -1)
    cached = unet_for_run(unet, settings, init, batch)
    interval = sigmas_between(settings.guidance_start, settings.guidance_end)
    guidance = UncondGuidance if settings.sampler in CFG_PLUS_PLUS else Guidance
    return guidance(cached, cond, uncond, scale, extra, interval, settings.guidance_rescale)


def unet_for_run(unet: UNetModel, settings: GenerationSettings, init: InitImage, batch: int) -> Callable:
    """Returns the U-Net for one run: in windows, with ControlNets, with the step cache, or as it is."""
    if init.tile:
        return TiledUNet(unet, init.tile, settings.tile_overlap, init.controls, batch)
    if init.controls:
        return ControlledUNet(unet, init.controls, batch)
    return unet if settings.step_cache == 1 else StepCached(unet, settings.step_cache)


def sigmas_for_passes(settings: GenerationSettings, from_image: bool) -> list[list[float]]:
    """Returns the sigmas of each pass: the first, and with `hires_scale` the second.

    from_image: whether the first pass starts from an image, and so at `strength`.
    """
    to_zero = ALL_SAMPLERS[settings.sampler].to_zero
    sigmas = sigmas_for(settings.steps, settings.schedule, to_zero)
    passes = [truncate_sigmas(sigmas, settings.strength) if from_image else sigmas]
    if settings.hires_scale > 1:
        again = sigmas_for(settings.hires_steps or settings.steps, settings.schedule, to_zero)
        passes.append(truncate_sigmas(again, settings.hires_strength))
    return passes


def truncate_sigmas(sigmas: list[float], strength: float) -> list[float]:
    """Returns the last int(strength * steps) steps of a list: those of an image that is noised by `strength`."""
    steps = len(sigmas) - 1
    return sigmas[steps - min(int(steps * strength), steps) :]


class Progress:
    """Counts the steps of a whole call and reports them to `on_step`.

    DPM adaptive decides itself how many steps it takes: the count stops at the total, or ends below it.
    """

    def __init__(self, on_step: OnStep | None, total: int):
        self.on_step, self.total, self.done = on_step, total, 0

    def __call__(self, x0: Tensor) -> None:
        self.done = min(self.done + 1, self.total)
        if self.on_step is not None:
            self.on_step(self.done, self.total, x0)
