"""Memory that is free already, given back to the system."""

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def give_back_freed(*_: object) -> None:
    """Ask the C library for the pages that it keeps though nothing is in them; only Linux's (glibc) can.

    It keeps what was freed between tensors that still live, and new ones of another size do not fit there. Arguments
    let it be a hook.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def given_back_before(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While it lasts, `give_back_freed` runs before each of these layers."""
    hooks = [layer.register_forward_pre_hook(give_back_freed) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
