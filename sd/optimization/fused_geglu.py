"""The gate of a feed-forward layer in one go: the GELU and the product happen while each sum is still in a register.

Shazeer 2020, "GLU Variants Improve Transformer": the two halves of the projection are two products of matrices, and the
widest tensor of the U-Net, (B, N, 8 D), is never made.
"""

import torch
from torch import Tensor, nn

from sd.optimization.prepacked_conv import has_kernels
from sd.unet import GEGLU


class FusedGEGLU(GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        has_adapter, same = type(self.proj) is not nn.Linear, x.dtype == self.proj.weight.dtype
        if torch.is_grad_enabled() or has_adapter or not same or not has_kernels(x.device, x.dtype):
            return super().forward(x)
        value, gate = self.proj.weight.chunk(2)  # (4 D, D) each
        value_bias, gate_bias = self.proj.bias.chunk(2)
        linear = torch.ops.mkldnn._linear_pointwise
        opened = linear(x, gate, gate_bias, "gelu", [], "none")  # (B, N, 4 D); "none": not its approximation by tanh
        return linear.binary(x, opened, value, value_bias, "mul")


def fuse(network: nn.Module) -> None:
    for layer in network.modules():
        if type(layer) is GEGLU:
            layer.__class__ = FusedGEGLU


def separate(network: nn.Module) -> None:
    for layer in network.modules():
        if type(layer) is FusedGEGLU:
            layer.__class__ = GEGLU
