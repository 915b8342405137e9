"""DeepCache: the deep part of the U-Net changes little from step to step, so it is computed every few steps only.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free", section 3.3. It is faster, and the image changes a
little. Between two computations the deep features are extrapolated along a straight line in t: Liu et al. 2025, "From
Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", order 1. On the bundled model the line is worth
about 5 dB and takes no time.
"""

from torch import Tensor

from sd.optimization.unet_blocks import embed_time, run_input_blocks, run_output_blocks
from sd.unet import UNetModel

SHALLOW = 2  # blocks at each end of the U-Net that every step computes
MAX_EVERY = 20


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
        self.deep_features: Tensor | None = None  # (B, C, H, W), the output of the last deep block then
        self.slope: Tensor | None = None  # (B, C, H, W), their change since the computation before, per unit of t
        self.calls = 0  # since then, that one included

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        unet, skips = self.unet, []
        emb = embed_time(unet, t, x.dtype)
        run_input_blocks(unet.input_blocks[:SHALLOW], x, skips, emb, context)
        if context is not self.context or self.calls == self.every:
            self.store_features(self.compute_deep_features(skips, emb, context), t, context)
        deep = self.deep_features
        if self.calls > 0 and self.slope is not None:
            deep = deep + expand_dims_like(t - self.t, deep) * self.slope
        self.calls += 1
        return unet.out(run_output_blocks(unet.output_blocks[-SHALLOW:], deep, skips, emb, context))

    def store_features(self, features: Tensor, t: Tensor, context: Tensor) -> None:
        """Keeps the deep features of a call that computed all blocks, and their slope."""
        same = context is self.context and self.every > 1
        self.slope = (features - self.deep_features) / expand_dims_like(t - self.t, features) if same else None
        self.context, self.t, self.deep_features, self.calls = context, t, features, 0

    def compute_deep_features(self, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        """skips: outputs of the shallow input blocks. Returns (B, C, H, W), the input of the shallow output blocks."""
        unet, skips = self.unet, list(skips)
        x = run_input_blocks(unet.input_blocks[SHALLOW:], skips[-1], skips, emb, context)
        x = unet.middle_block(x, emb, context)
        return run_output_blocks(unet.output_blocks[:-SHALLOW], x, skips, emb, context)


def expand_dims_like(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes (B,) to (B, 1, 1, 1) in the dtype of `like`."""
    return values.to(like.dtype).view(-1, 1, 1, 1)
