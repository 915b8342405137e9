"""DeepCache: the deep part of the U-Net changes little from step to step, so it is computed at some steps only.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free", section 3.3. It is faster, and the image changes a
little. Between two computations the deep features are extrapolated along a straight line in t: Liu et al. 2025, "From
Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", order 1. On the bundled model the line is worth
about 5 dB and takes no time.

The steps are every N-th, or those at which the shallow part has changed by a threshold: Liu et al. 2024, "Timestep
Embedding Tells: It's Time to Cache for Video Diffusion Model" (TeaCache), section 3.3.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sd.optimization.unet_blocks import embed_time, run_input_blocks, run_output_blocks
from sd.unet import UNetModel

SHALLOW = 2  # blocks at each end of the U-Net that every step computes
MAX_EVERY = 20
MIN_THRESHOLD = 0.01


def cache_steps(unet: UNetModel, value: float) -> Callable:
    """Returns a callable (x, t, context) -> eps for one sampling run.

    value: 1 for the U-Net itself; N for the deep part at every N-th call; below 1 the threshold of
    `AdaptiveStepCached`.
    """
    if value == 1:
        return unet
    return AdaptiveStepCached(unet, value) if value < 1 else StepCached(unet, int(value))


class StepCached:
    """A U-Net as a callable (x, t, context) -> eps for one sampling run.

    Every `every`-th call computes all blocks; the calls in between extrapolate the deep features of the last one or
    two. A sampler that calls the U-Net twice a step makes two calls. A call with another context than the last, as at
    the ends of a guidance interval, computes all blocks and forgets the features, because its rows differ.
    """

    def __init__(self, unet: UNetModel, every: int):
        self.unet, self.every = unet, every
        self.context: Tensor | None = None
        self.t: Tensor | None = None  # (B,), of the last computation of all blocks
        self.shallow: Tensor | None = None  # (B, C, H, W), the output of the last shallow input block then
        self.deep_features: Tensor | None = None  # (B, C, H, W), the output of the last deep block then
        self.slope: Tensor | None = None  # (B, C, H, W), their change since the computation before, per unit of t
        self.calls = 0  # since then, that one included

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        unet, skips = self.unet, []
        emb = embed_time(unet, t, x.dtype)
        shallow = run_input_blocks(unet.input_blocks[:SHALLOW], x, skips, emb, context)
        if self.is_due(t, context, shallow):
            self.store_features(self.compute_deep_features(skips, emb, context), t, context)
            self.shallow = shallow
        deep = self.deep_features
        if self.calls > 0 and self.slope is not None:
            deep = deep + expand_dims_like(t - self.t, deep) * self.slope
        self.calls += 1
        return unet.out(run_output_blocks(unet.output_blocks[-SHALLOW:], deep, skips, emb, context))

    def is_due(self, t: Tensor, context: Tensor, shallow: Tensor) -> bool:
        """Returns whether a call computes all blocks. shallow: its (B, C, H, W)."""
        return context is not self.context or self.calls == self.every

    def store_features(self, features: Tensor, t: Tensor, context: Tensor) -> None:
        """Keeps the deep features of a call that computed all blocks, and their slope."""
        self.slope = self.slope_to(features, t, context)
        self.context, self.t, self.deep_features, self.calls = context, t, features, 0

    def slope_to(self, features: Tensor, t: Tensor, context: Tensor) -> Tensor | None:
        """Returns the change of the deep features per unit of t up to these; None where none is needed or known."""
        if context is not self.context or self.every == 1:
            return None
        if torch.equal(t, self.t):  # the second call at one t, as of Heun's method
            return self.slope
        return (features - self.deep_features) / expand_dims_like(t - self.t, features)

    def compute_deep_features(self, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        """skips: outputs of the shallow input blocks. Returns (B, C, H, W), the input of the shallow output blocks."""
        unet, skips = self.unet, list(skips)
        x = run_input_blocks(unet.input_blocks[SHALLOW:], skips[-1], skips, emb, context)
        x = unet.middle_block(x, emb, context)
        return run_output_blocks(unet.output_blocks[:-SHALLOW], x, skips, emb, context)


class AdaptiveStepCached(StepCached):
    """A `StepCached` whose calls compute all blocks where the shallow part has changed by a threshold.

    The change is counted from the last call that computed all blocks, so that small changes add up. At a threshold of
    0 every call computes all blocks. The features are forgotten where they do not continue: with another context, with
    another size, and where t is above that of the last computation, as at the start of another run.
    """

    def __init__(self, unet: UNetModel, threshold: float):
        super().__init__(unet, every=0)
        self.threshold = threshold

    def is_due(self, t: Tensor, context: Tensor, shallow: Tensor) -> bool:
        """Returns whether a call computes all blocks. It waits for a GPU, to read the change."""
        if context is self.context and (shallow.shape != self.shallow.shape or bool((t > self.t).any())):
            self.context = None
        return context is not self.context or not relative_change(self.shallow, shallow) < self.threshold


def relative_change(before: Tensor, now: Tensor) -> float:
    """Returns sum |now - before| / sum |before| over the features of a row, and the largest of all rows."""
    change = (now - before).abs().flatten(1).sum(dim=1) / before.abs().flatten(1).sum(dim=1)
    return change.max().item()


def expand_dims_like(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, 1, 1) in the dtype of `like`."""
    return values.to(like.dtype).view(-1, 1, 1, 1)
