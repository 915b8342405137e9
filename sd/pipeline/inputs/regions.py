"""Regions: prompts that each work in a part of the image, as masks at the latent's size whose sum is 1 everywhere.

x0 = sum over regions of mask * x0(prompt of the region), after Bar-Tal et al. 2023, "MultiDiffusion: Fusing Diffusion
Paths for Controlled Image Generation", section 4.2; a prompt for the whole image takes part with one share everywhere.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd.adapters.lora_tags import split_tags
from sd.pipeline.inputs.options import needless
from sd.pipeline.mask import mask_to_tensor
from sd.pipeline.settings import GenerationSettings
from sd.prompts.regions import SMALL_WORD, WORD, Span, divide, has_regions, parse_regions
from sd.utils.errors import UserError


def uses_regions(settings: GenerationSettings, mask_count: int) -> bool:
    """Returns whether a prompt is in parts, or has masks."""
    return mask_count > 0 or has_regions(settings.prompt)


def check_regions(settings: GenerationSettings, mask_count: int) -> None:
    """Raises UserError where masks, ratios and the prompt's regions do not fit each other."""
    if has_regions(settings.negative_prompt):
        raise UserError("the negative prompt is one for the whole image: leave ADDCOL, ADDROW and the like out of it.")
    if not uses_regions(settings, mask_count):
        return
    prompt = parse_regions(settings.prompt)
    count = len(prompt.regions)
    if mask_count and mask_count != count:
        raise UserError(
            f"the prompt has {count} region{'s' * (count > 1)} and there {'are' if mask_count > 1 else 'is'} "
            f"{mask_count} region mask{'s' * (mask_count > 1)}: give one mask for each region, between which ADDCOL "
            "stands in the prompt."
        )
    if not mask_count:
        divide(prompt.columns, settings.region_ratios)


def region_weights(
    settings: GenerationSettings, masks: Sequence[Image.Image], width: int, height: int, factor: int = 8
) -> list[Tensor]:
    """Returns the weight (1, 1, h, w) of each text of `RegionalPrompt.texts`; their sum is 1 everywhere.

    width, height: of the image in pixels. factor: pixels for each position of the latent, each way. An empty list for a
    prompt without regions and masks.
    """
    if not uses_regions(settings, len(masks)):
        return []
    prompt = parse_regions(settings.prompt)
    size = (height // factor, width // factor)
    if masks:
        parts = [F.avg_pool2d(mask_to_tensor(one, width, height, over=(width, height)), factor) for one in masks]
    else:
        parts = [rectangle(*spans, *size) for spans in divide(prompt.columns, settings.region_ratios)]
    return with_base(parts, settings.region_base) if prompt.base is not None else normalized(parts)


def normalized(parts: list[Tensor]) -> list[Tensor]:
    """Returns masks in [0, 1], divided by their sum; where all are 0, each has an equal part."""
    total = sum(parts[1:], parts[0])
    return [torch.where(total > 0, part / total.clamp(min=1e-12), 1 / len(parts)) for part in parts]


def with_base(parts: list[Tensor], share: float) -> list[Tensor]:
    """Returns the weight of the whole image's prompt, and those of the regions.

    share: of the whole image's prompt where regions are; where no region is, it has all.
    """
    total = sum(parts[1:], parts[0])
    regions = [(1 - share) * part / total.clamp(min=1) for part in parts]
    return [1 - sum(regions[1:], regions[0]), *regions]


def rectangle(down: Span, across: Span, height: int, width: int) -> Tensor:
    """Returns (1, 1, h, w): the share of each cell that lies in a rectangle, which is given in shares of the sides."""
    return (covered(down, height)[:, None] * covered(across, width))[None, None]


def covered(span: Span, count: int) -> Tensor:
    """Returns how much of each of `count` cells in a row lies between two shares of its length."""
    cells = torch.arange(count, dtype=torch.float32)
    start, end = (share * count for share in span)
    return ((cells + 1).clamp(max=end) - cells.clamp(min=start)).clamp(min=0)


def base_notes(settings: GenerationSettings, base: str | None) -> list[str]:
    """Returns a sentence on a share that was given for a prompt before ADDBASE where there is none."""
    is_changed = settings.region_base != GenerationSettings.__dataclass_fields__["region_base"].default
    return needless("Without ADDBASE in the prompt", ["region_base"] * (is_changed and base is None))


def case_notes(prompt: str) -> list[str]:
    """Returns a sentence on a word of the regions that is not in capitals, and so is text like any other."""
    if found := SMALL_WORD.search(WORD.sub(" ", prompt)):
        return [f"The prompt has {found[0]!r} as a plain word: in capitals, {found[0].upper()} is for regions."]
    return []


def region_notes(settings: GenerationSettings, masks: Sequence[Image.Image], width: int, height: int) -> list[str]:
    """Returns sentences on what regions do not honor, or what changes nothing without them."""
    if not uses_regions(settings, len(masks)):
        note = "Without ADDCOL or ADDROW in the prompt, the region ratios change nothing."
        return [note] * bool(settings.region_ratios) + base_notes(settings, None) + case_notes(settings.prompt)
    prompt = parse_regions(settings.prompt)
    notes = base_notes(settings, prompt.base) + case_notes(settings.prompt)
    if settings.ngms and len({tuple(split_tags(text).tags) for text in prompt.texts}) > 1:
        notes.append("Where regions name LoRAs of their own, the negative guidance minimum sigma changes nothing.")
    if settings.only_masked:
        notes.append("With only masked, the regions divide the masked part and its surroundings, not the whole image.")
    if masks and settings.region_ratios:
        notes.append("With region masks, the region ratios change nothing.")
    if masks and prompt.base is None:
        total = sum(mask_to_tensor(one, width, height, over=(width, height)) for one in masks)
        bare = (total == 0).float().mean().item() if isinstance(total, Tensor) else 0.0
        if bare > 0.001:
            notes.append(
                f"{100 * bare:.0f} % of the image is in no region's mask: all regions' prompts work there; a prompt "
                "before ADDBASE would work there alone."
            )
    return notes
