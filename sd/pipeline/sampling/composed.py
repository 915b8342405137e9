"""Denoisers for prompts of several parts and prompts that change with the steps; see `sd/prompts/editing.py`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sd.denoiser import Denoiser, Guidance, rescale_noise
from sd.pipeline.sampling.cfgpp import FULL_SCALE
from sd.pipeline.sampling.extra_samplers import Denoise
from sd.prompts.editing import index_at
from sd.schedule import SD1_SCHEDULE, NoiseSchedule


class ComposedGuidance(Guidance):
    """Guidance by several prompts: uncond + scale * sum of weight * (cond - uncond) (Liu et al. 2022, eq. 11).

    "Compositional Visual Generation with Composable Diffusion Models"; the webui's AND. A negative weight steers away
    from its prompt. conds: (context (B, M, D), weight) each; all go through the U-Net as one batch, uncond first.
    A weight may be a mask, (1, 1, h, w): with masks whose sum is 1 everywhere, cond is the sum of mask * x0 over the
    prompts, each of which works in its region.
    Outside of `interval` the scale is 1. The other arguments are those of `Guidance`.
    """

    def __init__(
        self,
        unet: Callable,
        conds: Sequence[tuple[Tensor, float | Tensor]],
        uncond: Tensor,
        scale: float,
        inpaint_channels: Tensor | None = None,
        interval: tuple[float, float] = (0.0, math.inf),
        rescale: float = 0.0,
        schedule: NoiseSchedule = SD1_SCHEDULE,
    ):
        contexts = [uncond, *(context for context, _ in conds)]
        length = math.lcm(*(context.shape[1] for context in contexts))
        every = torch.cat([context.repeat(1, length // context.shape[1], 1) for context in contexts])
        repeated = None if inpaint_channels is None else torch.cat([inpaint_channels] * len(contexts))
        self.every = Denoiser(unet, every, repeated, schedule)
        self.weights = [weight for _, weight in conds]
        self.scale, self.interval, self.rescale = scale, interval, rescale

    def uncond_and_change(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return the estimate without the prompts and the weighted sum of their directions, each (B, 4, h, w)."""
        uncond, *conds = self.every(torch.cat([x] * (1 + len(self.weights))), sigma).chunk(1 + len(self.weights))
        return uncond, sum((weight * (cond - uncond) for weight, cond in zip(self.weights, conds)), torch.zeros(()))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the guided estimate of the clean latent, (B, 4, h, w), from x (B, 4, h, w) with noise of sigma."""
        uncond, change = self.uncond_and_change(x, sigma)
        lowest, highest = self.interval
        if not lowest <= sigma <= highest:
            return uncond + change
        x0 = uncond + self.scale * change
        return rescale_noise(x, x0, uncond + change, self.rescale) if self.rescale else x0


class UncondComposedGuidance(ComposedGuidance):
    """`ComposedGuidance` for the CFG++ samplers; see `cfgpp.UncondGuidance`."""

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Estimate x0 with guidance and without the prompt: (x0, uncond), each (B, 4, h, w)."""
        uncond, change = self.uncond_and_change(x, sigma)
        lowest, highest = self.interval
        if not lowest <= sigma <= highest:
            return uncond + change, uncond + change
        x0 = uncond + self.scale / FULL_SCALE * change
        return rescale_noise(x, x0, uncond + change, self.rescale) if self.rescale else x0, uncond

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.with_uncond(x, sigma)[0]


class EditedDenoiser:
    """A denoiser that is another one at each evaluation: entry k of `denoisers` up to the evaluation `ends[k]`.

    Evaluations are counted from 0, as the webui counts them; see `editing.index_at`.
    """

    def __init__(self, ends: list[int], denoisers: Sequence[Denoise]):
        self.ends, self.denoisers, self.evaluations = ends, denoisers, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent by the denoiser whose turn it is, and count the evaluation."""
        return self.take_turn()(x, sigma)

    def with_uncond(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return what the CFG++ samplers take from the denoiser whose turn it is; see `cfgpp.UncondGuidance`."""
        denoise: Any = self.take_turn()
        return denoise.with_uncond(x, sigma)

    def take_turn(self) -> Denoise:
        denoise = self.denoisers[index_at(self.ends, self.evaluations)]
        self.evaluations += 1
        return denoise
