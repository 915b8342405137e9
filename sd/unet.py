"""The U-Net: from a noisy latent, its time and the text to the noise in the latent.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B, with the spatial transformers of Rombach et al.
2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3. Attribute names are the checkpoint's,
and of another lineage than the VAE's: `in_layers`, `out_layers` and `skip_connection` here are `norm1`, `conv1`, ...,
`nin_shortcut` there.

Three inputs, three ways in: the latent goes through the convolutions, the time is added inside every ResBlock, and the
text is read by the cross-attention of every SpatialTransformer.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.attention import attention


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t: (B,), 0..999, whole or not. Returns (B, dim): cosines, then sines, at dim/2 frequencies from 1 to 1/10,000.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    half = dim // 2
    # The fast waves tell neighboring times apart, the slow ones early from late. A single number t as the input would
    # leave it to the first layer to resolve a thousandth of its range.
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)  # (dim/2,)
    angles = t.float()[:, None] * frequencies  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two convolutions of 3 x 3, with the time added between them, around which the input is added (He et al. 2015)."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        # The norm stands before its convolution: each branch then sees inputs of a fixed scale however large the sums
        # around it have grown, and the sums themselves are never normalized.
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
        """x: (B, in_channels, h, w). emb: (B, time_dim). Returns (B, out_channels, h, w)."""
        h = self.in_layers(x)  # (B, out_channels, h, w)
        # (B, out_channels) -> (B, out_channels, 1, 1): the same shift at every position, for the noise level is the
        # same everywhere. It moves the channels against the next norm and SiLU, and so selects which of them pass.
        h = h + self.emb_layers(emb)[:, :, None, None]
        h = self.out_layers(h)
        return self.skip_connection(x) + h


class CrossAttention(nn.Module):
    """Attention with queries from the image, and keys and values from the text; without a context, self-attention."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x: (B, N, dim). context: (B, M, context_dim), or None for x itself. Returns (B, N, dim)."""
        context = x if context is None else context
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (B, N, dim). k, v: (B, M, dim). Returns (B, N, dim)."""
        return attention(q, k, v, self.heads)


class GEGLU(nn.Module):
    """A linear layer of which one half gates the other (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, dim). Returns (B, N, inner)."""
        x, gate = self.proj(x).chunk(2, dim=-1)  # (B, N, inner) each
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers with a GEGLU in the first, applied to each position on its own."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, 4 * dim),
            nn.Identity(),  # a dropout's place in the checkpoint's numbering
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, dim). Returns (B, N, dim)."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention over the text, and a feed-forward layer; each with a pre-norm and a residual."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, N, dim). context: (B, M, context_dim). Returns (B, N, dim)."""
        x = x + self.attn1(self.norm1(x))  # the image: distant parts agree on one object
        x = x + self.attn2(self.norm2(x), context)  # the text: each position reads the words that concern it
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the positions of a feature map, with 1 x 1 convolutions around it and a residual."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)  # not the ResBlock's 1e-5
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, context_dim, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, H, W). context: (B, M, context_dim). Returns (B, C, H, W)."""
        # No position embedding: through zero padding, the convolutions around it have encoded every position.
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, H*W, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))  # (B, C, H, W)


class Downsample(nn.Module):
    """Halves height and width with a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, C, H/2, W/2), rounded up."""
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating every position, and smooths with a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """x: (B, C, H, W). size: the height and width to reach. Returns (B, C, *size)."""
        # The size of the skip connection rather than 2H x 2W: a side of 65 was halved to 33 on the way down.
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    """A sequence of layers that passes to each what it needs beside x: the time, the text, or the size to reach."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, size: torch.Size | None = None) -> Tensor:
        """x: (B, C, H, W). emb: (B, time_dim). context: (B, M, context_dim). Returns (B, C', H', W')."""
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
    """The noise-predicting network. Defaults are v1-5: 859,520,964 parameters.

    Read across a level (latents of 64 x 64, for an image of 512 x 512). `concat` is the channel count of each
    concatenation, which is what the three ResBlocks of that level take on the way up:

        size    width   on the way down             on the way up               concat
        64x64     320   conv, 2 (Res + Attn), half  3 (Res + Attn)               960,  640,  640
        32x32     640   2 (Res + Attn), half        3 (Res + Attn), double      1920, 1280,  960
        16x16    1280   2 (Res + Attn), half        3 (Res + Attn), double      2560, 2560, 1920
          8x8    1280   2 Res                       3 Res, double               2560, 2560, 2560
          8x8    1280   the middle: Res, Attn, Res

    After the last block on the way up: norm, SiLU, conv.

    Skip connections: each block's output on the way down is concatenated to the input of the matching block on the way
    up. The small levels see the whole image at once and decide what is where; the large ones add edges and texture.
    The skips let the large levels on the way up see the input at full resolution, which the noise has to be predicted
    at: without them everything would pass through 8 x 8 positions.

    attention_levels: the rows, from 0, that have `Attn` (a SpatialTransformer); the middle always has one.
    middle_blocks: 0 for a U-Net without a middle (BK-SDM's small and tiny ones, Kim et al. 2023), otherwise 1.
    in_channels is 9 for an inpainting checkpoint: the latent, the mask, and the masked image's latent.
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
        middle_blocks: int = 1,
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
        skips = [width]  # the widths of the outputs on the way down, for the inputs on the way up
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

        middle = [
            ResBlock(width, width, time_dim),
            SpatialTransformer(width, context_dim, num_heads),
            ResBlock(width, width, time_dim),
        ]
        self.middle_block = TimestepEmbedSequential(*(middle if middle_blocks else []))

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):  # one more than on the way down: conv and Downsample leave skips too
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
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))  # (B, time_dim)

        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)

        x = self.middle_block(x, emb, context)  # (B, 4 * model_channels, h/8, w/8) for v1-5

        for block in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)  # last in, first out: the two are of the same size
            size = skips[-1].shape[-2:] if skips else None  # of the next skip, for a block that ends in an Upsample
            x = block(x, emb, context, size)
        return self.out(x)
