"""Adapters as patches: a layer keeps its weight W and gains a change of it, ΔW, that can be taken out again.

A patched layer is the same object as before, of a class that adds the change; its `weight` and `bias` are not touched.
So `eject` undoes `inject` without a trace: same bits, same keys, same `repr`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.adapters.variants import Patch
from sd.optimization.int8 import Int8Conv2d, Int8Linear
from sd.optimization.prepacked_conv import PackedConv2d
from sd.utils.errors import UserError


class Patched:
    """Beside a layer's own class: its output plus what its patches add. `through` is the layer with other weights."""

    patches: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for patch in self.patches:
            if patch.strength != 0:
                y = y + patch(self, x)
        return y


class PatchedLinear(Patched, nn.Linear):
    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)


class PatchedConv2d(Patched, nn.Conv2d):
    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class PatchedLayerNorm(Patched, nn.LayerNorm):
    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class PatchedGroupNorm(Patched, nn.GroupNorm):
    def through(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


PATCHED = {
    nn.Linear: PatchedLinear,
    nn.Conv2d: PatchedConv2d,
    nn.LayerNorm: PatchedLayerNorm,
    nn.GroupNorm: PatchedGroupNorm,
}
PLAIN = {patched: plain for plain, patched in PATCHED.items()}
PACKED = (PackedConv2d, Int8Conv2d, Int8Linear)  # patches for speed, which give way to these


def patchable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Path to layer, for every layer that can be patched or is."""
    return {path: layer for path, layer in network.named_modules() if type(layer) in {*PATCHED, *PLAIN, *PACKED}}


def patched_layers(network: nn.Module) -> dict[str, Patched]:
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, Patched)}


def patches_of(network: nn.Module, name: str) -> dict[str, Patch]:
    """Path to patch, of one adapter."""
    layers = patched_layers(network).items()
    return {path: patch for path, layer in layers for patch in layer.patches if patch.name == name}


def adapter_names(network: nn.Module) -> list[str]:
    """The adapters that are in, in the order they came."""
    return list(dict.fromkeys(p.name for layer in patched_layers(network).values() for p in layer.patches))


def inject(network: nn.Module, name: str, patches: Mapping[str, Patch], strength: float = 1.0) -> None:
    """Put an adapter's patches, by the paths of their layers, into a network. Several may be in at once and add up.

    Raises UserError, before anything is changed, where an adapter of that name is in already.
    """
    if name in adapter_names(network):
        raise UserError(f"an adapter named {name} is loaded already: unload it first, or give this one another name.")
    for path, layer in [(path, network.get_submodule(path)) for path in patches]:
        if isinstance(layer, PACKED):
            layer.unpack()  # patches read the weight in every call
        if not isinstance(layer, Patched):
            layer.__class__ = PATCHED[type(layer)]
            layer.patches = nn.ModuleList()
        patches[path].name, patches[path].strength = name, strength
        layer.patches.append(patches[path].to(layer.weight.device))


def eject(network: nn.Module, name: str) -> dict[str, Patch]:
    """Take an adapter out again; returns its patches by path (none where it is not in)."""
    patches = patches_of(network, name)
    for path in patches:
        layer = network.get_submodule(path)
        layer.patches = nn.ModuleList(patch for patch in layer.patches if patch.name != name)
        if not layer.patches:
            del layer.patches
            layer.__class__ = PLAIN[type(layer)]
    return patches


def set_strength(network: nn.Module, name: str, strength: float) -> None:
    for patch in patches_of(network, name).values():
        patch.strength = strength


Kept = dict[str, tuple[nn.Parameter, nn.Parameter | None, nn.ModuleList]]


@torch.no_grad()
def merge(network: nn.Module) -> Kept:
    """Turn every patched layer into a plain one with weight W + Σ strength · ΔW, rounded once to W's dtype.

    Faster to run, and it can be saved as a checkpoint. Returns the originals, which `unmerge` puts back: nothing is
    ever subtracted. Drop them to save their memory.
    """
    kept = {}
    for path, layer in patched_layers(network).items():
        kept[path] = layer.weight, layer.bias, layer.patches
        weight, bias = layer.weight.float(), layer.bias
        for patch in layer.patches:
            weight = weight + patch.strength * patch.delta(layer.weight)
            if (change := patch.delta_bias()) is not None:
                bias = patch.strength * change + (0 if bias is None else bias.float())
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
        layer.bias = bias if bias is layer.bias else nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
        del layer.patches
        layer.__class__ = PLAIN[type(layer)]
    return kept


def unmerge(network: nn.Module, kept: Kept) -> None:
    """Back to what was there before `merge`: the very same parameters, and their patches."""
    for path, (weight, bias, patches) in kept.items():
        layer = network.get_submodule(path)
        if isinstance(layer, PACKED):
            layer.unpack()
        layer.weight, layer.bias, layer.patches = weight, bias, patches
        layer.__class__ = PATCHED[type(layer)]
