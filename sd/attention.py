"""Scaled dot-product attention: the one operation that CLIP, the VAE and the U-Net share.

Vaswani et al. 2017, "Attention Is All You Need", equation 1, over several heads (section 3.2.2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v for each head.

    q: (B, N, heads * d). k, v: (B, M, heads * d). Returns (B, N, heads * d).
    causal: query i sees keys 0..i only (N == M).
    """
    q, k, v = (split_heads(x, heads) for x in (q, k, v))  # (B, heads, N, d), (B, heads, M, d) twice
    return join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """The same as `attention`, to be read rather than run: it holds the whole (N, M) matrix in memory."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, heads, N, M)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return join_heads(scores.softmax(dim=-1) @ v)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)"""
    return x.transpose(1, 2).flatten(2)
