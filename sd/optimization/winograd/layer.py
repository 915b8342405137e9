"""The patch that computes wide 3x3 convolutions by `winograd_conv2d`: in fp32 on a CPU, where there are no gradients.

It is exact: its distance to fp64 is smaller than that of PyTorch's convolution.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.patching import apply_patch, patches_on, plain_class, remove_patch, remove_patches
from sd.optimization.prepacked_conv import PackedConv2d
from sd.optimization.winograd.convolution import winograd_conv2d
from sd.optimization.winograd.weights import TransformedWeight

MIN_CHANNELS = 256  # with fewer, the sums around the products take the time that the products save
MIN_TILES = 64  # in an image, 16x16 positions: with fewer, reading the 16 matrices of weights takes most of the time


class WinogradConv2d(PackedConv2d):
    """A 3x3 convolution that transforms its weight when it first reads a feature map of at least MIN_TILES tiles.

    On smaller feature maps it is a prepacked convolution. Whether a map is large enough does not depend on the batch,
    so that an image has the same bits in any batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        if torch.is_grad_enabled() or x.dtype != self.dtype:
            return super().forward(x)
        is_transformed = isinstance(self.packed, TransformedWeight)
        if obstacle(x.device, x.dtype) or tiles_of(x) < MIN_TILES:
            if is_transformed:
                self.unpack()
            return super().forward(x)
        if not is_transformed:
            self.unpack()
            self.replace_weight(TransformedWeight.from_weight)
        return self.convolve(x, self.packed.blocks)

    def convolve(self, x: Tensor, blocks: Tensor) -> Tensor:
        """blocks: the transformed weight."""
        if self.padding_mode == "zeros":
            return winograd_conv2d(x, blocks, self.bias)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return winograd_conv2d(x, blocks, self.bias)[..., 1:-1, 1:-1]


def tiles_of(x: Tensor) -> int:
    """Returns how many tiles of 2x2 an image of x, (B, C, H, W), has."""
    return math.prod(math.ceil(side / 2) for side in x.shape[-2:])


def is_eligible(layer: nn.Module) -> bool:
    """Returns whether a layer is a wide convolution of 3x3, padding 1 and stride 1 that is plain or only prepacked."""
    return (
        isinstance(layer, nn.Conv2d)
        and plain_class(layer) is nn.Conv2d
        and patches_on(layer) in ((), (PackedConv2d,))
        and (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups) == ((1, 1), 1)
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
    )


def use_winograd(network: nn.Module) -> None:
    """Patches every wide 3x3 convolution, in place of the patch that packs its weight; one with an adapter stays."""
    for layer in network.modules():
        if is_eligible(layer):
            remove_patch(layer, PackedConv2d)
            apply_patch(layer, WinogradConv2d)


def use_direct(network: nn.Module) -> None:
    """Removes the patch."""
    remove_patches(network, WinogradConv2d)


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the patch does not work here; empty where it does."""
    if device.type != "cpu":
        return "it is for CPUs."
    return "" if dtype == torch.float32 else "it needs fp32: in fewer bits it is less exact."
