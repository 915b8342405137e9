"""Exercise 11: what a LoRA changes."""

from torch import Tensor, nn

from sd.adapters.variants import LoRA


def forward(lora: LoRA, layer: nn.Linear, x: Tensor) -> Tensor:
    """Return what the LoRA adds to the output of a linear layer: strength * scale * (x down^T) up^T, (B, N, out).

    x: (B, N, in). `lora.lora_down` is (r, in) and `lora.lora_up` (out, r), both small. `lora.strength` says how much
    of it is used, `lora.scale` is alpha / r. Never make the product up @ down, which is as large as the layer's own
    weight: go through the r numbers in the middle. `layer` is not needed here.

    The project's own: `LoRA.forward` in sd/adapters/variants.py (Hu et al. 2021, eq. 3).
    """
    raise NotImplementedError("write this function")


def merge(network: nn.Module) -> dict:
    """Add every delta to the weight of its layer, so that the network is as fast as before, and return what undoes it.

    `patched_layers(network)` of sd/adapters/injection.py returns the layers with deltas by path, and `layer.deltas` are
    these; `delta.delta(layer.weight)` is ΔW at strength 1. Give the layer the new weight as an `nn.Parameter`, and take
    the deltas off with `unpatch_layer(layer)`. Keep the old parameter and the deltas for `unmerge`.

    The project's own: `merge_adapters` in sd/adapters/injection.py.
    """
    raise NotImplementedError("write this function")


def unmerge(network: nn.Module, originals: dict) -> None:
    """Restore the weights that `merge` replaced, bit for bit; put the deltas back with `patch_layer(layer, deltas)`.

    Do not subtract ΔW: (W + ΔW) - ΔW is not W in floating point. The project's own: `unmerge_adapters`.
    """
    raise NotImplementedError("write this function")
