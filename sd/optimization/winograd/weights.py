"""The weights of a 3x3 convolution, transformed for `winograd_conv2d`, from which they come back bit for bit.

The transform is invertible but for its rounding to fp32. What rounding took, a few units in a weight's last place, is
kept in a byte for each weight that it touches. So no weight is stored twice: in place of 36 bytes there are 70.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sd.optimization.prepacked_conv import PackedWeight

CHUNK = 2**15  # pairs of channels that are transformed at once: in fp64 they take 4 MB
ROUNDED = [1, 3, 4, 5, 7]  # of the 9 positions of a kernel: the corners come back exactly
LARGEST = 127


def transform_weight(weight: Tensor) -> Tensor:
    """Returns the paper's G g Gᵀ, rounded once from fp64. weight: (K, C, 3, 3). Returns (16, C, K), fp32."""
    blocks = weight.new_empty(4, 4, weight.shape[1], weight.shape[0])
    for rows in row_chunks(weight.shape):
        g = weight[rows].double().permute(2, 3, 1, 0)  # (3, 3, C, k)
        for _ in range(2):  # along the height, then along the width
            ends, middle = (g[0] + g[2]) / 2, g[1] / 2
            g = torch.stack([g[0], ends + middle, ends - middle, g[2]]).transpose(0, 1)
        blocks[..., rows] = g
    return blocks.flatten(0, 1)


def invert_transform(blocks: Tensor) -> Tensor:
    """Returns the weight that was transformed, up to rounding. blocks: (16, C, K). Returns (K, C, 3, 3)."""
    g = blocks.double().unflatten(0, (4, 4))
    for _ in range(2):
        g = torch.stack([g[0], g[1] - g[2], g[3]]).transpose(0, 1)
    return g.permute(3, 2, 0, 1).float().contiguous()


def row_chunks(shape: torch.Size) -> list[slice]:
    """Returns slices of the K rows of a weight of this shape, (K, C, 3, 3)."""
    step = max(1, CHUNK // shape[1])
    return [slice(first, first + step) for first in range(0, shape[0], step)]


def kernel_bits(weight: Tensor) -> Tensor:
    """Returns the bits of those weights that the transform rounds, as integers. Returns (K, C, 5), int32."""
    return weight.contiguous().view(torch.int32).flatten(2)[..., ROUNDED]


@dataclass
class TransformedWeight(PackedWeight):
    """A weight as `transform_weight` returns it, in `blocks`.

    lost: what has to be added to the bits of the inverse, (K, C, 5). It is 0 where that takes more than a byte; there,
    far_places (N,), of the flattened positions, and far (N,) have it.
    """

    lost: Tensor
    far_places: Tensor
    far: Tensor

    @classmethod
    def from_weight(cls, weight: Tensor, **facts: Any) -> "TransformedWeight":
        """weight: (K, C, 3, 3), fp32. facts: the fields of `PackedWeight` beside `blocks`."""
        blocks = transform_weight(weight)
        lost = torch.empty(*weight.shape[:2], len(ROUNDED), dtype=torch.int8)
        places, far = [], []
        for rows in row_chunks(weight.shape):
            # Differences of bits wrap around at 32 bits, and so does the sum that undoes them.
            missing = kernel_bits(weight[rows]) - kernel_bits(invert_transform(blocks[..., rows]))
            is_far = (missing > LARGEST) | (missing < -LARGEST)
            places.append(is_far.flatten().nonzero()[:, 0] + rows.start * lost[0].numel())
            far.append(missing[is_far])
            lost[rows] = missing.masked_fill_(is_far, 0)
        return cls(blocks=blocks, lost=lost, far_places=torch.cat(places).int(), far=torch.cat(far), **facts)

    def unpack(self) -> Tensor:
        """Returns a copy of the weight, (K, C, 3, 3), in its own memory layout."""
        lost = self.lost.int()
        lost.view(-1)[self.far_places] = self.far
        weight = torch.empty_strided(self.shape, self.strides)
        for rows in row_chunks(self.shape):
            found = invert_transform(self.blocks[..., rows])
            found.view(torch.int32).flatten(2)[..., ROUNDED] += lost[rows]
            weight[rows] = found
        return weight
