"""Gradient checkpointing: blocks of the U-Net discard their activations and recompute them in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". The blocks stay the same objects with the same
weights, and `disable_gradient_checkpointing` restores their classes.
"""

from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from sd.optimization.malloc_trim import trim_heap
from sd.optimization.patching import LayerPatch, apply_patch, plain_class, remove_patches
from sd.unet import Downsample, ResBlock, SpatialTransformer, UNetModel, Upsample


class Recomputed(LayerPatch, nn.Module):
    """A patch of a block: only its input is kept for the backward pass."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if not is_grad_enabled():
            return super().forward(*inputs)
        return checkpoint(super().forward, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing is random


class RecomputedResBlock(Recomputed, ResBlock):
    pass


class RecomputedTransformer(Recomputed, SpatialTransformer):
    pass


class LevelEnd(LayerPatch, nn.Module):
    """A patch of a sampling block: memory that the previous level freed is returned to the system, in both passes.

    The tensors of the next level have other sizes and fit badly into the freed blocks: about 150 MB of them at 512 x
    512.
    """

    def forward(self, *inputs: Any) -> Tensor:
        trim_heap()
        x = super().forward(*inputs)
        if x.requires_grad:
            x.register_hook(trim_heap)
        return x


class LevelEndDown(LevelEnd, Downsample):
    pass


class LevelEndUp(LevelEnd, Upsample):
    pass


RECOMPUTED = {
    ResBlock: RecomputedResBlock,
    SpatialTransformer: RecomputedTransformer,
    Downsample: LevelEndDown,
    Upsample: LevelEndUp,
}


def enable_gradient_checkpointing(unet: UNetModel) -> None:
    """Make every block compute twice in a training step: about a third slower, with far less memory."""
    for block in unet.modules():
        if plain_class(block) in RECOMPUTED:
            apply_patch(block, RECOMPUTED[plain_class(block)])


def disable_gradient_checkpointing(unet: UNetModel) -> None:
    """Restore the blocks' own classes."""
    remove_patches(unet, *RECOMPUTED.values())
