"""Cross-attention by word: the mean over the heads and layers of one resolution, as a patch on the layers sees it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sd.attention import split_heads
from sd.optimization.compile import eagerly
from sd.optimization.patching import LayerPatch, apply_patch, remove_patches
from sd.unet import BasicTransformerBlock, CrossAttention, SpatialTransformer, UNetModel

MAX_POSITIONS = 24 * 24  # of a map: v1-5's third level at 768 x 768 pixels


def mean_attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Return the weights of an attention, the mean over its heads, in fp32: (B, N, M), of which each row sums to 1.

    Vaswani et al. 2017, equation 1, without the values. q: (B, N, heads * d). k: (B, M, heads * d), in any dtype.
    """
    queries, keys = (split_heads(x.float(), heads) for x in (q, k))  # (B, heads, N, d), (B, heads, M, d)
    scores = queries @ keys.mT / math.sqrt(queries.shape[-1])  # (B, heads, N, M); in half precision under autocast
    return scores.float().softmax(dim=-1).mean(dim=1)


class AttentionMaps:
    """Collects the attention of one row of a batch while `row` is set.

    size: (h, w) of the layers to observe. member: (L, E), which of the L text vectors belong to which of E entries.
    """

    def __init__(self, size: tuple[int, int], member: Tensor):
        self.size, self.member = size, member
        self.row: int | None = None
        self.total: Tensor | None = None
        self.layers = 0

    def add(self, q: Tensor, k: Tensor, heads: int) -> None:
        """Add the attention of one layer. q: (B, N, heads * d). k: (B, M, heads * d), M a multiple of L."""
        if self.row is None or q.shape[1] != math.prod(self.size) or self.row >= len(q):
            return
        row = slice(self.row, self.row + 1)
        weights = mean_attention(q[row], k[row], heads)[0]  # (N, M)
        length = len(self.member)
        if weights.shape[1] % length:
            return  # a ControlNet's own text, or another prompt's
        by_vector = weights.unflatten(1, (-1, length)).sum(1)  # repeated contexts share the weight of each vector
        entries = by_vector @ self.member.to(weights.device)  # (N, E); the entries of a position sum to 1
        self.total = entries if self.total is None else self.total + entries
        self.layers += 1

    def take(self) -> Tensor | None:
        """Return the mean over the layers, (E, h, w), None where none ran, and begin anew."""
        total, layers = self.total, self.layers
        self.total, self.layers, self.row = None, 0, None
        return None if total is None else (total / layers).T.unflatten(1, self.size)


class ObservedAttention(LayerPatch, CrossAttention):
    """A cross-attention whose weights are computed once more for `maps`; its output is the unpatched layer's."""

    STATE = ("maps",)

    maps: AttentionMaps

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the same as `CrossAttention.attend`."""
        self.maps.add(q, k, self.heads)
        return super().attend(q, k, v)


@contextmanager
def observed(unet: UNetModel, maps: AttentionMaps | None) -> Iterator[None]:
    """Observe the U-Net's cross-attentions within the context, uncompiled; with None, do nothing."""
    if maps is None:
        yield
        return
    try:
        with eagerly(unet):
            for block in unet.modules():
                if isinstance(block, BasicTransformerBlock):
                    apply_patch(block.attn2, ObservedAttention, maps=maps)
            yield
    finally:
        remove_patches(unet, ObservedAttention)


def map_size(unet: UNetModel, height: int, width: int) -> tuple[int, int] | None:
    """Return (h, w) of the finest feature map with cross-attention and at most MAX_POSITIONS positions.

    It is the coarsest with cross-attention where all are larger, and None where there is none. height, width: of the
    latent.
    """
    sizes = []
    size = (height, width)
    for block in unet.input_blocks:
        if hasattr(block[0], "op"):
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        sizes += [size for layer in block if isinstance(layer, SpatialTransformer)]
    small = [one for one in sizes if math.prod(one) <= MAX_POSITIONS]
    return small[0] if small else sizes[-1] if sizes else None


def to_half(tensor: Tensor) -> Tensor:
    """Return a copy in half precision on the CPU."""
    return tensor.to("cpu", torch.float16, copy=True)
