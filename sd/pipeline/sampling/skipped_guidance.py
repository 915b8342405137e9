"""The webui's "negative guidance minimum sigma" (NGMS): no negative prompt in every second evaluation at low noise."""

from typing import Any

import torch
from torch import Tensor

from sd.pipeline.sampling.cfgpp import FULL_SCALE
from sd.pipeline.sampling.composed import ComposedGuidance, EditedDenoiser, UncondComposedGuidance


class SkippedGuidance:
    """A guided denoiser whose odd evaluations, counted from 0, have no guidance where sigma is below `below`.

    denoise: a `Guidance` of any kind, or an `EditedDenoiser` of them. An evaluation without guidance takes half the
    time, unless the prompt has several parts.
    """

    def __init__(self, denoise: Any, below: float):
        self.denoise, self.below, self.evaluations = denoise, below, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of level sigma."""
        return without_uncond(self.denoise, x, sigma)[0] if self.is_skipped(sigma) else self.denoise(x, sigma)

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return what the CFG++ samplers take; where guidance is skipped, the prompt's estimate stands for both."""
        return without_uncond(self.denoise, x, sigma) if self.is_skipped(sigma) else self.denoise.with_uncond(x, sigma)

    def is_skipped(self, sigma: float) -> bool:
        """Count an evaluation, and return whether it goes without guidance."""
        self.evaluations += 1
        return self.evaluations % 2 == 0 and sigma < self.below


def without_uncond(denoise: Any, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return the guided estimate and the unconditional one, (B, 4, h, w) each, with the prompt in place of the latter.

    Of several prompts (AND) the first one takes that place, as in the webui.
    """
    guidance: Any = denoise.take_turn() if isinstance(denoise, EditedDenoiser) else denoise
    if not isinstance(guidance, ComposedGuidance):
        cond = guidance.cond_only(x, sigma)
        return cond, cond
    count = 1 + len(guidance.weights)
    _, first, *others = guidance.every(torch.cat([x] * count), sigma).chunk(count)
    scale = guidance.scale / (FULL_SCALE if isinstance(guidance, UncondComposedGuidance) else 1)
    change = sum((weight * (cond - first) for weight, cond in zip(guidance.weights[1:], others)), torch.zeros(()))
    return first + scale * change, first
