"""Token merging: similar tokens share one result in the self-attentions of the highest resolution.

Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion". One token of every 2x2 block is chosen at random as a
destination; of all other tokens, those most similar to a destination are merged into it. The mean of each group takes
part in the attention, and all tokens of the group get its result. It is faster, and the image changes a little.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.patching import LayerPatch, apply_patch, remove_patches
from sd.unet import CrossAttention, Downsample, SpatialTransformer, TimestepEmbedSequential, UNetModel, Upsample

MAX_RATIO = 0.75  # one token of every 2x2 block stays


class MergeState:
    """The shared state of the patched layers in one sampling run: the ratio, and a generator of fixed seed.

    size: (h, w) of the feature map that is being processed.
    """

    def __init__(self, ratio: float, size: tuple[int, ...] = (0, 0)):
        self.ratio, self.size = ratio, size
        self.generator = torch.Generator().manual_seed(0)  # not the image's: all rows of a batch share one pattern

    def group_tokens(self, x: Tensor) -> tuple[Tensor, int]:
        """x: (B, N, D), N = h * w. Returns the group of each token, (B, N), and the number of groups."""
        kept, others = (tokens.to(x.device) for tokens in self.choose_destinations())
        merged = min(int(self.ratio * x.shape[1]), len(others)) if len(kept) else 0
        if merged == 0:
            return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), x.shape[1]
        unit = F.normalize(x, dim=-1)
        similarity, group = (unit[:, others] @ unit[:, kept].transpose(1, 2)).max(dim=-1)  # (B, N - kept) each
        alone = similarity.argsort(dim=1, descending=True)[:, merged:]
        numbers = torch.arange(len(kept), x.shape[1] - merged, device=x.device)
        groups = torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
        groups[:, kept] = torch.arange(len(kept), device=x.device)
        groups[:, others] = group.scatter(1, alone, numbers.expand_as(alone))
        return groups, x.shape[1] - merged

    def choose_destinations(self) -> tuple[Tensor, Tensor]:
        """Returns indices into h * w: one random token of each 2x2 block, and all others, with those of odd edges."""
        h, w = self.size
        choice = torch.randint(4, (h // 2, w // 2), generator=self.generator)
        rows, columns = 2 * torch.arange(h // 2)[:, None] + choice // 2, 2 * torch.arange(w // 2) + choice % 2
        kept = (rows * w + columns).flatten()
        rest = torch.ones(h * w, dtype=torch.bool).index_fill(0, kept, False)
        return kept, rest.nonzero().flatten()


def merge_tokens(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """Returns the mean of each group: (B, N, D) to (B, count, D)."""
    batch, _, dim = x.shape
    rows = groups + count * torch.arange(batch, device=x.device)[:, None]  # (B, N), into the groups of all images
    index = rows.flatten()[:, None].expand(-1, dim)  # along dimension 0, where torch is ten times as fast
    means = x.new_zeros(batch * count, dim).scatter_reduce(0, index, x.flatten(0, 1), "mean", include_self=False)
    return means.unflatten(0, (batch, count))


def unmerge_tokens(y: Tensor, groups: Tensor) -> Tensor:
    """Gives each token the result of its group: (B, count, D) to (B, N, D)."""
    rows = groups + y.shape[1] * torch.arange(len(y), device=y.device)[:, None]
    return y.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, groups.shape)


class MergingAttention(LayerPatch, CrossAttention):
    """A self-attention over groups of tokens."""

    STATE = ("merging",)
    merging: MergeState

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, D). context: what keys and values are made of instead of x, or None. Returns (B, N, D)."""
        groups, count = self.merging.group_tokens(x)
        return unmerge_tokens(super().forward(merge_tokens(x, groups, count), context), groups)


class MergingTransformer(LayerPatch, SpatialTransformer):
    """A spatial transformer that gives its self-attention the height and width of the feature map."""

    STATE = ("merging",)
    merging: MergeState

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        self.merging.size = x.shape[-2:]
        return super().forward(x, context)


@contextmanager
def token_merging(unet: UNetModel, ratio: float) -> Iterator[None]:
    """Merges that share of the tokens, 0 to MAX_RATIO, in the highest resolution, for as long as the context lasts.

    At 0 nothing is patched.
    """
    merging = MergeState(ratio)
    try:
        for layer in finest_transformers(unet) if ratio > 0 else []:
            apply_patch(layer, MergingTransformer, merging=merging)
            for block in layer.transformer_blocks:
                apply_patch(block.attn1, MergingAttention, merging=merging)
        yield
    finally:
        remove_patches(unet, MergingTransformer, MergingAttention)


def finest_transformers(unet: UNetModel) -> list[SpatialTransformer]:
    """Returns the transformers of the highest resolution that has any, in the input blocks and in the output blocks."""
    up = reversed(unet.output_blocks)
    return transformers_until(unet.input_blocks, Downsample) + transformers_until(up, Upsample)


def transformers_until(blocks: Iterator[TimestepEmbedSequential], change: type[nn.Module]) -> list[SpatialTransformer]:
    """Returns the transformers of the first resolution with any. blocks: those of full resolution first."""
    found = []
    for block in blocks:
        if found and any(isinstance(layer, change) for layer in block):
            break
        found += [layer for layer in block if isinstance(layer, SpatialTransformer)]
    return found
