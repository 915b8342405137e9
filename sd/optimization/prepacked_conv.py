"""Prepacked convolutions: the weights are stored in the blocked order that oneDNN's kernels read.

oneDNN reorders the weights of a convolution into blocks before it multiplies. A plain layer does that in every call, a
prepacked one once: the same sums in the same order, and in half the time at 8x8 positions, where the weights are most
of the work. No weight is stored twice, and unpacked weights have the same bits as before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeGuard
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.optimization.kernels import CONVOLUTION, REORDER, find_kernel, onednn_obstacle, trial_obstacle
from sd.optimization.malloc_trim import trim_heap
from sd.optimization.patching import (
    LayerPatch,
    apply_patch,
    make_plain,
    patches_on,
    plain_class,
    plain_layers,
    remove_patch,
    remove_patches,
)

MIN_CHANNELS = 16  # a kernel's block; layers with fewer are not packed


@dataclass
class PackedWeight:
    """A convolution's weight in blocks. original: the parameter itself where something else holds it, or else None."""

    blocks: Tensor
    original: Callable[[], nn.Parameter | None]
    requires_grad: bool
    shape: torch.Size
    strides: tuple[int, ...]

    def unpack(self) -> Tensor:
        """Returns a copy of the weight, (out, in, k, k), in its own memory layout."""
        weight = torch.empty_strided(self.shape, self.strides, dtype=self.blocks.dtype)
        return weight.copy_(self.blocks.to_dense())

    def restore(self) -> nn.Parameter:
        """Returns the same parameter where an optimizer or another network holds it, or else one of the same bits."""
        original = self.original()
        return nn.Parameter(self.unpack(), self.requires_grad) if original is None else original

    def __deepcopy__(self, memo: dict) -> "PackedWeight":
        """Returns a copy that does not share the original parameter."""
        return replace(self, original=lambda: None)


class PackedConv2d(LayerPatch, nn.Conv2d):
    """A convolution that packs its weight when it is first used, for inputs of that size.

    `weight` gives the plain weight, unpacked for each access, and so do the keys of a state dict. Where there are
    gradients the layer computes with that. Moved to another device or dtype it is a plain layer again.
    """

    STATE = ("packed",)
    GIVES_WAY = True
    packed: PackedWeight | None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter in the plain layer
        return self._parameters["weight"] if self.packed is None else self.packed.unpack()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        if torch.is_grad_enabled() or x.dtype != self.dtype or not has_kernels(x.device, x.dtype):
            return super().forward(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        if self.packed is None:
            self.pack(x.shape)
        # The last three arguments: no operation is fused onto the sums.
        return find_kernel(CONVOLUTION)(
            x, self.packed.blocks, self.bias, padding, self.stride, self.dilation, self.groups, "none", [], ""
        )

    @property
    def dtype(self) -> torch.dtype:
        return self._parameters["weight"].dtype if self.packed is None else self.packed.blocks.dtype

    def pack(self, shape: torch.Size) -> None:
        """shape: (B, C, H, W) of the input; any other size works too, but may be slower."""
        how = self.padding, self.stride, self.dilation, self.groups, list(shape)
        self.replace_weight(
            lambda weight, **facts: PackedWeight(find_kernel(REORDER)(weight.to_mkldnn(), *how), **facts)
        )

    def replace_weight(self, pack: Callable[..., PackedWeight]) -> None:
        """Replaces the parameter by pack(weight, **facts); facts: the fields of `PackedWeight` except `blocks`."""
        parameter = self._parameters["weight"]
        facts = dict(
            original=ref(parameter),
            requires_grad=parameter.requires_grad,
            shape=parameter.shape,
            strides=parameter.stride(),
        )
        self.packed = pack(parameter.detach(), **facts)
        self._parameters["weight"] = None
        del parameter
        trim_heap()  # or the plain weights leave 700 MB of holes

    def unpack(self) -> None:
        """Makes `weight` a parameter again."""
        if self.packed is not None:
            self._parameters["weight"] = self.packed.restore()
            self.packed = None

    def restore(self) -> None:
        self.unpack()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.detach()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        make_plain(self)
        return self._apply(change, recurse)


def pack_convolutions(network: nn.Module) -> None:
    """Patches every plain convolution that is wide enough."""
    for layer in plain_layers(network, nn.Conv2d):
        if min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS:
            apply_patch(layer, PackedConv2d)


def unpack_convolutions(network: nn.Module) -> None:
    """Removes the patch."""
    remove_patches(network, PackedConv2d)


def is_plain_or_packed(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Returns whether a layer is a convolution that no patch but this one, and no adapter, has changed."""
    return (
        isinstance(layer, nn.Conv2d) and plain_class(layer) is nn.Conv2d and patches_on(layer) in ((), (PackedConv2d,))
    )


def replace_convolutions(network: nn.Module, patch: type[LayerPatch], is_eligible: Callable[[nn.Conv2d], bool]) -> None:
    """Patches every eligible convolution, in place of the patch that packs its weight; one with an adapter stays."""
    for layer in network.modules():
        if is_plain_or_packed(layer) and is_eligible(layer):
            remove_patch(layer, PackedConv2d)
            apply_patch(layer, patch)


def try_kernels(dtype: torch.dtype) -> None:
    """Raises where the operators are missing or compute something else."""
    layer = nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 3, padding=1).to(dtype)
    x = torch.linspace(-1, 1, MIN_CHANNELS * 16, dtype=dtype).view(1, MIN_CHANNELS, 4, 4)
    how = layer.padding, layer.stride, layer.dilation, layer.groups
    blocks = find_kernel(REORDER)(layer.weight.detach().to_mkldnn(), *how, list(x.shape))
    made = find_kernel(CONVOLUTION)(x, blocks, layer.bias, *how, "none", [], "")
    torch.testing.assert_close(made, layer(x), rtol=0.02, atol=0.02)
    assert torch.equal(blocks.to_dense(), layer.weight), "a packed weight does not unpack to the same bits."


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why the patch does not work here; empty where it does."""
    return onednn_obstacle(device, dtype) or trial_obstacle(try_kernels, dtype)


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether prepacked convolutions work on this device, in this dtype."""
    return not obstacle(device, dtype)
