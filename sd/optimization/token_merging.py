"""Token merging: places that look alike share one answer in the widest self-attentions. Quicker, not quite the same.

Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion". One place of every 2x2 is drawn by lot; of all the
others, those that are most like one of these join it. The mean of each group takes part in the attention, and all of
the group get its answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.unet import Downsample, SpatialTransformer, TimestepEmbedSequential, UNetModel, Upsample

MAX_RATIO = 0.75  # of every 2x2 places one stays


class Merging:
    """What the patched layers of one walk share: how much to merge, and lots, the same in every walk.

    size: (h, w) of the feature map that is on its way through.
    """

    def __init__(self, ratio: float, size: tuple[int, int] = (0, 0)):
        self.ratio, self.size = ratio, size
        self.generator = torch.Generator().manual_seed(0)  # not the picture's: a batch has one pattern for all

    def groups(self, x: Tensor) -> tuple[Tensor, int]:
        """x: (B, N, D), N = h * w. Returns the group of each place, (B, N), and how many groups there are."""
        stays, others = (places.to(x.device) for places in self.draw_lots())
        joining = min(int(self.ratio * x.shape[1]), len(others)) if len(stays) else 0
        if joining == 0:
            return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), x.shape[1]
        unit = F.normalize(x, dim=-1)
        likeness, group = (unit[:, others] @ unit[:, stays].transpose(1, 2)).max(dim=-1)  # (B, N - stays) each
        alone = likeness.argsort(dim=1, descending=True)[:, joining:]
        numbers = torch.arange(len(stays), x.shape[1] - joining, device=x.device)
        groups = torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
        groups[:, stays] = torch.arange(len(stays), device=x.device)
        groups[:, others] = group.scatter(1, alone, numbers.expand_as(alone))
        return groups, x.shape[1] - joining

    def draw_lots(self) -> tuple[Tensor, Tensor]:
        """Places, as indices into h * w: one of each 2x2, which stays, and all others, those of odd edges too."""
        h, w = self.size
        lot = torch.randint(4, (h // 2, w // 2), generator=self.generator)
        rows, columns = 2 * torch.arange(h // 2)[:, None] + lot // 2, 2 * torch.arange(w // 2) + lot % 2
        stays = (rows * w + columns).flatten()
        rest = torch.ones(h * w, dtype=torch.bool).index_fill(0, stays, False)
        return stays, rest.nonzero().flatten()


def together(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """The mean of each group: (B, N, D) to (B, count, D)."""
    batch, _, dim = x.shape
    rows = groups + count * torch.arange(batch, device=x.device)[:, None]  # (B, N), into all pictures' groups
    index = rows.flatten()[:, None].expand(-1, dim)  # along dimension 0, where torch is ten times as quick
    means = x.new_zeros(batch * count, dim).scatter_reduce(0, index, x.flatten(0, 1), "mean", include_self=False)
    return means.unflatten(0, (batch, count))


def apart(y: Tensor, groups: Tensor) -> Tensor:
    """To each place what its group has: (B, count, D) to (B, N, D)."""
    rows = groups + y.shape[1] * torch.arange(len(y), device=y.device)[:, None]
    return y.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, groups.shape)


class MergingAttention:
    """Before a self-attention's own class."""

    merging: Merging

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        groups, count = self.merging.groups(x)
        return apart(super().forward(together(x, groups, count)), groups)


class MergingTransformer:
    """Before a SpatialTransformer's own class: tells its self-attention how the places lie."""

    merging: Merging

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        self.merging.size = x.shape[-2:]
        return super().forward(x, context)


@cache
def before(patch: type, own: type) -> type:
    return type(f"{patch.__name__}Before{own.__name__}", (patch, own), {})


@contextmanager
def token_merging(unet: UNetModel, ratio: float) -> Iterator[None]:
    """While it lasts, the self-attentions of the highest resolution merge that share of their places, 0 to MAX_RATIO.

    Layers only change their class, as with LoRA, and change back: no bit and no key is touched. At 0 nothing changes.
    """
    transformers = finest(unet) if ratio > 0 else []
    patches = [(layer, MergingTransformer) for layer in transformers]
    patches += [(block.attn1, MergingAttention) for layer in transformers for block in layer.transformer_blocks]
    own, merging = [type(layer) for layer, _ in patches], Merging(ratio)
    try:
        for layer, patch in patches:
            layer.__class__, layer.merging = before(patch, type(layer)), merging
        yield
    finally:
        for (layer, _), plain in zip(patches, own):
            layer.__class__ = plain
            del layer.merging


def finest(unet: UNetModel) -> list[SpatialTransformer]:
    """The transformers of the highest resolution that has any, on the way down and on the way up."""
    up = reversed(unet.output_blocks)
    return transformers_until(unet.input_blocks, Downsample) + transformers_until(up, Upsample)


def transformers_until(blocks: Iterator[TimestepEmbedSequential], change: type[nn.Module]) -> list[SpatialTransformer]:
    """Those of the first resolution with any; blocks: from the picture's side."""
    found = []
    for block in blocks:
        if found and any(isinstance(layer, change) for layer in block):
            break
        found += [layer for layer in block if isinstance(layer, SpatialTransformer)]
    return found
