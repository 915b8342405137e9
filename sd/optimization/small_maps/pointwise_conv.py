"""1x1 convolutions as matrix products over the positions, which is what they are.

oneDNN's kernels for small 1x1 convolutions take up to three times as long as the product of the same size. With the
channels last in memory, (B, C, H, W) is a matrix of positions and channels as it stands.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.kernels import cpu_obstacle
from sd.optimization.patching import LayerPatch, remove_patches
from sd.optimization.prepacked_conv import replace_convolutions

MAX_CHANNELS = 1024  # with more, the prepacked convolution is as fast: it does not reorder its weight in every call


class PointwiseConv2d(LayerPatch, nn.Conv2d):
    """A convolution of 1x1 that is computed as a linear layer in fp32."""

    GIVES_WAY = True

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, K, H, W), with the channels last in memory."""
        if torch.is_grad_enabled() or obstacle(x.device, x.dtype):
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Returns whether a convolution is one of 1x1 and stride 1 that is not too wide."""
    return (layer.kernel_size, layer.padding, layer.stride, layer.groups) == ((1, 1), (0, 0), (1, 1), 1) and max(
        layer.in_channels, layer.out_channels
    ) <= MAX_CHANNELS


def use_products(network: nn.Module) -> None:
    """Patches every 1x1 convolution that is not too wide, in place of the patch that packs its weight."""
    replace_convolutions(network, PointwiseConv2d, is_pointwise)


def use_convolutions(network: nn.Module) -> None:
    """Removes the patch."""
    remove_patches(network, PointwiseConv2d)


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the patch does not work here; empty where it does."""
    return cpu_obstacle(device, dtype, torch.float32, "it needs fp32.")
