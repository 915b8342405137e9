"""Memory for time: blocks of the U-Net that forget what is inside them and compute it again on the way back.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". A patch from outside: the blocks stay the same
objects with the same weights, and `forget_less` takes it out again.
"""

from torch import Tensor, is_grad_enabled
from torch.utils.checkpoint import checkpoint

from sd.unet import ResBlock, SpatialTransformer, UNetModel


class Recomputed:
    """Beside a block's own class: only its input is kept for the backward pass."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if not is_grad_enabled():
            return super().forward(*inputs)
        return checkpoint(super().forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing is drawn


class RecomputedResBlock(Recomputed, ResBlock):
    pass


class RecomputedTransformer(Recomputed, SpatialTransformer):
    pass


RECOMPUTED = {ResBlock: RecomputedResBlock, SpatialTransformer: RecomputedTransformer}


def forget_more(unet: UNetModel) -> None:
    """Every block is computed twice in a training step: about a third slower, with far less memory."""
    for block in unet.modules():
        block.__class__ = RECOMPUTED.get(type(block), type(block))


def forget_less(unet: UNetModel) -> None:
    plain = {recomputed: block for block, recomputed in RECOMPUTED.items()}
    for block in unet.modules():
        block.__class__ = plain.get(type(block), type(block))
