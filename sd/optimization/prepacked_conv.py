"""Convolutions whose weights lie in the order that the processor's kernels read.

oneDNN brings the weights of a convolution into blocks before it multiplies. A plain layer has that done in every call,
a packed one once: the same sums in the same order, and at 8x8 places, where the weights are most of the work, in half
the time. Nothing is kept twice, and unpacked the bits are those from before.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.malloc_trim import give_back_freed

FEWEST_CHANNELS = 16  # a kernel's block; layers with fewer stay as they are


class PackedConv2d(nn.Conv2d):
    """A convolution that packs its weight when it is first used, for pictures of that size.

    `weight` stays what it was for whoever asks, unpacked for that moment; so do its keys in a state dict. Where there
    are gradients it computes with that. Moved to another device or dtype it is a plain layer again.
    """

    packed: Tensor | None

    @property
    def weight(self) -> Tensor:
        if self.packed is None:
            return self._parameters["weight"]
        return self.packed.to_dense().contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != self.dtype or not has_kernels(x.device, x.dtype):
            return super().forward(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        if self.packed is None:
            self.pack(x.shape)
        # The last three: what else could be done to each sum, and is not.
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, padding, self.stride, self.dilation, self.groups, "none", [], ""
        )

    @property
    def dtype(self) -> torch.dtype:
        return (self._parameters["weight"] if self.packed is None else self.packed).dtype

    def pack(self, shape: torch.Size) -> None:
        """shape: (B, C, H, W) of what comes in; any other works too, if not as quickly."""
        blocks = self._parameters["weight"].detach().to_mkldnn()
        self.packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
            blocks, self.padding, self.stride, self.dilation, self.groups, list(shape)
        )
        self._parameters["weight"] = None
        give_back_freed()  # or the plain weights leave 700 MB of holes

    def unpack(self) -> None:
        """A plain convolution again."""
        weight = nn.Parameter(self.weight, requires_grad=False) if self.packed is not None else self.weight
        del self.packed
        self.__class__ = nn.Conv2d
        self._parameters["weight"] = weight

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.unpack()
        return self._apply(change, recurse)


def pack(network: nn.Module) -> None:
    """Every convolution that has no adapter in it."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and min(layer.in_channels, layer.out_channels) >= FEWEST_CHANNELS:
            layer.__class__, layer.packed = PackedConv2d, None


def unpack(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, PackedConv2d):
            layer.unpack()


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes in it here: in fp32 on any processor, in bf16 where it has that."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
