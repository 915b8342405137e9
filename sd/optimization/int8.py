"""Products in 8 bits: half of bf16's time where the CPU multiplies bytes; the image changes a little.

Weights are rounded once, each row with its own scale; the input of a layer is rounded in every call, with one scale
for all of it (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.1). Sums are exact, in 32 bits; biases and outputs keep their precision. About 1 % of each
layer's output changes. The original weights stay where they are, so that every bit is as before once the patch is
removed: the bytes come on top, half as much memory again as bf16 weights take.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.kernels import (
    BYTES_CONVOLUTION,
    BYTES_LINEAR,
    FLOATS,
    PACK_BYTES_CONVOLUTION,
    PACK_BYTES_LINEAR,
    cpu_obstacle,
    find_kernel,
    needs_floats,
    trial_obstacle,
)
from sd.optimization.patching import LayerPatch, apply_patch, is_plain, make_plain, patches_on, remove_patches
from sd.optimization.prepacked_conv import MIN_CHANNELS
from sd.unet import GEGLU, BasicTransformerBlock, UNetModel
from sd.utils.device import cpu_has_vnni

ANY = 1  # a scale and a zero point for packing, which does not read them
CHUNK = 2**18  # numbers that are rounded at once: the fp32 values in between stay in the cache


def quantize(x: Tensor) -> tuple[Tensor, float, int]:
    """Rounds x to bytes, from its minimum to its maximum.

    Returns (uint8 of the same shape and memory layout, the scale, the zero point): x is about (bytes - zero) * scale.
    """
    rounded = torch.empty_like(x, dtype=torch.uint8)
    # One dimension, in the order of memory, whatever that is.
    numbers, levels = (t.as_strided((t.numel(),), (1,)) for t in (x, rounded))
    least, most = (bound.item() for bound in numbers.aminmax())
    least, most = min(least, 0.0), max(most, 0.0)  # 0 itself is a level: edges are padded with it
    scale = max(most - least, 1e-20) / 255
    zero = round(-least / scale)
    for some, level in zip(numbers.split(CHUNK), levels.split(CHUNK)):
        # Adding a half before the fraction is cut off rounds to the nearest.
        level.copy_(some.to(torch.float32, copy=True).mul_(1 / scale).add_(zero + 0.5).clamp_(0, 255))
    return rounded, scale, zero


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes (O, ...) to (int8 of that shape, (O,) scales)."""
    weight = weight.detach().float()
    scales = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-20) / 127
    return (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8), scales


@dataclass
class Int8Matrix:
    """A linear layer's weight in bytes, packed for oneDNN's kernels."""

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None) -> "Int8Matrix":
        """weight: (out, in). bias: (out,)."""
        rows, scales = quantize_rows(weight)
        bias = None if bias is None else bias.detach().float()
        return cls(find_kernel(PACK_BYTES_LINEAR)(rows, None), scales, bias)

    def multiply(self, x: Tensor, scale: float, zero: int, dtype: torch.dtype, activation: str = "none") -> Tensor:
        """x, scale, zero: as `quantize` returns them. activation: "gelu" applies the exact GELU to the sums."""
        weights = (self.packed, self.scales, torch.zeros_like(self.scales, dtype=torch.int32), self.bias)
        return find_kernel(BYTES_LINEAR)(x, scale, zero, *weights, 1.0, 0, dtype, activation, [], "none")


class Int8Linear(LayerPatch, nn.Linear):
    """A linear layer that multiplies bytes; its weight is quantized when it is first used."""

    STATE = ("matrix",)
    GIVES_WAY = True
    matrix: Int8Matrix | None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, in). Returns (B, N, out)."""
        return self.multiply(x) if can_multiply(x) else super().forward(x)

    def multiply(self, x: Tensor) -> Tensor:
        if self.matrix is None:
            self.matrix = Int8Matrix.from_weight(self.weight, self.bias)
        return self.matrix.multiply(*quantize(x.contiguous()), x.dtype)


class Int8GEGLU(LayerPatch, GEGLU):
    """A GEGLU in bytes: both halves share one quantized input, and the GELU is fused onto the gate's sums."""

    STATE = ("matrices",)
    GIVES_WAY = True
    matrices: tuple[Int8Matrix, ...] | None  # of the value and of the gate

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D). Returns (B, N, 4 D)."""
        plain = is_plain(self.proj)  # not with an adapter on it, for one
        return self.multiply(x) if plain and can_multiply(x) else super().forward(x)

    def multiply(self, x: Tensor) -> Tensor:
        if self.matrices is None:
            halves = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2))
            self.matrices = tuple(Int8Matrix.from_weight(weight, bias) for weight, bias in halves)
        value, gate = self.matrices
        rounded = *quantize(x.contiguous()), x.dtype
        return value.multiply(*rounded).mul_(gate.multiply(*rounded, "gelu"))


class Int8Conv2d(LayerPatch, nn.Conv2d):
    """A convolution that multiplies bytes; its weight is quantized when it is first used."""

    STATE = ("quantized",)
    GIVES_WAY = True
    quantized: tuple[Tensor, Tensor] | None  # packed bytes and the rows' scales

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.multiply(x) if can_multiply(x) else super().forward(x)

    def multiply(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        x = x.contiguous(memory_format=torch.channels_last)
        how = self.stride, padding, self.dilation, self.groups
        if self.quantized is None:
            rows, scales = quantize_rows(self.weight)
            self.quantized = find_kernel(PACK_BYTES_CONVOLUTION)(rows, scales, ANY, ANY, *how, list(x.shape)), scales
        packed, scales = self.quantized
        bias = None if self.bias is None else self.bias.float()
        weights = (packed, scales, torch.zeros_like(scales, dtype=torch.int32), bias)
        return find_kernel(BYTES_CONVOLUTION)(*quantize(x), *weights, *how, 1.0, 0, x.dtype, "none", [], "none")


def can_multiply(x: Tensor) -> bool:
    """Returns whether x is multiplied as int8: there are no gradients and the CPU has the kernels."""
    return not torch.is_grad_enabled() and is_supported(x.device, x.dtype)


def try_kernels(dtype: torch.dtype) -> None:
    """Raises where the operators are missing or compute something else."""
    for names in (PACK_BYTES_LINEAR, BYTES_LINEAR, PACK_BYTES_CONVOLUTION, BYTES_CONVOLUTION):
        find_kernel(names)
    x = torch.linspace(-1, 1, 16 * 16, dtype=dtype)
    for patch, layer, given in (
        (Int8Linear, nn.Linear(16, 16), x.view(1, 16, 16)),
        (Int8Conv2d, nn.Conv2d(16, 16, 3, padding=1), x.view(1, 16, 4, 4)),
        (Int8GEGLU, GEGLU(16, 16), x.view(1, 16, 16)),
    ):
        expected = layer.to(dtype)(given)
        apply_patch(layer, patch)
        # 8 bits of a range of 2, through sums of 16 or 144 products.
        torch.testing.assert_close(layer.multiply(given), expected, rtol=0.05, atol=0.05)


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the patch does not work here; empty where it does."""
    return hardware_obstacle(device, dtype) or trial_obstacle(try_kernels, dtype)


def hardware_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why this device does not multiply int8; empty where it does."""
    if found := cpu_obstacle(device, dtype):
        return found
    if dtype not in FLOATS:
        return needs_floats()
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN."
    return "" if cpu_has_vnni() else "this CPU has no instruction that multiplies bytes (VNNI)."


def is_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether the patch works on this device, in this dtype."""
    return not obstacle(device, dtype)


def quantize_unet(unet: UNetModel) -> None:
    """Patches the layers that read feature maps, but for the first and the last convolution.

    The layers that read the text, and those that have an adapter, stay as they are.
    """
    for layer in unet.modules():
        if isinstance(layer, BasicTransformerBlock):
            own, cross = layer.attn1, layer.attn2
            for linear in (own.to_q, own.to_k, own.to_v, own.to_out[0], cross.to_q, cross.to_out[0], layer.ff.net[2]):
                replace_layer(linear, Int8Linear)
            replace_layer(layer.ff.net[0], Int8GEGLU)
        elif isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS:
            replace_layer(layer, Int8Conv2d)


def replace_layer(layer: nn.Module, patch: type) -> None:
    """Applies the patch in place of other patches that compute the same output; a layer with an adapter stays."""
    if patch not in patches_on(layer):
        make_plain(layer)
        if is_plain(layer):
            apply_patch(layer, patch)


def dequantize_unet(unet: UNetModel) -> None:
    """Removes the patches."""
    remove_patches(unet, Int8Linear, Int8Conv2d, Int8GEGLU)
