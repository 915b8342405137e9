"""CLIP's text encoder, which turns a prompt's tokens into the vectors that condition the U-Net.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Stable Diffusion 1.x uses
the text tower of ViT-L/14 as it was trained, frozen. Attribute names are the checkpoint's.

CLIP was trained to give an image and its caption similar vectors, so its text vectors already mean something visual.
Stable Diffusion takes the vectors of all 77 tokens rather than the single one that CLIP compares with images: the
U-Net's cross-attention then reads "red" and "apple" separately.
"""

import torch
from torch import Tensor, nn

from sd.attention import attention


class SelfAttention(nn.Module):
    """Multi-head self-attention with its four projections."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """x: (B, N, width). Returns (B, N, width)."""
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal))


class MLP(nn.Module):
    """Two linear layers with a GELU in between, applied to each token on its own."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, width). Returns (B, N, width)."""
        x = self.fc1(x)  # (B, N, 4 * width)
        # CLIP's "quick GELU" approximates x * Phi(x). The weights were trained with it, so the exact GELU would be off.
        return self.fc2(x * torch.sigmoid(1.702 * x))


class EncoderLayer(nn.Module):
    """A transformer block: self-attention mixes the tokens, then the MLP changes each, both as residuals."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """x: (B, N, width). Returns (B, N, width)."""
        # Pre-norm: the norm stands inside each branch, so x itself passes from the first layer to the last unchanged
        # but for sums. Deep stacks train more stably than with the norm after the sum.
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of transformer blocks; the vision tower uses it too, without the causal mask."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, causal: bool, skip_last: int = 0) -> Tensor:
        """x: (B, N, width). Returns (B, N, width), from all layers but the last `skip_last`."""
        for layer in self.layers[: len(self.layers) - skip_last]:
            x = layer(x, causal)
        return x


class TextEmbeddings(nn.Module):
    """A learned vector for each token id plus a learned vector for each position."""

    def __init__(self, vocab_size: int, width: int, max_length: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(max_length, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N) ids, N at most max_length. Returns (B, N, width)."""
        # Attention itself ignores the order of its keys, so the position has to be part of the vectors.
        # A checkpoint's `position_ids` are never read: they only count to 77, and merged files break them.
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class CLIPTextModel(nn.Module):
    """A causal transformer over at most `max_length` token ids. Defaults are v1-5: 123,060,480 parameters."""

    def __init__(
        self, width: int = 768, layers: int = 12, heads: int = 12, vocab_size: int = 49408, max_length: int = 77
    ):
        super().__init__()
        self.embeddings = TextEmbeddings(vocab_size, width, max_length)
        self.encoder = Encoder(width, layers, heads)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, clip_skip: int = 1) -> Tensor:
        """tokens: (B, N) ids, N at most 77. Returns (B, N, width): the hidden state after the final layer norm.

        clip_skip: 1 takes the last layer's state, 2 the one before it, and so on, as the webui counts.
        """
        x = self.embeddings(tokens)  # (B, N, width)
        # Causal: token i attends to tokens 0..i, as in a language model. So the first end token is the first that has
        # read the whole prompt, and the padding after it, end tokens again, cannot change the prompt's own vectors.
        x = self.encoder(x, causal=True, skip_last=clip_skip - 1)
        # The norm is the last layer's; models trained with clip_skip 2 apply it to the earlier state too.
        return self.final_layer_norm(x)
