"""Step caching: the deep part of the U-Net changes little from step to step, so it is computed every few steps only.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free", section 3.3. Quicker, and not quite the same. What
does change goes on as it went, in a straight line over t: Liu et al. 2025, "From Reusing to Forecasting: Accelerating
Diffusion Models with TaylorSeers", order 1. On the bundled model that is worth some 5 dB and no time.
"""

from torch import Tensor

from sd.optimization.unet_blocks import embed_time, run_output_blocks
from sd.unet import UNetModel

SHALLOW = 2  # blocks at each end of the U-Net that every step computes
MAX_EVERY = 20


class StepCached:
    """A U-Net as its own kind of callable, (x, t, context) -> eps, for one walk down the noise levels.

    Every `every`-th call computes all of it; those between start from what its deep part gave the last time or two. A
    sampler that looks twice a step makes two calls. Another context than the last call's, as at the ends of a guidance
    interval, makes a call that computes all, and nothing from before counts: its rows are others.
    """

    def __init__(self, unet: UNetModel, every: int):
        self.unet, self.every = unet, every
        self.context: Tensor | None = None
        self.t: Tensor | None = None  # (B,), when all was computed last
        self.deep: Tensor | None = None  # (B, C, H, W), what the last of the deep blocks gave then
        self.slope: Tensor | None = None  # (B, C, H, W), its change since the time before, for each 1 of t
        self.calls = 0  # since then, that one included

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        unet = self.unet
        emb = embed_time(unet, t, x.dtype)
        skips = []
        for block in unet.input_blocks[:SHALLOW]:
            x = block(x, emb, context)
            skips.append(x)
        if context is not self.context or self.calls == self.every:
            self.keep(self.compute_deep(skips, emb, context), t, context)
        deep = self.deep
        if self.calls > 0 and self.slope is not None:
            deep = deep + along(t - self.t, deep) * self.slope
        self.calls += 1
        return unet.out(run_output_blocks(unet.output_blocks[-SHALLOW:], deep, skips, emb, context))

    def keep(self, deep: Tensor, t: Tensor, context: Tensor) -> None:
        same = context is self.context and self.every > 1
        self.slope = (deep - self.deep) / along(t - self.t, deep) if same else None
        self.context, self.t, self.deep, self.calls = context, t, deep, 0

    def compute_deep(self, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        x, skips = skips[-1], list(skips)
        for block in self.unet.input_blocks[SHALLOW:]:
            x = block(x, emb, context)
            skips.append(x)
        x = self.unet.middle_block(x, emb, context)
        return run_output_blocks(self.unet.output_blocks[:-SHALLOW], x, skips, emb, context)


def along(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1) of another tensor's dtype."""
    return values.to(like.dtype).view(-1, 1, 1, 1)
