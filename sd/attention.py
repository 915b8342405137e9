"""Scaled dot-product attention: the one operation that CLIP, the VAE and the U-Net share.

Vaswani et al. 2017, "Attention Is All You Need", equation 1, over several heads (section 3.2.2).

N queries read from M keys and their values. In self-attention all three are projections of the same N tokens; in the
U-Net's cross-attention the queries come from the N = h * w places of the image and the keys and values from the M = 77
tokens of the prompt. The heads are independent attentions on slices of the channels, computed as one batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(d)) v for each head.

    q: (B, N, heads * d). k, v: (B, M, heads * d). Returns (B, N, heads * d).
    causal: query i attends to keys 0..i only (N == M).
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))  # (B, heads, N, d), (B, heads, M, d) twice
    # PyTorch's kernel divides by sqrt(d) itself, and works in tiles, so that the (N, M) scores never exist as a whole.
    return join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Compute the same as `attention`, with the same shapes, in single steps; it is for reading and for tests.

    It stores the whole (N, M) matrix: at 64 x 64 places and 8 heads that is 537 MB for one image in float32.
    """
    q = split_heads(q, heads)  # (B, heads, N, d)
    k = split_heads(k, heads)  # (B, heads, M, d)
    v = split_heads(v, heads)  # (B, heads, M, d)
    # Row n of the scores says how well query n fits each key. A score is a sum of d products, so its variance grows
    # with d; divided by sqrt(d) it is about 1 whatever d is. Larger scores would make the softmax nearly one-hot, and
    # its gradient nearly 0 (section 3.2.1).
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, heads, N, M)
    if causal:
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)  # True above the diagonal: key m > query n
        scores = scores.masked_fill(future, -math.inf)  # exp(-inf) = 0: no weight
    weights = scores.softmax(dim=-1)  # (B, heads, N, M); each row sums to 1
    return join_heads(weights @ v)  # (B, heads, N, d) -> (B, N, heads * d): a weighted mean of the values


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, N, heads * d) to (B, heads, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Reshape (B, heads, N, d) to (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)
