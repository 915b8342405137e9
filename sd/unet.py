"""The U-Net: from a noisy latent, its time and the text, the noise in it.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B, with the spatial transformers of Rombach et al.
2022, section 3.3. Attribute names are the checkpoint's, and of another lineage than the VAE's: `in_layers`,
`out_layers` and `skip_connection` here are `norm1`, `conv1`, ..., `nin_shortcut` there.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.attention import attention


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t: (B,), 0..999, whole or not. Returns (B, dim): cosines, then sines, at dim/2 frequencies from 1 to 1/10,000.

    Vaswani et al. 2017, section 3.5.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions with the time's embedding added between them."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Identity(),  # a dropout's place in the checkpoint's numbering
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    """Queries from the picture, keys and values from the text, or from the picture itself where there is no context."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.heads)


class GEGLU(nn.Module):
    """Shazeer 2020, "GLU Variants Improve Transformer": half of the projection gates the other half."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, 4 * dim),
            nn.Identity(),  # a dropout's place in the checkpoint's numbering
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """The picture looks at itself, then at the text, then thinks."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over the places of a feature map."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)  # not the ResBlock's 1e-5
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, context_dim, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H*W, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))  # (B, C, H, W)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        # To the skip's own size rather than twice ours: a side of 65 was halved to 33 on the way down.
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands each layer what it needs beside x: the time, the text, or the size to grow to."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, size: torch.Size | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Defaults are v1-5: 859,520,964 parameters. Read across a level (latents of 64x64 for a picture of 512x512):

        size    width   on the way down             on the way up
        64x64     320   conv, 2 (Res + Attn), half  3 (Res + Attn)           -> norm, SiLU, conv
        32x32     640   2 (Res + Attn), half        3 (Res + Attn), double
        16x16    1280   2 (Res + Attn), half        3 (Res + Attn), double
          8x8    1280   2 Res                       3 Res, double
          8x8    1280   the middle: Res, Attn, Res

    Every block on the way down leaves its output for one on the way up, which takes it beside its own input.
    attention_levels: the rows, from 0, that have `Attn` (a SpatialTransformer); the middle always has one.
    in_channels is 9 for an inpainting checkpoint: the latent, the mask, and the masked picture's latent.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        model_channels: int = 320,
        channel_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_levels: tuple[int, ...] = (0, 1, 2),
        num_heads: int = 8,
        context_dim: int = 768,
    ):
        super().__init__()
        self.in_channels, self.model_channels = in_channels, model_channels
        time_dim = 4 * model_channels

        def res_and_attention(before: int, width: int, level: int) -> list[nn.Module]:
            block = [ResBlock(before, width, time_dim)]
            if level in attention_levels:
                block.append(SpatialTransformer(width, context_dim, num_heads))
            return block

        self.time_embed = nn.Sequential(nn.Linear(model_channels, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))

        width = model_channels
        skips = [width]  # widths of what the way down leaves for the way up
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                block = res_and_attention(width, mult * model_channels, level)
                width = mult * model_channels
                self.input_blocks.append(TimestepEmbedSequential(*block))
                skips.append(width)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(TimestepEmbedSequential(Downsample(width)))
                skips.append(width)

        self.middle_block = TimestepEmbedSequential(
            ResBlock(width, width, time_dim),
            SpatialTransformer(width, context_dim, num_heads),
            ResBlock(width, width, time_dim),
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                block = res_and_attention(width + skips.pop(), mult * model_channels, level)
                width = mult * model_channels
                if level > 0 and i == num_res_blocks:
                    block.append(Upsample(width))
                self.output_blocks.append(TimestepEmbedSequential(*block))

        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, in_channels, h, w), of unit variance. t: (B,), 0..999. context: (B, M, context_dim).

        Returns eps, (B, out_channels, h, w): the noise that is in x.
        """
        emb = self.embed_time(t, x.dtype)  # (B, time_dim)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        return self.out(self.go_up(self.output_blocks, x, skips, emb, context))

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: (B,), 0..999. Returns (B, time_dim)."""
        return self.time_embed(timestep_embedding(t, self.model_channels).to(dtype))

    @staticmethod
    def go_up(blocks: Iterable[nn.Module], x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        """Some blocks of the way up. skips: what the way down left, of which each block takes the last."""
        for block in blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb, context, size=skips[-1].shape[-2:] if skips else None)
        return x
