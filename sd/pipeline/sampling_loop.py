"""The sampling loop: from noise to a latent along a list of sigmas, and the choice of those sigmas."""

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.predictions import EPS, Prediction
from sd.control.controlled_unet import ControlledUNet
from sd.denoiser import Guidance, Inpaint, sigmas_between
from sd.optimization.deepcache import cache_steps
from sd.optimization.token_merging import token_merging
from sd.pipeline.init_image import InitImage
from sd.pipeline.inputs.soft_inpaint import SoftInpaint
from sd.pipeline.noise import SeededNoise
from sd.pipeline.sampler_names import ALL_SAMPLERS, CFG_PLUS_PLUS
from sd.pipeline.sampling.cfgpp import UncondGuidance, UncondInpaint
from sd.pipeline.sampling.compatibility import sampler_noise, sigmas_from_image, start_scale, whole_sigmas
from sd.pipeline.sampling.composed import ComposedGuidance, EditedDenoiser, UncondComposedGuidance
from sd.pipeline.sampling.conditioning import Conditioning, Segment
from sd.pipeline.sampling.regional_loras import LimitedUNet, RegionalGuidance, UncondRegionalGuidance
from sd.pipeline.sampling.skipped_guidance import SkippedGuidance
from sd.pipeline.sampling.tiled_diffusion import TiledUNet
from sd.pipeline.sampling.v_prediction import NEVER_PURE_NOISE, predict_v, schedule_of
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.trace import Trace
from sd.schedule import NoiseSchedule
from sd.unet import UNetModel

OnStep = Callable[[int, int, Tensor], object]
NOWHERE = 1e-6  # a region's weight that is rounding


def sample(
    unet: UNetModel,
    settings: GenerationSettings,
    sigmas: list[float],
    contexts: Conditioning,
    init: InitImage,
    noise: SeededNoise,
    on_each: Callable[[Tensor], None],
    prediction: Prediction = EPS,
    trace: Trace | None = None,
) -> Tensor:
    """Denoises pure noise, or `init.init_latent` with noise added, along one list of sigmas.

    contexts: of the prompts. on_each: called with each step's x0. prediction: what the U-Net predicts. trace: records
    the first of the images. Returns the latent (B, 4, h, w), scaled; B is the number of `noise`'s generators.
    """
    batch = len(noise.generators)
    init_latent = None if init.init_latent is None else init.init_latent.expand(batch, -1, -1, -1)
    if len(sigmas) < 2 and init_latent is not None:
        return init_latent  # strength 0: the image as it is
    repaints = init.latent_mask is not None and settings.strength == 1 and settings.compat != "webui"
    if init_latent is None or repaints:
        x = noise() * start_scale(settings, sigmas[0])
    else:
        x = add_noise(init_latent, init, settings, sigmas[0], noise())

    denoise: Any = guided_denoiser(unet, settings, contexts, init, batch, prediction)
    denoise = SkippedGuidance(denoise, settings.ngms) if settings.ngms and contexts.loras is None else denoise
    denoise = denoise if trace is None else trace.watch(denoise)
    schedule = schedule_of(prediction)
    inpaint = inpainting(denoise, settings, init, init_latent, sigmas[0], schedule)
    added = sampler_noise(settings, noise, sigmas, schedule)
    with token_merging(unet, settings.token_merging), nullcontext() if trace is None else trace.observe(unet):
        for state in sampler_run(settings, schedule)(inpaint or denoise, x, sigmas, added):
            x, x0 = state
            if trace is not None:
                trace.next_step()
            on_each(x0)
    latent = x / math.sqrt(1 + sigmas[-1] ** 2)
    return latent if inpaint is None else inpaint.keep(latent)


def sampler_run(settings: GenerationSettings, schedule: NoiseSchedule) -> Callable:
    """Returns the sampler's function of (denoise, x, sigmas, noise), with the arguments that the settings choose."""
    run = ALL_SAMPLERS[settings.sampler].run
    given = {"schedule": schedule} | ({} if settings.eta is None else {"eta": settings.eta})
    return partial(run, **{name: value for name, value in given.items() if name in inspect.signature(run).parameters})


def add_noise(
    init_latent: Tensor, init: InitImage, settings: GenerationSettings, sigma: float, noise: Tensor
) -> Tensor:
    """Returns the latent that img2img starts from. The masked part may be noise or nothing before it is noised."""
    if init.latent_mask is not None and settings.masked_content in ("noise", "nothing"):
        content = noise if settings.masked_content == "noise" else torch.zeros_like(noise)
        init_latent = torch.where(init.latent_mask > 0, content, init_latent)
    return init_latent + sigma * noise


def inpainting(
    denoise: Callable,
    settings: GenerationSettings,
    init: InitImage,
    init_latent: Tensor | None,
    first: float,
    schedule: NoiseSchedule,
) -> Inpaint | None:
    """Returns the denoiser that keeps the part outside of the mask; None without a mask. first: the first sigma."""
    if init.latent_mask is None or init_latent is None:
        return None
    if init.soft_mask is not None:
        return SoftInpaint(denoise, init_latent, init.soft_mask, first, schedule)
    kind = UncondInpaint if settings.sampler in CFG_PLUS_PLUS else Inpaint
    return kind(denoise, init_latent, init.latent_mask)


def guided_denoiser(
    unet: UNetModel,
    settings: GenerationSettings,
    contexts: Conditioning,
    init: InitImage,
    batch: int,
    prediction: Prediction = EPS,
) -> Guidance | EditedDenoiser:
    """Returns the U-Net as a denoiser with classifier-free guidance, for a batch of images of one prompt."""
    maker = GuidanceMaker(unet, settings, contexts, init, batch, prediction)
    segments = contexts.segments()
    made: dict[tuple, Guidance] = {}  # alternating words return to the same contexts
    keys = [(id(one.uncond), *(id(cond) for cond, _ in one.conds)) for one in segments]
    for index, key in enumerate(keys):
        made[key] = made.get(key) or maker.guidance_of(index)
    if len(segments) == 1:
        return made[keys[0]]
    return EditedDenoiser([one.end for one in segments], [made[key] for key in keys])


class GuidanceMaker:
    """Makes the guidance of each segment of a prompt; the arguments are those of `guided_denoiser`."""

    def __init__(
        self,
        unet: UNetModel,
        settings: GenerationSettings,
        contexts: Conditioning,
        init: InitImage,
        batch: int,
        prediction: Prediction,
    ):
        self.settings, self.contexts, self.init, self.batch = settings, contexts, init, batch
        self.run = unet_for_run(unet, settings, init, batch)
        # The step cache remembers what it saw last, so that each set of LoRAs needs one of its own.
        self.runs = {
            names: LimitedUNet(unet_for_run(unet, settings, init, batch), contexts.loras, names)
            for names in contexts.variants
            if contexts.loras is not None
        }
        self.schedule, self.v = schedule_of(prediction), prediction.v
        self.interval = sigmas_between(settings.guidance_start, settings.guidance_end, self.schedule)
        self.extra = None if init.inpaint_channels is None else init.inpaint_channels.expand(batch, -1, -1, -1)
        self.more = (self.extra, self.interval, settings.guidance_rescale, self.schedule)
        self.plus_plus = settings.sampler in CFG_PLUS_PLUS

    def guidance_of(self, index: int) -> Guidance:
        """Returns the guidance of the segment with this index."""
        if self.runs:
            return self.regional_guidance(index)
        segment, scale = self.contexts.segments()[index], self.settings.guidance_scale
        uncond, conds = segment.uncond.expand(self.batch, -1, -1), self.conds_of(segment)
        if len(conds) > 1 or isinstance(conds[0][1], Tensor) or conds[0][1] != 1:
            return self.composed(self.run, conds, uncond)
        cond = conds[0][0]
        scale = 1 if torch.equal(uncond, cond) else scale  # equal: guidance changes nothing
        guidance = (UncondGuidance if self.plus_plus else Guidance)(self.run, cond, uncond, scale, *self.more)
        return predict_v(guidance) if self.v else guidance

    def regional_guidance(self, index: int) -> RegionalGuidance:
        """Returns the sum of the guidance of each set of LoRAs."""
        parts = []
        for names, variant in self.contexts.variants.items():
            segment, regions = variant.segments()[index], self.contexts.regions_with(names)
            if conds := self.conds_of(segment, regions):
                part = self.composed(self.runs[names], conds, segment.uncond.expand(self.batch, -1, -1))
                masks = [self.init.region_weights[region] for region in sorted(regions)]
                parts.append((part, sum(masks[1:], masks[0]).to(segment.uncond.device)))
        kind = UncondRegionalGuidance if self.plus_plus else RegionalGuidance
        return kind(parts, self.settings.guidance_scale, self.interval, self.settings.guidance_rescale)

    def composed(self, run: Callable, conds: list[tuple[Tensor, float | Tensor]], uncond: Tensor) -> ComposedGuidance:
        kind = UncondComposedGuidance if self.plus_plus else ComposedGuidance
        guidance = kind(run, conds, uncond, self.settings.guidance_scale, *self.more)
        if self.v:
            predict_v(guidance)
        return guidance

    def conds_of(self, segment: Segment, regions: set[int] | None = None) -> list[tuple[Tensor, float | Tensor]]:
        """Returns the contexts and weights of the prompt's parts, or of those of some regions."""
        kept = list(zip(segment.conds, self.contexts.regions or [0] * len(segment.conds)))
        kept = [(one, region) for one, region in kept if regions is None or region in regions]
        expanded = [(cond.expand(self.batch, -1, -1), weight) for (cond, weight), _ in kept]
        return weighted_by_region(expanded, [region for _, region in kept], self.init.region_weights)


def weighted_by_region(
    conds: list[tuple[Tensor, float]], regions: list[int], weights: list[Tensor]
) -> list[tuple[Tensor, float | Tensor]]:
    """Returns contexts with their weights times those of their regions, without regions that are nowhere.

    A region that is everywhere leaves the weight as it is.
    """
    if not weights:
        return list(conds)
    found: list[tuple[Tensor, float | Tensor]] = []
    for (cond, weight), region in zip(conds, regions):
        mask = weights[region].to(cond.device)
        if mask.max() > NOWHERE:
            found.append((cond, weight if bool((mask == 1).all()) else weight * mask))
    return found


def unet_for_run(unet: UNetModel, settings: GenerationSettings, init: InitImage, batch: int) -> Callable:
    """Returns the U-Net for one run: in windows, with ControlNets, with the step cache, or as it is."""
    if init.tile:
        return TiledUNet(unet, init.tile, settings.tile_overlap, init.controls, batch)
    if init.controls:
        return ControlledUNet(unet, init.controls, batch)
    return cache_steps(unet, settings.step_cache)


def schedule_for_model(settings: GenerationSettings, prediction: Prediction) -> tuple[GenerationSettings, list[str]]:
    """Returns the settings with a schedule that fits the model, and a note where that is another one.

    A model of zero terminal SNR has to start from pure noise (Lin et al. 2023, section 3.3).
    """
    if not prediction.zero_snr or settings.schedule not in NEVER_PURE_NOISE:
        return settings, []
    note = (
        f"the model has zero terminal SNR, and the schedule {settings.schedule} never starts from pure noise: trailing "
        "is used instead."
    )
    return settings.replace(schedule="trailing"), [note]


def sigmas_for_passes(
    settings: GenerationSettings, from_image: bool, prediction: Prediction = EPS
) -> list[list[float]]:
    """Returns the sigmas of each pass: the first, and with `hires_scale` the second.

    from_image: whether the first pass starts from an image, and so at `strength`.
    """
    schedule = schedule_of(prediction)
    if from_image:
        return [sigmas_from_image(settings, settings.steps, settings.strength, schedule, second_pass=False)]
    passes = [whole_sigmas(settings, settings.steps, schedule)]
    if settings.hires_scale > 1:
        steps = settings.hires_steps or settings.steps
        passes.append(sigmas_from_image(settings, steps, settings.hires_strength, schedule, second_pass=True))
    return passes


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
