"""T2I-Adapter: a small network whose features of an image are added to the U-Net's encoder, once at each resolution.

Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion
Models", section 3.2. It reads neither x nor t, so that its features are computed once for an image. Attribute names are
the original checkpoint's.
"""

import torch.nn.functional as F
from torch import Tensor, nn

DOWNSAMPLE = 8  # pixels for each position of the latent, each way
WIDTHS = (320, 640, 1280, 1280)  # of v1-5's resolutions


class T2IAdapter(nn.Module):
    """The network. Defaults are those for v1-5: 77,369,280 parameters.

    in_channels: of the image, 3, or 1 for an adapter that reads gray images. widths: the U-Net's at each resolution.
    blocks: residual blocks for each. light: the small variant of the adapter for colors.
    """

    def __init__(self, in_channels: int = 3, widths: tuple[int, ...] = WIDTHS, blocks: int = 2, light: bool = False):
        super().__init__()
        self.in_channels, self.light, self.hint_downsample = in_channels, light, DOWNSAMPLE
        cells = in_channels * DOWNSAMPLE**2
        if light:
            before = (cells, *widths[:-1])
            self.body = nn.ModuleList(LightLevel(*pair, blocks) for pair in zip(before, widths))
        else:
            self.conv_in = nn.Conv2d(cells, widths[0], 3, padding=1)
            before = (widths[0], *widths[:-1])
            levels = [
                [AdapterBlock(old, new), *(AdapterBlock(new, new) for _ in range(blocks - 1))]
                for old, new in zip(before, widths)
            ]
            self.body = nn.ModuleList(block for level in levels for block in level)
        self.levels = len(widths)

    def embed_hint(self, hint: Tensor) -> Tensor:
        """hint: (B, 3, 8h, 8w) in [0, 1]. Returns each cell's pixels as channels, (B, 64 * in_channels, h, w)."""
        if self.in_channels == 1:
            hint = hint.mean(dim=1, keepdim=True)
        return F.pixel_unshuffle(hint, DOWNSAMPLE)

    def forward(self, hint: Tensor) -> list[Tensor]:
        """hint: from `embed_hint`. Returns what is added at each resolution, (B, width, h / 2^i, w / 2^i)."""
        features, x = [], hint if self.light else self.conv_in(hint)
        blocks = len(self.body) // self.levels
        for i in range(self.levels):
            x = halve(x) if i > 0 else x
            for block in self.body[i * blocks : (i + 1) * blocks]:
                x = block(x)
            features.append(x)
        return features


def halve(x: Tensor) -> Tensor:
    """Returns the mean of each 2 x 2 positions; sides are rounded up, as in the U-Net."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class AdapterBlock(nn.Module):
    """A residual block, after a convolution to another width where that changes."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 1):
        super().__init__()
        self.in_conv = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        self.block1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.block2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, h, w). Returns (B, C', h, w)."""
        x = self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class LightLevel(nn.Module):
    """A resolution of the light variant: residual blocks at a quarter of the width."""

    def __init__(self, channels: int, out_channels: int, blocks: int):
        super().__init__()
        width = out_channels // 4
        self.in_conv = nn.Conv2d(channels, width, 1)
        self.body = nn.Sequential(*(AdapterBlock(width, width, kernel=3) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, h, w). Returns (B, C', h, w)."""
        return self.out_conv(self.body(self.in_conv(x)))
