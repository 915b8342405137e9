"""Return freed heap pages to the operating system (glibc's `malloc_trim`)."""

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def trim_heap(*_: object) -> None:
    """Asks the C library to return the pages that it keeps although they are free; only Linux's (glibc) can.

    It keeps memory that was freed between tensors that are still alive, into which new ones of another size do not
    fit. The arguments are ignored, so that the function can be a hook.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def trim_before(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Calls `trim_heap` before each of these layers runs, for as long as the context lasts."""
    hooks = [layer.register_forward_pre_hook(trim_heap) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
