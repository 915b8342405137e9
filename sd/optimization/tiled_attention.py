"""Self-attention over many places, a tile of the scores at a time, as two plain products around a softmax.

For processors with bf16 dot products but no matrix unit (AMX): there the products of a tile, which stays in the cache,
take two thirds of the time that PyTorch's fused kernel takes. The scores are rounded to bf16 on their way into the
softmax. So that they are small, the keys' mean is taken from each key first: that moves all scores of a query by one
number, of which the softmax knows nothing (Zhang et al. 2024, "SageAttention", section 4.2).
"""

import math

import torch
from torch import Tensor, nn

from sd.attention import join_heads, split_heads
from sd.unet import BasicTransformerBlock, CrossAttention

FEWEST_PLACES = 1024  # below, the fused kernel is as quick
ROWS, HEADS = 256, 2  # of a tile: with 4,096 keys its scores take 4 MB


class TiledAttention(CrossAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch.is_grad_enabled() or k.shape[1] < FEWEST_PLACES or not fits(q.device, q.dtype):
            return super().attend(q, k, v)
        return tiled_attention(q, k, v, self.heads)


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As `attention`. q: (B, N, heads * d). k, v: (B, M, heads * d). Returns (B, N, heads * d)."""
    k = k - k.mean(dim=1, keepdim=True)
    scale, nothing = 1 / math.sqrt(q.shape[-1] // heads), q.new_zeros(())
    q, k, v = (split_heads(x, heads).flatten(0, 1) for x in (q, k, v))  # (B * heads, N, d), (B * heads, M, d) twice
    out = torch.empty_like(q.mT, memory_format=torch.contiguous_format)  # (B * heads, d, N)
    for head in range(0, len(q), HEADS):
        some = slice(head, head + HEADS)
        keys, values = k[some].mT, v[some].mT  # (HEADS, d, M)
        for first in range(0, q.shape[1], ROWS):
            rows = slice(first, first + ROWS)
            weights = torch.baddbmm(nothing, q[some, rows], keys, beta=0, alpha=scale)  # (HEADS, ROWS, M)
            torch.softmax(weights, dim=-1, out=weights)
            out[some, :, rows] = torch.bmm(values, weights.mT)  # this way around the narrow side is not the last
    return join_heads(out.mT.unflatten(0, (-1, heads)))


def fits(device: torch.device, dtype: torch.dtype) -> bool:
    """A processor with bf16 dot products and without AMX, with which the fused kernel is the quicker one."""
    if device.type != "cpu" or dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def tile(network: nn.Module) -> None:
    for block in network.modules():
        if isinstance(block, BasicTransformerBlock) and type(block.attn1) is CrossAttention:
            block.attn1.__class__ = TiledAttention


def untile(network: nn.Module) -> None:
    for layer in network.modules():
        if type(layer) is TiledAttention:
            layer.__class__ = CrossAttention
