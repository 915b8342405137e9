"""Guidance where regions of the image name LoRAs of their own.

Each set of LoRAs is a model of its own: x0 = sum over the sets of mask * (uncond + scale * (cond - uncond)). Both are
estimated with this set's LoRAs in both networks, and mask is the sum of its regions' masks. So at each step a region
gets what a plain prompt with its LoRAs gets there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sd.adapters.region_loras import Names, RegionLoras
from sd.pipeline.sampling.composed import ComposedGuidance, UncondComposedGuidance
from sd.pipeline.sampling.conditioning import Conditioning


class LimitedUNet:
    """A U-Net with only these of the regions' LoRAs, as a callable (x, t, context) -> eps."""

    def __init__(self, unet: Callable, loras: RegionLoras, names: Names):
        self.unet, self.loras, self.names = unet, loras, names

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, h, w). t: (B,). context: (B, M, D). Return eps, (B, 4, h, w)."""
        with self.loras.only(self.names):
            return self.unet(x, t, context)


class RegionalGuidance(ComposedGuidance):
    """The sum of guided denoisers, of one for each set of LoRAs.

    parts: guidance whose weights are the masks of its regions, and the sum of these masks, (1, 1, h, w). The other
    arguments are those of `Guidance`.
    """

    def __init__(
        self,
        parts: Sequence[tuple[ComposedGuidance, Tensor]],
        scale: float,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
    ):
        self.parts, self.scale, self.interval, self.rescale = parts, scale, interval, rescale

    def uncond_and_change(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return the estimate without the prompts and the weighted sum of their directions, each (B, 4, h, w)."""
        uncond, change = torch.zeros_like(x), torch.zeros_like(x)
        for guidance, mask in self.parts:
            own, direction = guidance.uncond_and_change(x, sigma)
            uncond, change = uncond + mask * own, change + direction
        return uncond, change


class UncondRegionalGuidance(RegionalGuidance, UncondComposedGuidance):
    """`RegionalGuidance` for the CFG++ samplers."""


def encode_with_loras(encode: Callable[[], Conditioning], loras: RegionLoras | None) -> Conditioning:
    """Returns the contexts of a pass; where regions name LoRAs of their own, with those of each set as `variants`."""
    if loras is None:
        return encode()
    variants = {}
    for names in loras.sets:
        with loras.only(names):
            variants[names] = encode()
    return replace(next(iter(variants.values())), loras=loras, variants=variants)
