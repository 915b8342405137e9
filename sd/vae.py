"""The autoencoder: from an image to a latent of an eighth of its height and width, and back.

Kingma & Welling 2013, "Auto-Encoding Variational Bayes", in the shape of Rombach et al. 2022, "High-Resolution Image
Synthesis with Latent Diffusion Models", appendix G. Attribute names are the checkpoint's. They come from another
lineage than the U-Net's: `norm1`, `conv1`, `nin_shortcut` here are `in_layers.0`, `in_layers.2`, `skip_connection`.

An image of 512 x 512 has 786,432 values, its latent of 4 x 64 x 64 has 16,384. Diffusion works on the latent, where a
step takes a fraction of the time; the VAE is trained before and fills in the texture that the latent does not hold.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.attention import attention

# The encoder's latents of v1 have a standard deviation of about 5.5, which is 1 / 0.18215. Diffusion counts on 1: its
# noise levels are relative to the data. So diffusion runs on `latent * LATENT_SCALE`.
LATENT_SCALE = 0.18215


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the VAE's norm for (B, channels, H, W): mean and variance are taken in each of 32 groups of channels.

    Unlike batch norm it depends on no other image of the batch. The epsilon is 1e-5 in the U-Net's ResBlocks.
    """
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions of 3 x 3 around which the input is added; the U-Net's ResBlock without the time."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)  # so that the two can be added

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))  # (B, out_channels, H, W)
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention of every position with every other, with one head as wide as the block."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        # A convolution of 1 x 1 is a linear layer applied at every position.
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, H*W, C) each
        h = attention(q, k, v, heads=1)  # (B, H*W, C)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))  # (B, C, H, W)


class Downsample(nn.Module):
    """Halves height and width with a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H/2, W/2)."""
        # One row and one column of zeros, at the bottom and the right only; the U-Net pads all four sides. The weights
        # were trained with this: padding as in the U-Net would move every window of 3 x 3 by a pixel.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width: every position becomes 2 x 2 equal ones, and a convolution smooths them."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, 2H, 2W)."""
        # A transposed convolution would do both in one, but leaves a checkerboard where its windows overlap unevenly.
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class DownLevel(nn.Module):
    """ResnetBlocks at one size, then half the size (not after the last level)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        if not last:
            self.downsample = Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, out_channels, H/2, W/2), or of the same size from the last level."""
        for block in self.block:
            x = block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class UpLevel(nn.Module):
    """ResnetBlocks at one size, then twice the size (not after the last level)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        if not last:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_channels, H, W). Returns (B, out_channels, 2H, 2W), or of the same size from the last level."""
        for block in self.block:
            x = block(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    """The blocks at the smallest size, where attention over all positions is still affordable."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H, W)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Maps an image to the means and log-variances of its latent, before `quant_conv`.

    For v1-5 and an image of 512 x 512:

        size      channels     layers
        512x512     3 ->  128  conv_in
        512x512   128 ->  128  down.0: 2 Res, half
        256x256   128 ->  256  down.1: 2 Res, half
        128x128   256 ->  512  down.2: 2 Res, half
          64x64   512 ->  512  down.3: 2 Res
          64x64   512 ->  512  mid: Res, Attn, Res
          64x64   512 ->    8  norm_out, SiLU, conv_out
    """

    def __init__(self, channels: int, channel_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [channels * mult for mult in channel_mult]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(before, width, num_res_blocks, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip([channels, *widths], widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W). Returns (B, 2 * z_channels, H/8, W/8)."""
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Maps a latent, after `post_quant_conv`, to an image.

    For v1-5 and a latent of 64 x 64, an image of 512 x 512:

        size      channels     layers
          64x64     4 ->  512  conv_in
          64x64   512 ->  512  mid: Res, Attn, Res
          64x64   512 ->  512  up.3: 3 Res, double
        128x128   512 ->  512  up.2: 3 Res, double
        256x256   512 ->  256  up.1: 3 Res, double
        512x512   256 ->  128  up.0: 3 Res
        512x512   128 ->    3  norm_out, SiLU, conv_out

    Levels are numbered by size as the encoder's are, so the last, `up.3`, runs first. The decoder has one block more a
    level, and no skip connections from the encoder: when an image is generated there is no encoder.
    """

    def __init__(self, channels: int, channel_mult: tuple[int, ...], num_res_blocks: int, z_channels: int):
        super().__init__()
        widths = [channels * mult for mult in channel_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            UpLevel(before, width, num_res_blocks + 1, last=i == 0)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, z_channels, h, w). Returns (B, 3, 8h, 8w)."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """The encoder and the decoder with the 1 x 1 convolutions between them.

    Defaults are v1-5: 83,653,863 parameters, an eighth of the image's height and width, 4 channels. KL is the penalty
    of training that pulls every latent's distribution towards a standard normal one; v1's weight of 1e-6 is tiny, so
    that the VAE is nearly a plain autoencoder.
    """

    def __init__(
        self,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
    ):
        super().__init__()
        self.z_channels = z_channels
        self.downsample = 2 ** (len(channel_mult) - 1)  # pixels per latent position, in height and in width
        self.encoder = Encoder(channels, channel_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(channels, channel_mult, num_res_blocks, z_channels)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, 3, H, W) in [-1, 1], sides multiples of 8. Returns mean and logvar, (B, 4, H/8, W/8), unscaled."""
        mean, logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)  # exp(logvar) stays finite and above 0, in fp32

    def decode(self, latent: Tensor) -> Tensor:
        """latent: (B, 4, h, w), unscaled. Returns (B, 3, 8h, 8w), in [-1, 1] but for overshoot."""
        return self.decoder(self.post_quant_conv(latent))


def sample_latent(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Sample from the encoder's Gaussian: mean + exp(logvar / 2) * noise (Kingma & Welling 2013, section 2.4).

    mean, logvar, noise: (B, 4, h, w), the noise standard normal. Returns (B, 4, h, w), unscaled.
    """
    return mean + torch.exp(0.5 * logvar) * noise  # exp(logvar / 2) is the standard deviation
