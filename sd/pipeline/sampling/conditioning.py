"""The contexts of a pass: of the negative prompt and of each part of the prompt, as they change with the steps.

A plain prompt has one part of one context. See `sd/prompts/editing.py` for the syntax of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sd.adapters.region_loras import Names, RegionLoras
from sd.pipeline.settings import GenerationSettings
from sd.prompts.editing import index_at, schedule_prompt, split_prompts
from sd.prompts.regions import parse_regions
from sd.utils.errors import UserError

Timeline = list[tuple[int, Tensor]]  # (last evaluation of the model, context (1, M, D)), in order
MAX_PARTS = 16  # of a prompt; all go through the U-Net in one batch
# These evaluate the model twice in a step, and the webui counts both.
SECOND_ORDER = ("heun", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "restart")


@dataclass(frozen=True)
class Segment:
    """What is used up to and including the evaluation `end`: uncond (1, M, D), and (context, weight) of each part."""

    end: int
    uncond: Tensor
    conds: list[tuple[Tensor, float]]


@dataclass(frozen=True)
class Conditioning:
    """uncond: the negative prompt's contexts. prompts: those of each part of the prompt, with its weight.

    regions: for each part of the prompt the index of its text in `RegionalPrompt.texts`; all 0 for a plain prompt.
    loras, variants: where regions name LoRAs of their own, which ones, and the contexts with each set of them.
    """

    uncond: Timeline
    prompts: list[tuple[Timeline, float]]
    regions: list[int] = field(default_factory=list)
    loras: RegionLoras | None = None
    variants: "dict[Names, Conditioning]" = field(default_factory=dict)

    def regions_with(self, names: Names) -> set[int]:
        """Return the regions that name this set of LoRAs."""
        return {region for region, own in enumerate(self.loras.by_region if self.loras else ()) if own == names}

    def segments(self) -> list[Segment]:
        """Return the contexts by the evaluations of the model, in order; the last one's `end` is the run's length."""
        timelines = [self.uncond, *(timeline for timeline, _ in self.prompts)]
        found = []
        for end in sorted({end for timeline in timelines for end, _ in timeline}):
            uncond, *conds = (timeline[index_at([last for last, _ in timeline], end)][1] for timeline in timelines)
            found.append(Segment(end, uncond, [(cond, weight) for cond, (_, weight) in zip(conds, self.prompts)]))
        return found


def count_evaluations(settings: GenerationSettings, second_pass: bool = False) -> int:
    """Return the evaluations of the model in a pass as the webui counts them for prompts: all of `steps`, always."""
    steps = (settings.hires_steps or settings.steps) if second_pass else settings.steps
    return steps * (2 if settings.sampler in SECOND_ORDER else 1)


def encode_conditioning(
    settings: GenerationSettings, encode: Callable[[list[str]], Tensor], second_pass: bool = False
) -> Conditioning:
    """Encode the prompts of a pass. encode: B texts to a context (B, M, D), shorter ones padded.

    The contexts of all texts have one length; with `compat`, each timeline has its own, as in the webui.
    Raises UserError as `divide_prompt` does.
    """
    first = count_evaluations(settings) if second_pass else 0
    evaluations = count_evaluations(settings, second_pass)
    divided = divide_prompt(settings)
    parts = [part for one in divided for part in one]
    plain = [settings.negative_prompt, *(text for text, _ in parts)]
    if settings.compat == "comfyui":  # which has no prompts in time
        texts = [[(evaluations, text)] for text in plain]
    else:
        texts = [schedule_prompt(text, evaluations, first) for text in plain]
    if settings.compat == "none":
        contexts = encode_texts([text for timeline in texts for _, text in timeline], encode)
        timelines = [[(end, contexts[text]) for end, text in timeline] for timeline in texts]
    else:
        timelines = [encode_timeline(timeline, encode) for timeline in texts]
        timelines[1:] = equal_parts(timelines[1:])
    return Conditioning(
        timelines[0],
        [(timeline, weight) for timeline, (_, weight) in zip(timelines[1:], parts)],
        [region for region, one in enumerate(divided) for _ in one],
    )


def divide_prompt(settings: GenerationSettings) -> list[list[tuple[str, float]]]:
    """Return the parts, with their weights, of each text of the prompt's regions; a plain prompt is one text.

    Raises UserError for a prompt of more than MAX_PARTS parts.
    """
    divided = [parts_of(text, settings.compat) for text in parse_regions(settings.prompt).texts]
    if (count := sum(map(len, divided))) > MAX_PARTS:
        raise UserError(f"the prompt has {count} parts (regions, or joined by AND): use at most {MAX_PARTS}.")
    return divided


def parts_of(prompt: str, compat: str) -> list[tuple[str, float]]:
    """Return the parts of a prompt with their weights. A lone part has a weight in the webui only: "16:9" is text."""
    whole = [(prompt, 1.0)]
    parts = whole if compat == "comfyui" else split_prompts(prompt)
    return whole if len(parts) == 1 and (parts[0][1] == 1 or compat == "none") else parts


def encode_timeline(timeline: list[tuple[int, str]], encode: Callable[[list[str]], Tensor]) -> Timeline:
    """Encode the texts of one timeline, all to one length."""
    contexts = encode_texts([text for _, text in timeline], encode)
    return [(end, contexts[text]) for end, text in timeline]


def encode_texts(texts: list[str], encode: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
    """Return the context (1, M, D) of each text, each encoded once."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, encode(different).split(1)))


def equal_parts(timelines: list[Timeline]) -> list[Timeline]:
    """Extend shorter contexts by their last vector, as the webui does for parts of different lengths."""
    longest = max(context.shape[1] for timeline in timelines for _, context in timeline)

    def extend(context: Tensor) -> Tensor:
        missing = longest - context.shape[1]
        return torch.cat([context, context[:, -1:].expand(-1, missing, -1)], dim=1) if missing else context

    return [[(end, extend(context)) for end, context in timeline] for timeline in timelines]
