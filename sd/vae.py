"""The autoencoder: a picture to a latent an eighth of its size each way, and back.

Kingma & Welling 2013, "Auto-Encoding Variational Bayes", in the shape of Rombach et al. 2022, "High-Resolution Image
Synthesis with Latent Diffusion Models", appendix G. Attribute names are the checkpoint's. They come from another
lineage than the U-Net's: `norm1`, `conv1`, `nin_shortcut` here are `in_layers.0`, `in_layers.2`, `skip_connection`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.attention import attention

LATENT_SCALE = 0.18215  # brings the latents of v1 to a standard deviation of about 1, which diffusion counts on


def normalize(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)  # 1e-5 in the U-Net's ResBlocks


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x), in place unless a gradient will ask for x: 134 MB where a 512 x 512 picture is widest."""
    return F.silu(x, inplace=not x.requires_grad)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = normalize(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention of every place with every other, one head as wide as the block."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = normalize(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, H*W, C) each
        h = attention(q, k, v, heads=1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))  # (B, C, H, W)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only; the U-Net pads all four sides


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Some ResnetBlocks at one size."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )

    def layers(self) -> list[nn.Module]:
        """For the network to run one by one: while it runs a whole level, it would hold what the level began with."""
        return [*self.block, *(part for name, part in self.named_children() if name != "block")]


class DownLevel(Level):
    """Then half the size (not after the last level)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool):
        super().__init__(in_channels, out_channels, blocks)
        if not last:
            self.downsample = Downsample(out_channels)


class UpLevel(Level):
    """Then twice the size (not after the last level)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool):
        super().__init__(in_channels, out_channels, blocks)
        if not last:
            self.upsample = Upsample(out_channels)


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, 2 * z_channels, H/8, W/8): means and log-variances, before `quant_conv`."""

    def __init__(self, channels: int, channel_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [channels * mult for mult in channel_mult]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(before, width, num_res_blocks, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip([channels, *widths], widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = normalize(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            for layer in level.layers():
                h = layer(h)
        return self.conv_out(swish(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, 3, 8h, 8w). Levels are numbered by size, so the last, `up.3`, runs first."""

    def __init__(self, channels: int, channel_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [channels * mult for mult in channel_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            UpLevel(before, width, num_res_blocks + 1, last=i == 0)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths))
        )
        self.norm_out = normalize(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for layer in level.layers():
                h = layer(h)
        return self.conv_out(swish(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Defaults are v1-5: 83,653,863 parameters, an eighth of the size each way, 4 channels."""

    def __init__(
        self,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
    ):
        super().__init__()
        self.z_channels = z_channels
        self.downsample = 2 ** (len(channel_mult) - 1)  # pixels per latent place, each way
        self.encoder = Encoder(channels, channel_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(channels, channel_mult, num_res_blocks, z_channels)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, 3, H, W) in [-1, 1], sides multiples of 8. Returns mean and logvar, (B, 4, H/8, W/8), unscaled."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latent: Tensor) -> Tensor:
        """latent: (B, 4, h, w), unscaled. Returns (B, 3, 8h, 8w), in [-1, 1] but for overshoot."""
        return self.decoder(self.post_quant_conv(latent))


def sample_latent(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """A draw from the encoder's Gaussian, mean + exp(logvar / 2) noise (Kingma & Welling 2013, section 2.4)."""
    return mean + torch.exp(0.5 * logvar) * noise
