"""Adapters as patches: a layer keeps its weight W and gets a change of it, ΔW, that can be removed again.

A patched layer is the same object as before, of a class that adds the change; its `weight` and `bias` are not touched.
So `eject` undoes `inject` without a trace: same bits, same keys, same `repr`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.adapters.variants import WeightDelta
from sd.optimization.patching import LayerPatch, apply_patch, make_plain, plain_class, remove_patch
from sd.utils.errors import UserError


class Patched(LayerPatch, nn.Module):
    """Base of patched layers: the output plus that of the deltas. `through` is the layer with other weights."""

    STATE = ("deltas",)
    deltas: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        """Input and output are those of the layer itself."""
        y = super().forward(x)
        for delta in self.deltas:
            if delta.strength != 0:
                y = y + delta(self, x)
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


def patchable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that an adapter can change, by path."""
    return {path: layer for path, layer in network.named_modules() if plain_class(layer) in PATCHED}


def patched_layers(network: nn.Module) -> dict[str, Patched]:
    """Returns the layers that an adapter changes, by path."""
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, Patched)}


def deltas_of(network: nn.Module, name: str) -> dict[str, WeightDelta]:
    """Returns the deltas of one adapter, by path."""
    layers = patched_layers(network).items()
    return {path: delta for path, layer in layers for delta in layer.deltas if delta.name == name}


def adapter_names(network: nn.Module) -> list[str]:
    """Returns the names of a network's adapters, in the order of their injection."""
    return list(dict.fromkeys(delta.name for layer in patched_layers(network).values() for delta in layer.deltas))


def patch_layer(layer: nn.Module, deltas: nn.ModuleList) -> None:
    """Makes a layer add these deltas. Patches for speed that compute its output in another way are removed from it."""
    make_plain(layer)
    apply_patch(layer, PATCHED[plain_class(layer)], deltas=deltas)


def unpatch_layer(layer: nn.Module) -> None:
    """Removes all deltas from a layer, which becomes a plain one again."""
    remove_patch(layer, PATCHED[plain_class(layer)])


def inject(network: nn.Module, name: str, deltas: Mapping[str, WeightDelta], strength: float = 1.0) -> None:
    """Adds an adapter's deltas, by the paths of their layers, to a network. Those of several adapters add up.

    Raises UserError, before anything is changed, where the network has an adapter of that name already.
    """
    if name in adapter_names(network):
        raise UserError(f"an adapter named {name} is loaded already: unload it first, or give this one another name.")
    for path, layer in [(path, network.get_submodule(path)) for path in deltas]:
        if not isinstance(layer, Patched):
            patch_layer(layer, nn.ModuleList())
        deltas[path].name, deltas[path].strength = name, strength
        layer.deltas.append(deltas[path].to(layer.weight.device))


def eject(network: nn.Module, name: str) -> dict[str, WeightDelta]:
    """Removes an adapter from a network. Returns its deltas by path (none where the network does not have it)."""
    deltas = deltas_of(network, name)
    for path in deltas:
        layer = network.get_submodule(path)
        layer.deltas = nn.ModuleList(delta for delta in layer.deltas if delta.name != name)
        if not layer.deltas:
            unpatch_layer(layer)
    return deltas


def set_strength(network: nn.Module, name: str, strength: float) -> None:
    """Sets how much of an adapter a network uses."""
    for delta in deltas_of(network, name).values():
        delta.strength = strength


Originals = dict[str, tuple[nn.Parameter, nn.Parameter | None, nn.ModuleList]]


@torch.no_grad()
def merge_adapters(network: nn.Module) -> Originals:
    """Turns every patched layer into a plain one with weight W + Σ strength · ΔW, rounded once to W's dtype.

    It runs faster and can be saved as a checkpoint. Returns the originals, which `unmerge_adapters` puts back: nothing
    is ever subtracted. Drop them to save their memory.
    """
    originals = {}
    for path, layer in patched_layers(network).items():
        originals[path] = layer.weight, layer.bias, layer.deltas
        weight, bias = layer.weight.float(), layer.bias
        for delta in layer.deltas:
            weight = weight + delta.strength * delta.delta(layer.weight)
            if (change := delta.delta_bias()) is not None:
                bias = delta.strength * change + (0 if bias is None else bias.float())
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
        layer.bias = bias if bias is layer.bias else nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
        unpatch_layer(layer)
    return originals


def unmerge_adapters(network: nn.Module, originals: Originals) -> None:
    """Restores the parameters that `merge_adapters` replaced, and their deltas."""
    for path, (weight, bias, deltas) in originals.items():
        layer = network.get_submodule(path)
        patch_layer(layer, deltas)
        layer.weight, layer.bias = weight, bias
