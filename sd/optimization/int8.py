"""Products in 8 bits: half of bf16's time where the processor multiplies bytes, and not quite the same picture.

Weights are rounded once, each row with a step of its own; what comes into a layer is rounded in every call, all of it
with one step (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 2.1). Sums are exact, in 32 bits; biases and what comes out are as they were. About 1 % of each
layer's answer changes. The weights themselves stay where they are, so that taken off every bit is as before: the
bytes come on top, half as much again as bf16 takes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.prepacked_conv import FEWEST_CHANNELS, PackedConv2d
from sd.unet import GEGLU, BasicTransformerBlock, UNetModel

ANY = 1  # a step and a zero for packing, which does not look at them
TILE = 2**18  # numbers that are rounded at once: the fp32 in between stays in the cache


def to_bytes(x: Tensor) -> tuple[Tensor, float, int]:
    """(uint8 of the same shape and order in memory, the step, the byte that stands for 0): from x's least to its most.

    x is about (bytes - zero) * step.
    """
    rounded = torch.empty_like(x, dtype=torch.uint8)
    # One dimension, in the order of memory, whatever that is.
    numbers, levels = (t.as_strided((t.numel(),), (1,)) for t in (x, rounded))
    least, most = (bound.item() for bound in numbers.aminmax())
    least, most = min(least, 0.0), max(most, 0.0)  # 0 itself is a level: edges are padded with it
    step = max(most - least, 1e-20) / 255
    zero = round(-least / step)
    for some, level in zip(numbers.split(TILE), levels.split(TILE)):
        # What is cut off after adding a half is rounded.
        level.copy_(some.to(torch.float32, copy=True).mul_(1 / step).add_(zero + 0.5).clamp_(0, 255))
    return rounded, step, zero


def rows_to_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(O, ...) to (int8 of that shape, (O,) steps)."""
    weight = weight.detach().float()
    steps = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-20) / 127
    return (weight / steps.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8), steps


@dataclass
class Matrix:
    """A linear layer's weight in bytes, packed for the processor's kernels."""

    packed: Tensor
    steps: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> "Matrix":
        rows, steps = rows_to_bytes(weight)
        bias = None if bias is None else bias.detach().float()
        return cls(torch.ops.onednn.qlinear_prepack(rows, None), steps, bias)

    def product(self, x: Tensor, step: float, zero: int, dtype: torch.dtype, then: str = "none") -> Tensor:
        """x, step, zero: as of `to_bytes`. then: "gelu" applies that to the sums, not its approximation by tanh."""
        weights = (self.packed, self.steps, torch.zeros_like(self.steps, dtype=torch.int32), self.bias)
        return torch.ops.onednn.qlinear_pointwise(x, step, zero, *weights, 1.0, 0, dtype, then, [], "none")


class Int8Linear(nn.Linear):
    matrix: Matrix | None

    def forward(self, x: Tensor) -> Tensor:
        if not can_multiply(x):
            return super().forward(x)
        if self.matrix is None:
            self.matrix = Matrix.of(self.weight, self.bias)
        return self.matrix.product(*to_bytes(x.contiguous()), x.dtype)

    def unpack(self) -> None:
        """A plain layer again."""
        del self.matrix
        self.__class__ = nn.Linear


class Int8GEGLU(GEGLU):
    """Both halves see the same bytes, and the gate's GELU happens while its sums are in registers."""

    matrices: tuple[Matrix, Matrix] | None

    def forward(self, x: Tensor) -> Tensor:
        if type(self.proj) is not nn.Linear or not can_multiply(x):  # with an adapter in it, for one
            return super().forward(x)
        if self.matrices is None:
            halves = zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2))
            self.matrices = tuple(Matrix.of(weight, bias) for weight, bias in halves)
        value, gate = self.matrices
        rounded = *to_bytes(x.contiguous()), x.dtype
        return value.product(*rounded).mul_(gate.product(*rounded, "gelu"))


class Int8Conv2d(nn.Conv2d):
    packed: tuple[Tensor, Tensor] | None  # and the steps

    def forward(self, x: Tensor) -> Tensor:
        if not can_multiply(x):
            return super().forward(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        x = x.contiguous(memory_format=torch.channels_last)
        how = self.stride, padding, self.dilation, self.groups
        if self.packed is None:
            rows, steps = rows_to_bytes(self.weight)
            self.packed = torch.ops.onednn.qconv_prepack(rows, steps, ANY, ANY, *how, list(x.shape)), steps
        packed, steps = self.packed
        bias = None if self.bias is None else self.bias.float()
        weights = (packed, steps, torch.zeros_like(steps, dtype=torch.int32), bias)
        return torch.ops.onednn.qconv_pointwise(*to_bytes(x), *weights, *how, 1.0, 0, x.dtype, "none", [], "none")

    def unpack(self) -> None:
        """A plain convolution again."""
        del self.packed
        self.__class__ = nn.Conv2d


def can_multiply(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and fits(x.device, x.dtype)


def fits(device: torch.device, dtype: torch.dtype) -> bool:
    """A processor that multiplies and adds bytes in one go (VNNI)."""
    ours = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return ours and torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


def to_int8(unet: UNetModel) -> None:
    """All that looks at a picture's places, but for the first and the last convolution; what looks at text stays."""
    for layer in unet.modules():
        if isinstance(layer, BasicTransformerBlock):
            own, across = layer.attn1, layer.attn2
            for linear in (own.to_q, own.to_k, own.to_v, own.to_out[0], across.to_q, across.to_out[0], layer.ff.net[2]):
                if type(linear) is nn.Linear:
                    linear.__class__, linear.matrix = Int8Linear, None
            gate = layer.ff.net[0]
            if not isinstance(gate, Int8GEGLU):
                gate.__class__, gate.matrices = Int8GEGLU, None
        elif isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) >= FEWEST_CHANNELS:
            if isinstance(layer, PackedConv2d):
                layer.unpack()
            if type(layer) is nn.Conv2d:
                layer.__class__, layer.packed = Int8Conv2d, None


def from_int8(unet: UNetModel) -> None:
    for layer in unet.modules():
        if isinstance(layer, (Int8Linear, Int8Conv2d)):
            layer.unpack()
        elif isinstance(layer, Int8GEGLU):
            del layer.matrices
            layer.__class__ = GEGLU
