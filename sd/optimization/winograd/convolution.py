"""3x3 convolutions with 16 products where the definition has 36: F(2x2, 3x3) of Winograd's minimal filtering.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1. The input and the weights are
transformed by sums, so that a 2x2 tile of the output needs 16 products for each pair of channels; over all tiles these
are 16 matrix products. Each of them sums over the channels only, a ninth of the terms of the definition: the error in
fp32 is two to four times smaller than that of PyTorch's convolution.

The gradient with respect to the input is a convolution too, with the weights turned by 180 degrees and the channels
swapped. To turn a kernel exchanges the first and the last of the four numbers that it becomes along each side, so
`winograd_conv2d_backward` reads the same transformed weights in another order.

Tiles of 4x4 are not used. They would save another factor of 1.8, but their error is above that of PyTorch's
convolution where there are fewer than 640 channels, and their weights would take four times the memory.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BUFFER = 2**22  # numbers in each of two buffers: 16 MB, so that they stay in the cache
BIAS_TERM = 5  # the one of the 16 products that each output of a tile adds once
Order = tuple[int, int, int, int]  # of the four numbers along each side, as the weights have them
AS_IT_IS: Order = (0, 1, 2, 3)
TURNED: Order = (3, 1, 2, 0)


def winograd_conv2d(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves with padding 1 and stride 1, without gradients.

    x: (B, C, H, W). blocks: (16, C, K), as `transform_weight` returns them. bias: (K,). Returns (B, K, H, W), with the
    channels last in memory. Fastest where x has them last too.
    """
    return convolve(x, blocks, bias, AS_IT_IS)


def winograd_conv2d_backward(gradient: Tensor, blocks: Tensor) -> Tensor:
    """Returns the gradient with respect to the input of `winograd_conv2d`, (B, C, H, W).

    gradient: with respect to the output, (B, K, H, W). blocks: (16, C, K).
    """
    return convolve(gradient, blocks.mT, None, TURNED)


def convolve(x: Tensor, blocks: Tensor, bias: Tensor | None, order: Order) -> Tensor:
    """Convolves in parts that fit in the buffers; see `winograd_conv2d`. order: of the numbers in `blocks`."""
    size, channels = x.shape[-2:], blocks.shape[1:]
    height, width = (math.ceil(side / 2) for side in size)  # in tiles
    x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    y = x.new_empty(len(x), 2 * height, 2 * width, channels[1])
    parts = list(split_tiles(len(x), height, width, max(channels)))
    most = max((len(x[some]) * (rows.stop - rows.start) for some, rows in parts), default=0)
    buffers = x.new_empty(2, most * 16 * width * max(channels))
    for some, rows in parts:
        above, below = 2 * rows.start - 1, 2 * rows.stop + 1  # the rows of x that these tiles read
        padding = (0, 0, 1, 2 * width + 1 - size[1], max(0, -above), max(0, below - size[0]))
        tiles = F.pad(x[some, max(0, above) : below], padding)  # (b, 2 h + 2, 2 width + 2, C)
        convolve_tiles(tiles, blocks, bias, y[some, 2 * rows.start : 2 * rows.stop], buffers, order)
    return y[:, : size[0], : size[1]].permute(0, 3, 1, 2)


def split_tiles(images: int, height: int, width: int, channels: int) -> Iterator[tuple[slice, slice]]:
    """Returns parts that fit in the buffers: some whole images, or some of the rows of one. height, width: in tiles."""
    room = max(1, BUFFER // (16 * width * channels))  # in rows of tiles
    together, rows = max(1, room // max(1, height)), min(room, height)
    rows = math.ceil(height / math.ceil(height / rows))  # about equally many in each part
    for image in range(0, images, together):
        for row in range(0, height, rows):
            yield slice(image, min(image + together, images)), slice(row, min(row + rows, height))


def convolve_tiles(
    tiles: Tensor, blocks: Tensor, bias: Tensor | None, y: Tensor, buffers: Tensor, order: Order
) -> None:
    """Writes the convolution of (b, 2 h + 2, 2 w + 2, C) without padding to y, (b, 2 h, 2 w, K).

    buffers: room for sums and products, two rows of at least 16 * b * h * w * max(C, K) numbers. order: of the numbers
    in `blocks` along each side.
    """
    count = len(y), y.shape[1] // 2, y.shape[2] // 2  # b, h, w
    in_channels, out_channels = blocks.shape[1:]

    def buffer(i: int, *shape: int) -> Tensor:
        return buffers[i, : math.prod(shape)].view(shape)

    rows = buffer(1, 4, *count[:2], tiles.shape[2], in_channels)
    transform_input(tiles.unfold(1, 4, 2).unbind(-1), ordered(rows, 0, order))
    sums = buffer(0, 4, 4, *count, in_channels)
    transform_input(rows.unfold(3, 4, 2).unbind(-1), ordered(sums, 1, order))
    products = buffer(1, 16, math.prod(count), out_channels)
    torch.bmm(sums.view(16, -1, in_channels), blocks, out=products)
    if bias is not None:
        products[BIAS_TERM].add_(bias)
    rows = buffer(0, 2, 4, *count, out_channels)
    transform_output(ordered(products.view(4, 4, *count, out_channels), 0, order), rows)
    outputs = y.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(2, 4, 0, 1, 3, 5)  # (2, 2, b, h, w, K)
    transform_output(ordered(rows, 1, order), outputs.unbind(1))


def ordered(numbers: Tensor, dim: int, order: Order) -> list[Tensor]:
    """Returns the four slices along a dimension in this order."""
    slices = numbers.unbind(dim)
    return [slices[place] for place in order]


def transform_input(d: Sequence[Tensor] | Tensor, out: Sequence[Tensor] | Tensor) -> None:
    """Writes four sums of four neighbors along one side: the paper's d -> Bᵀ d."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def transform_output(m: Sequence[Tensor] | Tensor, out: Sequence[Tensor] | Tensor) -> None:
    """Writes two neighboring outputs from four products along one side: the paper's m -> Aᵀ m."""
    torch.add(m[0], m[1], out=out[0]).add_(m[2])
    torch.sub(m[1], m[2], out=out[1]).sub_(m[3])
