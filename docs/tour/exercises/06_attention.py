"""Exercise 6: which word does a place of the image read?"""

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return softmax(q kᵀ / sqrt(d)) v for each head (Vaswani et al. 2017, eq. 1), (B, N, heads * d).

    q: (B, N, heads * d), from the N places of the image. k, v: (B, M, heads * d), from the M tokens of the prompt.
    `split_heads` and `join_heads` of sd/attention.py turn (B, N, heads * d) into (B, heads, N, d) and back.

    The project's own: `attention_written_out` in sd/attention.py. Do without `F.scaled_dot_product_attention`.
    """
    raise NotImplementedError("write this function")
