"""A loss that draws the cross-attention of a phrase onto its object, from the boxes that every scene has.

Wang et al. 2023, "TokenCompose: Text-to-Image Diffusion with Token-level Supervision", equation 4. Without it the
attention of a noun stays nearly uniform over the image, and two objects take the mixture of both descriptions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.patching import LayerPatch, apply_patch, remove_patches
from sd.pipeline.tracing.attention_maps import mean_attention
from sd.training.pretrain.scenes.attention import covered
from sd.unet import BasicTransformerBlock, CrossAttention

Box = tuple[int, int, int, int]  # left, top, width, height in pixels of an image of SIZE x SIZE
MAX_PHRASES = 2  # in a caption


def box_masks(boxes: Sequence[Box], cells: int) -> Tensor:
    """Return (cells, cells): the share of each cell that lies in any of the boxes, which do not overlap."""
    total = torch.zeros(cells, cells)
    for left, top, width, height in boxes:
        total += covered(top, height, cells)[:, None] * covered(left, width, cells)[None]
    return total


def find_tokens(tokens: Sequence[int], phrase: Sequence[int]) -> range | None:
    """Return the places of a phrase's tokens in a caption's; None where it occurs never or twice."""
    places = [i for i in range(len(tokens)) if list(tokens[i : i + len(phrase)]) == list(phrase)]
    return range(places[0], places[0] + len(phrase)) if len(places) == 1 and phrase else None


class AttentionLoss:
    """The loss of the cross-attentions of one call of the U-Net, which `collecting` adds layer by layer."""

    def __init__(self) -> None:
        self.members = torch.zeros(0, MAX_PHRASES, 0)  # (B, K, L): which of the L text vectors belong to each phrase
        self.masks = torch.zeros(0, MAX_PHRASES, 0, 0)  # (B, K, h, w): where each phrase's objects are
        self.weights = torch.zeros(0)  # (B,)
        self.layers: list[Tensor] = []

    def expect(self, members: Tensor, masks: Tensor, weights: Tensor) -> None:
        """Set the targets of the next call. A phrase without members does not count.

        members: (B, K, L) of 0 and 1. masks: (B, K, h, w), square. weights: (B,) of each example.
        """
        self.members, self.masks, self.weights, self.layers = members, masks, weights, []

    def add(self, q: Tensor, k: Tensor, heads: int) -> None:
        """Add one layer. q: (B, N, heads * d). k: (B, L, heads * d)."""
        side = math.isqrt(q.shape[1])
        by_phrase = mean_attention(q, k, heads) @ self.members.to(q.device).mT  # (B, N, K)
        masks = F.adaptive_avg_pool2d(self.masks.to(q.device), side).flatten(2).mT  # (B, N, K)
        inside = (by_phrase * masks).sum(dim=1) / by_phrase.sum(dim=1).clamp(min=1e-9)  # (B, K)
        counts = self.members.to(q.device).any(dim=2) * self.weights.to(q.device)[:, None]  # (B, K)
        self.layers.append((counts * (1 - inside).square()).sum() / counts.sum().clamp(min=1e-9))

    def value(self) -> Tensor:
        """Return the mean over the layers: 0 where all attention of each phrase lies on its objects."""
        return torch.stack(self.layers).mean()


class GroundedAttention(LayerPatch, CrossAttention):
    """A cross-attention whose weights are computed once more for `loss`; its output is the unpatched layer's."""

    STATE = ("loss",)

    loss: AttentionLoss

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the same as `CrossAttention.attend`."""
        self.loss.add(q, k, self.heads)
        return super().attend(q, k, v)


@contextmanager
def collecting(unet: nn.Module, loss: AttentionLoss) -> Iterator[None]:
    """Add the U-Net's cross-attentions to the loss within the context."""
    try:
        for block in unet.modules():
            if isinstance(block, BasicTransformerBlock):
                apply_patch(block.attn2, GroundedAttention, loss=loss)
        yield
    finally:
        remove_patches(unet, GroundedAttention)
