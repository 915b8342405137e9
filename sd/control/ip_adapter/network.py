"""IP-Adapter: from an image's CLIP embedding to tokens, and to keys and values of their own for each cross-attention.

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", section 3.2.
Attribute names are the original file's. The cross-attentions are numbered 1, 3, 5, ... through the input blocks, then
the output blocks, then the middle, as diffusers counts attention layers.
"""

import torch
from torch import Tensor, nn

from sd.attention import attention
from sd.unet import BasicTransformerBlock, CrossAttention, UNetModel
from sd.vision.image_encoder import ImageEncoder

HEAD_WIDTH = 64  # of the resampler's attention


class ImageProjection(nn.Module):
    """The plain adapter's: one linear layer makes a few tokens of the whole image's embedding."""

    def __init__(self, width: int, context_dim: int, tokens: int = 4):
        super().__init__()
        self.proj = nn.Linear(width, tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)

    def embed(self, encoder: ImageEncoder, pixels: Tensor) -> Tensor:
        """Return what `forward` reads of pixels (B, 3, S, S), (B, width)."""
        return encoder(pixels)

    def embed_nothing(self, encoder: ImageEncoder, pixels: Tensor) -> Tensor:
        """Return what `forward` reads where there is no image, (B, width)."""
        return torch.zeros_like(self.embed(encoder, pixels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, width). Returns tokens, (B, N, context_dim)."""
        return self.norm(self.proj(x).unflatten(1, (-1, *self.norm.normalized_shape)))


class PatchProjection(nn.Module):
    """Base of the projections that read the embeddings of all patches, those before CLIP's last layer."""

    def embed(self, encoder: ImageEncoder, pixels: Tensor) -> Tensor:
        """Return what `forward` reads of pixels (B, 3, S, S), (B, 1 + patches, width)."""
        return encoder.patch_states(pixels)

    def embed_nothing(self, encoder: ImageEncoder, pixels: Tensor) -> Tensor:
        """Return what `forward` reads where there is no image: pixels of 0, (B, 1 + patches, width)."""
        return encoder.patch_states(torch.zeros_like(pixels))


class FullProjection(PatchProjection):
    """The "full face" adapter's: each patch becomes a token."""

    def __init__(self, width: int, context_dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, context_dim), nn.LayerNorm(context_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 1 + patches, width). Returns tokens, (B, 1 + patches, context_dim)."""
        return self.proj(x)


class Resampler(PatchProjection):
    """The "plus" adapter's: learned queries collect tokens from the patches (Alayrac et al. 2022, "Flamingo")."""

    def __init__(self, width: int, context_dim: int, dim: int = 768, heads: int = 12, depth: int = 4, tokens: int = 16):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(width, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, heads), feed_forward(dim)]) for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, context_dim)
        self.norm_out = nn.LayerNorm(context_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 1 + patches, width). Returns tokens, (B, N, context_dim)."""
        x, latents = self.proj_in(x), self.latents.expand(len(x), -1, -1)  # (B, 1 + patches, dim), (B, N, dim)
        for attend, feed in self.layers:
            latents = latents + attend(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Attention of the latents to the image and to themselves (Jaegle et al. 2021, "Perceiver")."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * HEAD_WIDTH, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * HEAD_WIDTH, bias=False)
        self.to_out = nn.Linear(heads * HEAD_WIDTH, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x: (B, P, dim). latents: (B, N, dim). Returns (B, N, dim)."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attention(self.to_q(latents), k, v, self.heads))


def feed_forward(dim: int) -> nn.Sequential:
    """Return the layers after a `PerceiverAttention`."""
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False)
    )


class KeysAndValues(nn.Module):
    """The keys and values of one cross-attention for the image's tokens."""

    def __init__(self, context_dim: int, dim: int):
        super().__init__()
        self.to_k_ip = nn.Linear(context_dim, dim, bias=False)
        self.to_v_ip = nn.Linear(context_dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: (B, N, context_dim). Returns keys and values, (B, N, dim) each."""
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class IPAdapterModel(nn.Module):
    """The network: a projection to tokens, and keys and values for each cross-attention of a U-Net.

    dims: the widths of the cross-attentions, in the order of `cross_attentions`.
    """

    def __init__(self, image_proj: ImageProjection | PatchProjection, context_dim: int, dims: list[int]):
        super().__init__()
        self.image_proj = image_proj
        self.ip_adapter = nn.ModuleDict({str(2 * i + 1): KeysAndValues(context_dim, dim) for i, dim in enumerate(dims)})

    def forward(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """tokens: (B, N, context_dim). Returns keys and values, (B, N, dim) each, of each cross-attention."""
        return [layer(tokens) for layer in self.ip_adapter.values()]


def cross_attentions(unet: UNetModel) -> list[CrossAttention]:
    """Return the cross-attentions of a U-Net in the order in which an adapter numbers them."""
    parts = (unet.input_blocks, unet.output_blocks, unet.middle_block)
    blocks = (module for part in parts for module in part.modules() if isinstance(module, BasicTransformerBlock))
    return [block.attn2 for block in blocks]
