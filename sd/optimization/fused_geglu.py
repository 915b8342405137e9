"""Fused GEGLU: the GELU and the product of a feed-forward gate are applied while each sum is still in a register.

Shazeer 2020, "GLU Variants Improve Transformer": the two halves of the projection are two matrix products, and the
widest tensor of the U-Net, (B, N, 8 D), is never materialized.
"""

import torch
from torch import Tensor, nn

from sd.optimization.kernels import LINEAR, LINEAR_BINARY, find_kernel, onednn_obstacle, trial_obstacle
from sd.optimization.patching import LayerPatch, apply_patch, is_plain, plain_layers, remove_patches
from sd.unet import GEGLU


class FusedGEGLU(LayerPatch, GEGLU):
    """A GEGLU whose projection is computed as two products; the plain one where there are gradients or an adapter."""

    GIVES_WAY = True

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D). Returns (B, N, 4 D)."""
        proj = self.proj
        same = x.dtype == proj.weight.dtype
        if torch.is_grad_enabled() or not same or not is_plain(proj) or obstacle(x.device, x.dtype):
            return super().forward(x)
        return fused_geglu(x, proj.weight, proj.bias)


def fused_geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x: (B, N, D). weight: (8 D, D). bias: (8 D,). Returns (B, N, 4 D)."""
    value, gate = weight.chunk(2)  # (4 D, D) each
    value_bias, gate_bias = bias.chunk(2)
    # "none": the exact GELU, not its approximation by tanh.
    activated = find_kernel(LINEAR)(x, gate, gate_bias, "gelu", [], "none")  # (B, N, 4 D)
    return find_kernel(LINEAR_BINARY)(x, activated, value, value_bias, "mul")


def fuse_geglu(network: nn.Module) -> None:
    """Patches every plain GEGLU."""
    for layer in plain_layers(network, GEGLU):
        apply_patch(layer, FusedGEGLU)


def unfuse_geglu(network: nn.Module) -> None:
    """Removes the patch."""
    remove_patches(network, FusedGEGLU)


def try_kernels(dtype: torch.dtype) -> None:
    """Raises where the operators are missing or compute something else."""
    layer = GEGLU(8, 16).to(dtype)
    x = torch.linspace(-1, 1, 8, dtype=dtype).expand(1, 2, 8).contiguous()
    torch.testing.assert_close(fused_geglu(x, layer.proj.weight, layer.proj.bias), layer(x), rtol=0.02, atol=0.02)


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the patch does not work here; empty where it does."""
    return onednn_obstacle(device, dtype) or trial_obstacle(try_kernels, dtype)
