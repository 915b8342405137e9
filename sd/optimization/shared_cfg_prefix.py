"""The U-Net's layers before its first cross-attention, computed once for cond and uncond.

Both rows of a guided batch are the same latent at the same t. Until the first cross-attention nothing distinguishes
them: a convolution, a ResBlock and, in v1-5, one of the five self-attentions over 4,096 tokens.
"""

import torch
from torch import Tensor

from sd.optimization.patching import LayerPatch, apply_patch, remove_patches
from sd.optimization.unet_blocks import embed_time, run_input_blocks, run_output_blocks
from sd.unet import BasicTransformerBlock, SpatialTransformer, UNetModel


class SharedPrefixUNet(LayerPatch, UNetModel):
    """Runs a batch of two equal rows as one row, which the `ExpandingBlock` expands to two.

    Where one row and two rows are added, the one is broadcast: the time embedding, and the residual around the
    transformer.
    """

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, h, w). t: (B,). context: (B, M, D). Returns eps, (B, 4, h, w)."""
        if len(x) != 2 or not (torch.equal(x[0], x[1]) and torch.equal(t[0], t[1])):
            return super().forward(x, t, context)
        skips = []
        emb = embed_time(self, t[:1], x.dtype)
        x = run_input_blocks(self.input_blocks, x[:1], skips, emb, context)
        skips = [skip.expand(2, -1, -1, -1) for skip in skips]
        x = self.middle_block(x, emb, context)
        return self.out(run_output_blocks(self.output_blocks, x, skips, emb, context))


class ExpandingBlock(LayerPatch, BasicTransformerBlock):
    """The U-Net's first transformer block: x has as many rows as the context after the self-attention."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (1 or B, N, D). context: (B, M, D). Returns (B, N, D)."""
        x = x + self.attn1(self.norm1(x))
        x = x.expand(len(context), -1, -1)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


def share_prefix(unet: UNetModel) -> None:
    """Patches the U-Net and its first transformer block."""
    apply_patch(unet, SharedPrefixUNet)
    first = next(layer for layer in unet.modules() if isinstance(layer, SpatialTransformer))
    apply_patch(first.transformer_blocks[0], ExpandingBlock)


def unshare_prefix(unet: UNetModel) -> None:
    """Removes the patches."""
    remove_patches(unet, SharedPrefixUNet, ExpandingBlock)
