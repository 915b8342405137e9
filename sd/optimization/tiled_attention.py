"""Self-attention over long sequences, one tile of the scores at a time, as two matrix products around a softmax.

For CPUs with bf16 dot products but no matrix unit (AMX): there the products of a tile, which stays in the cache, take
two thirds of the time of PyTorch's fused kernel. The scores are rounded to bf16 before the softmax. To keep them
small, the mean of the keys is subtracted from each key first: that shifts all scores of a query by one number, which
the softmax does not see (Zhang et al. 2024, "SageAttention", section 4.2).
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

from sd.attention import join_heads, split_heads
from sd.optimization.kernels import cpu_obstacle
from sd.optimization.patching import LayerPatch, apply_patch, remove_patches
from sd.unet import BasicTransformerBlock, CrossAttention
from sd.utils.device import cpu_has_amx, cpu_has_bf16

MIN_TOKENS = 1024  # below, the fused kernel is as fast
ROWS, HEADS = 256, 2  # of a tile: with 4,096 keys its scores take 4 MB


class TiledAttention(LayerPatch, CrossAttention):
    """A self-attention that is computed in tiles where the sequence is long and there are no gradients."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns the same as `CrossAttention.attend`."""
        if torch.is_grad_enabled() or k.shape[1] < MIN_TOKENS or not is_faster(q.device, q.dtype):
            return super().attend(q, k, v)
        return tiled_attention(q, k, v, self.heads)


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Returns the same as `attention`. q: (B, N, heads * d). k, v: (B, M, heads * d). Returns (B, N, heads * d)."""
    k = k - k.mean(dim=1, keepdim=True)
    scale, zero = 1 / math.sqrt(q.shape[-1] // heads), q.new_zeros(())
    q, k, v = (split_heads(x, heads).flatten(0, 1) for x in (q, k, v))  # (B * heads, N, d), (B * heads, M, d) twice
    out = torch.empty_like(q.mT, memory_format=torch.contiguous_format)  # (B * heads, d, N)
    for head in range(0, len(q), HEADS):
        some = slice(head, head + HEADS)
        keys, values = k[some].mT, v[some].mT  # (HEADS, d, M)
        for first in range(0, q.shape[1], ROWS):
            rows = slice(first, first + ROWS)
            weights = torch.baddbmm(zero, q[some, rows], keys, beta=0, alpha=scale)  # (HEADS, ROWS, M)
            torch.softmax(weights, dim=-1, out=weights)
            out[some, :, rows] = torch.bmm(values, weights.mT)  # in this order the narrow side is not the last
    return join_heads(out.mT.unflatten(0, (-1, heads)))


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the fused kernel is better here; empty where the tiles are faster."""
    if found := cpu_obstacle(device, dtype, torch.bfloat16, "it needs bf16."):
        return found
    if not (torch.backends.mkldnn.is_available() and cpu_has_bf16()):
        return "this CPU has no fast bfloat16 products."
    return "on a CPU with a matrix unit (AMX), PyTorch's own kernel is faster." if cpu_has_amx() else ""


@cache
def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether tiles are faster on this device, in this dtype."""
    return not obstacle(device, dtype)


def tile_attention(network: nn.Module) -> None:
    """Patches every self-attention."""
    for block in network.modules():
        if isinstance(block, BasicTransformerBlock):
            apply_patch(block.attn1, TiledAttention)


def untile_attention(network: nn.Module) -> None:
    """Removes the patch."""
    remove_patches(network, TiledAttention)
