"""Memory that is free already, given back to the system."""

import ctypes
import sys
from typing import Any


def give_back_freed(_: Any = None) -> None:
    """Ask the C library for the pages that it keeps though nothing is in them; only Linux's (glibc) can.

    It keeps what was freed between tensors that still live, and new ones of another size do not fit there. The argument
    lets it be a tensor's hook.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
