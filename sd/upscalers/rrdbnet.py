"""RRDBNet, the network of ESRGAN and Real-ESRGAN: an image to the same image in twice or four times the size.

Wang et al. 2018, "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", section 3.1. Attribute names are
Real-ESRGAN's. Values are 0 to 1.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL = 0.2  # the share of a block's output that is added to its input


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each of which reads the block's input and the outputs of all before it."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        for i in range(1, 6):
            inputs, outputs = width + (i - 1) * growth, growth if i < 5 else width
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, width, H, W). Returns the same shape."""
        features = [x]
        for i in range(1, 5):
            features.append(leaky(getattr(self, f"conv{i}")(torch.cat(features, dim=1))))
        return x + RESIDUAL * self.conv5(torch.cat(features, dim=1))


class RRDB(nn.Module):
    """Three residual dense blocks with a residual around them."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.rdb1 = ResidualDenseBlock(width, growth)
        self.rdb2 = ResidualDenseBlock(width, growth)
        self.rdb3 = ResidualDenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, width, H, W). Returns the same shape."""
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """The network. Defaults are ESRGAN's and RealESRGAN_x4plus'.

    doublings: how often it doubles the size at its end. shrink: Real-ESRGAN's x2 model first packs squares of 2 x 2
    pixels into channels, so that its result has 4 / 2 times the size.
    """

    def __init__(self, width: int = 64, blocks: int = 23, growth: int = 32, doublings: int = 2, shrink: int = 1):
        super().__init__()
        self.shrink, self.scale, self.doublings = shrink, 2**doublings // shrink, doublings
        self.conv_first = nn.Conv2d(3 * shrink**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        for i in range(1, doublings + 1):
            setattr(self, f"conv_up{i}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W) in [0, 1], sides multiples of `shrink`. Returns (B, 3, scale * H, scale * W)."""
        x = self.conv_first(F.pixel_unshuffle(x, self.shrink) if self.shrink > 1 else x)
        x = x + self.conv_body(self.body(x))
        for i in range(1, self.doublings + 1):
            x = leaky(getattr(self, f"conv_up{i}")(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(leaky(self.conv_hr(x)))


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def upscaled_tiles(
    network: RRDBNet, image: Tensor, tile: int = 256, margin: int = 32
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Enlarges an image (1, 3, H, W) in tiles, so that the network's memory does not grow with the image.

    tile: pixels of a tile's side. margin: pixels around it that the network sees too; both multiples of `shrink`.
    Yields the rows and columns of the enlarged image, and its pixels there, (1, 3, rows, columns).
    """
    height, width = image.shape[-2:]
    multiple, scale = network.shrink, network.scale
    padded = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y, x = max(top - margin, 0), max(left - margin, 0)
            part = network(padded[..., y : bottom + margin, x : right + margin])
            rows, columns = slice(top * scale, bottom * scale), slice(left * scale, right * scale)
            part = part[..., (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale]
            yield rows, columns, part
