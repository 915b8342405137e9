"""A trace of one sampling run: what the sampler held and what the U-Net estimated at each step, with and without text.

    trace = Trace()
    output = pipe.generate(settings, trace=trace)
    trace.steps[0].guided                           # (4, h, w): the first estimate of the clean latent
    trace.entries, trace.steps[0].attention         # names, and a map for each

The image has the same bits with a trace as without: the recorder only reads, and its own evaluations of the U-Net
leave nothing behind. Without a trace nothing here runs.

Memory: at most MAX_STEPS steps are kept, in half precision on the CPU, of latents of at most 64 x 64 positions (larger
ones are averaged down). At v1-5's 512 x 512 pixels that is 0.13 MB a step for the four latents and 14 kB for the maps
of 24 words: 4.7 MB for 32 steps, 5.5 MB with what the words change at four of them, and under 12 MB in every case.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.clip import CLIPTextModel
from sd.denoiser import Denoiser, Guidance
from sd.pipeline.sampling.composed import EditedDenoiser
from sd.pipeline.sampling.conditioning import Conditioning, count_evaluations, parts_of
from sd.pipeline.sampling.skipped_guidance import SkippedGuidance
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.tracing.attention_maps import AttentionMaps, map_size, observed, to_half
from sd.pipeline.tracing.words import MAX_WORDS, Word, contexts_without, find_words, membership
from sd.prompts.editing import schedule_prompt
from sd.prompts.regions import parse_regions
from sd.prompts.weighting import split_chunks
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel
from sd.utils.errors import UserError

MAX_STEPS = 32  # that are kept, evenly spread over the run
MAX_SIDE = 64  # positions: larger latents are averaged down to it
EXTRA_SHARE = 0.4  # of the run's evaluations, at most, for what each word changes; at least one step has them
SMALL = 32 * 32  # positions of a latent: up to here eight extra evaluations are one batch, else two as in the run

NO_CHANGES = (
    "What a word changes is not computed with ControlNet, the step cache or token merging: it needs the U-Net as it is."
)


@dataclass
class TracedStep:
    """One step: its number from 1, the level sigma before it, and its time t.

    x: what the sampler held, scaled to unit variance as the U-Net sees it. guided, cond, uncond: the estimates of the
    clean latent; uncond is None where the step had no guidance. All are (4, h, w), half precision.
    attention: (E, h', w'), the share of each of the trace's entries in the attention of a position; None where no layer
    was observed. changes: (W, h, w), the mean of |cond - cond without the word| over the channels, for each of the
    trace's words; None at most steps.
    """

    step: int
    sigma: float
    t: float
    x: Tensor
    cond: Tensor
    guided: Tensor | None = None
    uncond: Tensor | None = None
    attention: Tensor | None = None
    changes: Tensor | None = None


class Trace:
    """Records the first image of one call of `StableDiffusion.generate`, in its first pass.

    max_steps: how many steps to keep. extra_share: see EXTRA_SHARE; 0 leaves out what words change.
    entries: the names of the attention's maps: the start token, the words, the rest. words: those whose change is
    recorded. total: the steps of the run. notes: sentences on what could not be recorded.
    """

    def __init__(self, max_steps: int = MAX_STEPS, extra_share: float = EXTRA_SHARE):
        self.max_steps, self.extra_share = max_steps, extra_share
        self.steps: list[TracedStep] = []
        self.entries: list[str] = []
        self.words: list[Word] = []
        self.changed: list[int] = []  # the index of each of `words` among the entries
        self.notes: list[str] = []
        self.scale, self.total = 1.0, 0
        self.kept: list[int] = []
        self.with_changes: set[int] = set()
        self.without: Tensor | None = None  # (W, M, D), the prompt's context without each word
        self.maps: AttentionMaps | None = None
        self.index, self.finished = 0, False
        self.current: TracedStep | None = None

    def prepare(
        self,
        networks: tuple[Tokenizer, CLIPTextModel, UNetModel],
        settings: GenerationSettings,
        contexts: Conditioning,
        sigmas: list[float],
        size: tuple[int, int],
    ) -> None:
        """Choose the steps to keep, and read the prompt's words.

        settings: as used, with the prompt without tags. size: (h, w) of the latent. Raises UserError for what a trace
        cannot show.
        """
        if contexts.loras is not None:
            raise UserError(
                "regions with LoRAs of their own are several models in one image, which a trace cannot show: let all "
                "regions name the same LoRAs, for example before ADDCOMM."
            )
        self.total, self.scale = len(sigmas) - 1, settings.guidance_scale
        count = min(self.max_steps, self.total)
        self.kept = [round(i * (self.total - 1) / max(count - 1, 1)) for i in range(count)]
        if len(contexts.segments()) > 1:
            self.notes.append("The prompt changes with the steps, so its words have no maps.")
        elif settings.tile_size:
            self.notes.append("With tiled diffusion each window has its own attention, so words have no maps.")
        else:
            self.read_words(networks, settings, contexts, size)

    def read_words(
        self,
        networks: tuple[Tokenizer, CLIPTextModel, UNetModel],
        settings: GenerationSettings,
        contexts: Conditioning,
        size: tuple[int, int],
    ) -> None:
        tokenizer, clip, unet = networks
        _, cond = contexts.prompts[0][0][0]
        prompt, _ = parts_of(parse_regions(settings.prompt).texts[0], settings.compat)[0]
        if settings.compat != "comfyui":
            ((_, prompt),) = schedule_prompt(prompt, count_evaluations(settings))
        if len(contexts.prompts) > 1:
            self.notes.append("The words are those of the prompt's first part, before AND or the next region.")
        chunks = split_chunks(tokenizer, prompt, settings.emphasis, settings.comma_padding)
        words = find_words(tokenizer, chunks)
        if len(words) > MAX_WORDS:
            self.notes.append(f"The prompt has {len(words)} words: maps are shown of the first {MAX_WORDS}.")
        self.entries, member = membership(words, cond.shape[1])
        observed_size = map_size(unet, *size)
        self.maps = None if observed_size is None else AttentionMaps(observed_size, member)
        self.changed = [1 + i for i, word in enumerate(words[:MAX_WORDS]) if not word.is_sign]
        words = [words[i - 1] for i in self.changed]
        if not words or not self.extra_share:
            return
        if settings.control or settings.step_cache > 1 or settings.token_merging:
            self.notes.append(NO_CHANGES)
            return
        self.words = words
        self.without = contexts_without(tokenizer, clip, chunks, words, cond, settings.clip_skip, settings.emphasis)
        count = int(min(max(1, self.extra_share * 2 * self.total / len(words)), len(self.kept)))
        self.with_changes = {self.kept[i * len(self.kept) // count] for i in range(count)}

    @contextmanager
    def observe(self, unet: UNetModel) -> Iterator[None]:
        """Observe the U-Net's attention within the context; afterwards the trace records no more."""
        try:
            with observed(unet, self.maps):
                yield
        finally:
            self.finished, self.current = True, None
        if self.index > self.total:
            self.notes.append(f"The sampler took {self.index} steps, of which the first {self.total} are shown.")
        self.total = self.index  # some samplers choose their own number

    def watch(self, denoise: Guidance | EditedDenoiser | SkippedGuidance) -> Any:
        """Return a denoiser with the same results that also records."""
        inside = denoise.denoise if isinstance(denoise, SkippedGuidance) else denoise
        for guidance in {id(one): one for one in getattr(inside, "denoisers", [inside])}.values():
            for name in ("both", "every", "cond_only"):
                if (inner := getattr(guidance, name, None)) is not None:
                    weights = getattr(guidance, "weights", [1.0])
                    setattr(guidance, name, WatchedEstimates(self, inner, weights if name != "cond_only" else []))
        return (WatchedUncondDenoiser if hasattr(denoise, "with_uncond") else WatchedDenoiser)(self, denoise)

    def next_step(self) -> None:
        """Note that the sampler has finished a step."""
        if self.current is not None:
            self.steps.append(self.current)
        self.index, self.current = self.index + 1, None

    @property
    def is_wanted(self) -> bool:
        """Whether the next evaluation is the first one of a step that is kept."""
        return self.current is None and not self.finished and self.index in self.kept

    def add(self, estimates: "WatchedEstimates", x: Tensor, sigma: float, cond: Tensor, uncond: Tensor | None) -> None:
        """Record the estimates (1, 4, h, w) of a step."""
        inner = estimates.inner
        scaled = x / math.sqrt(1 + sigma**2)
        parts = [None if one is None else to_half(reduce(one)[0]) for one in (scaled, cond, uncond)]
        step = TracedStep(self.index + 1, sigma, float(inner.schedule.t_of(sigma)), parts[0], parts[1])
        step.uncond = parts[2]
        if self.maps is not None and (attention := self.maps.take()) is not None:
            step.attention = to_half(attention)
        if self.index in self.with_changes:
            step.changes = to_half(torch.cat([*self.changes(inner, x, sigma, cond)]))
        self.current = step

    def changes(self, inner: Denoiser, x: Tensor, sigma: float, cond: Tensor) -> Iterator[Tensor]:
        """Yield |cond - cond without the word|, averaged over the channels: (W, h, w) in all."""
        rows = 8 if x.shape[-1] * x.shape[-2] <= SMALL else 2
        for contexts in self.without.split(rows):
            extra = (
                None if inner.inpaint_channels is None else inner.inpaint_channels[:1].expand(len(contexts), -1, -1, -1)
            )
            denoise = type(inner)(inner.unet, contexts, extra, inner.schedule)
            x0 = denoise(x.expand(len(contexts), -1, -1, -1).contiguous(), sigma)
            yield reduce((x0 - cond).abs().mean(1, keepdim=True))[:, 0]


class WatchedEstimates:
    """A `Denoiser` whose rows are the unconditional estimates, then those of each part of the prompt.

    weights: of the parts; empty where all rows are conditional.
    """

    def __init__(self, trace: Trace, inner: Denoiser, weights: list[float]):
        self.trace, self.inner, self.weights = trace, inner, weights

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the inner denoiser returns."""
        wanted = self.trace.is_wanted
        batch = len(x) // (1 + len(self.weights))
        if wanted and self.trace.maps is not None:
            self.trace.maps.row = batch if self.weights else 0
        x0 = self.inner(x, sigma)
        if wanted:
            uncond, *conds = x0[::batch].split(1)  # of the first image
            cond = uncond + sum(weight * (one - uncond) for weight, one in zip(self.weights, conds))
            first = conds[0] if self.weights == [1.0] else cond
            self.trace.add(self, x[:1], sigma, first, uncond if self.weights else None)
        return x0


class WatchedDenoiser:
    """A denoiser whose result is recorded as the guided estimate."""

    def __init__(self, trace: Trace, denoise: Any):
        self.trace, self.denoise = trace, denoise

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return what the inner denoiser returns."""
        return self.record(self.denoise, x, sigma)

    def record(self, run: Callable, x: Tensor, sigma: float) -> Any:
        """Return run(x, sigma), of which the guided estimate is the whole or the first part."""
        wanted = self.trace.is_wanted
        result = run(x, sigma)
        if wanted and self.trace.current is not None:
            x0 = result[0] if isinstance(result, tuple) else result
            self.trace.current.guided = to_half(reduce(x0[:1])[0])
        return result


class WatchedUncondDenoiser(WatchedDenoiser):
    """The same for the CFG++ samplers."""

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return what the inner denoiser returns."""
        return self.record(self.denoise.with_uncond, x, sigma)


def reduce(latent: Tensor) -> Tensor:
    """Return latents (B, C, h, w), averaged down where a side is over MAX_SIDE."""
    factor = math.ceil(max(latent.shape[-2:]) / MAX_SIDE)
    return latent if factor == 1 else F.avg_pool2d(latent, factor, ceil_mode=True)
