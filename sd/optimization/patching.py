"""One mechanism for every patch of a layer: its class is swapped for a subclass, and restored exactly.

The layer stays the same object with the same parameters, so weights, keys and references to it are not affected. A
patch is an ordinary subclass of the class that it patches, with `LayerPatch` beside it:

    class FusedGEGLU(LayerPatch, GEGLU):
        def forward(self, x): ...

Several patches of one layer are combined into one class; each calls the next through `super()`. Those that only
compute the layer's own output in another way come last, next to the layer's class, so that patches stack in any order;
they come off in any order too. Patches do not know each other: one that needs a plain layer asks `make_plain`.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn


class LayerPatch:
    """Base of every patch of a layer.

    STATE: the attributes that the patch adds to the layer and that are deleted with it.
    GIVES_WAY: the patch only computes the layer's own output in another way, and `make_plain` takes it out.
    """

    STATE: tuple[str, ...] = ()
    GIVES_WAY = False

    def restore(self) -> None:
        """Restores what the patch changed in the layer besides `STATE`; called before the patch is removed."""


@cache
def patched_class(patches: tuple[type, ...]) -> type:
    """Returns the class of a layer with these patches, the outermost first."""
    if len(patches) == 1:
        return patches[0]
    return type("And".join(patch.__name__ for patch in patches), patches, {"combined": patches})


def patches_on(layer: nn.Module) -> tuple[type[LayerPatch], ...]:
    """Returns the patches of a layer, the outermost first."""
    kind = type(layer)
    return vars(kind).get("combined", (kind,)) if issubclass(kind, LayerPatch) else ()


def plain_class(layer: nn.Module) -> type:
    """Returns the layer's class without its patches."""
    return next(kind for kind in type(layer).__mro__ if not issubclass(kind, LayerPatch))


def is_plain(layer: nn.Module) -> bool:
    """Returns whether a layer has no patch: its output is what its class computes from its parameters."""
    return not isinstance(layer, LayerPatch)


def make_plain(layer: nn.Module) -> None:
    """Removes the patches that give way: `weight` is a parameter again, and `super().forward` reads it."""
    for patch in patches_on(layer):
        if patch.GIVES_WAY:
            remove_patch(layer, patch)


def apply_patch(layer: nn.Module, patch: type[LayerPatch], **state: Any) -> None:
    """Adds a patch, with these values of its `STATE` (None where not given); an applied patch stays."""
    if patch in patches_on(layer):
        return
    layer.__class__ = patched_class(tuple(sorted((patch, *patches_on(layer)), key=lambda one: one.GIVES_WAY)))
    for name in patch.STATE:
        setattr(layer, name, state.get(name))


def remove_patch(layer: nn.Module, patch: type[LayerPatch]) -> None:
    """Removes a patch with its state, whatever was applied after it; nothing happens where it is not applied."""
    rest = tuple(other for other in patches_on(layer) if other is not patch)
    if len(rest) == len(patches_on(layer)):
        return
    patch.restore(layer)  # type: ignore[arg-type]  # the layer is of the patch's class
    for name in patch.STATE:
        delattr(layer, name)
    layer.__class__ = patched_class(rest) if rest else plain_class(layer)


def remove_patches(network: nn.Module, *patches: type) -> None:
    """Removes these patches from all layers of a network."""
    for layer in network.modules():
        for patch in patches:
            remove_patch(layer, patch)


def plain_layers(network: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """Returns the layers of exactly this class that have no patch."""
    return (layer for layer in network.modules() if type(layer) is kind)
