"""The patch that computes wide 3x3 convolutions by `winograd_conv2d`: in fp32 on a CPU.

It is exact: its distance to fp64 is smaller than that of PyTorch's convolution, and so is that of the gradient with
respect to the input. A layer whose own weight has a gradient is computed plainly.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sd.optimization.kernels import cpu_obstacle
from sd.optimization.patching import remove_patches
from sd.optimization.prepacked_conv import PackedConv2d, replace_convolutions
from sd.optimization.winograd.convolution import winograd_conv2d, winograd_conv2d_backward
from sd.optimization.winograd.weights import TransformedWeight

MIN_CHANNELS = 256  # with fewer, the sums around the products take the time that the products save
MIN_TILES = 64  # in an image, 16x16 positions: with fewer, reading the 16 matrices of weights takes most of the time
# In training the sizes of a run's images vary around one area. At this bound, which lies between those of two levels of
# the U-Net, a layer does not change to and fro.
MIN_TILES_IN_TRAINING = 48


class FrozenConvolution(torch.autograd.Function):
    """`winograd_conv2d` with a gradient with respect to the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
        """See `winograd_conv2d`."""
        ctx.save_for_backward(blocks)
        return winograd_conv2d(x, blocks, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        """gradient: (B, K, H, W)."""
        (blocks,) = ctx.saved_tensors
        return winograd_conv2d_backward(gradient, blocks) if ctx.needs_input_grad[0] else None, None, None


class WinogradConv2d(PackedConv2d):
    """A 3x3 convolution that transforms its weight when it first reads a feature map of at least MIN_TILES tiles.

    On smaller feature maps it is a prepacked convolution, or a plain one where there are gradients. Whether a map is
    large enough does not depend on the batch, so that an image has the same bits in any batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        trains = torch.is_grad_enabled()
        if self.is_trained() or is_autocast() or x.dtype != self.dtype:
            self.unpack()  # so that the gradient, if there is one, reaches the parameter
            return super().forward(x)
        is_transformed = isinstance(self.packed, TransformedWeight)
        if obstacle(x.device, x.dtype) or tiles_of(x) < (MIN_TILES_IN_TRAINING if trains else MIN_TILES):
            if is_transformed or trains:
                self.unpack()
            return super().forward(x)
        if not is_transformed:
            self.unpack()
            self.replace_weight(TransformedWeight.from_weight)
        return self.convolve(x, self.packed.blocks)

    def is_trained(self) -> bool:
        """Returns whether a gradient with respect to the weight or the bias is wanted."""
        if not torch.is_grad_enabled():
            return False
        weight = self._parameters["weight"] if self.packed is None else self.packed
        return weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def convolve(self, x: Tensor, blocks: Tensor) -> Tensor:
        """blocks: the transformed weight."""
        if self.padding_mode == "zeros":
            return FrozenConvolution.apply(x, blocks, self.bias)
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        return FrozenConvolution.apply(x, blocks, self.bias)[..., 1:-1, 1:-1]


def is_autocast() -> bool:
    """Returns whether layers choose their own dtype on a CPU."""
    return torch.is_autocast_enabled("cpu")


def tiles_of(x: Tensor) -> int:
    """Returns how many tiles of 2x2 an image of x, (B, C, H, W), has."""
    return math.prod(math.ceil(side / 2) for side in x.shape[-2:])


def is_wide(layer: nn.Conv2d) -> bool:
    """Returns whether a convolution is one of 3x3, padding 1 and stride 1 with enough channels."""
    return (
        (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups) == ((1, 1), 1)
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
    )


def use_winograd(network: nn.Module) -> None:
    """Patches every wide 3x3 convolution, in place of the patch that packs its weight; one with an adapter stays."""
    replace_convolutions(network, WinogradConv2d, is_wide)


def use_direct(network: nn.Module) -> None:
    """Removes the patch."""
    remove_patches(network, WinogradConv2d)


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the patch does not work here; empty where it does."""
    return cpu_obstacle(device, dtype, torch.float32, "it needs fp32: in fewer bits it is less exact.")
