"""Uploaded images are decoded in other processes: functions decorated with `decodes_uploads` run there.

An image that crashes or holds the decoder costs its request. Without readers, as in tests and in those processes
themselves, the functions run where they are called.
"""

import functools
import queue
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from sd.web.jobs.file_reader import FileReader

P = ParamSpec("P")
T = TypeVar("T")
idle: "queue.LifoQueue[FileReader] | None" = None  # the last one used is taken first: others may never have to start


def decode_by(readers: Sequence[FileReader]) -> None:
    """Let these processes run the decorated functions from now on, as many at once; none lets this one."""
    global idle
    idle = queue.LifoQueue() if readers else None
    for reader in reversed(readers):
        idle.put(reader)


def decodes_uploads(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function of a module's top level that decodes uploaded images.

    Its arguments and its result are sent between processes. Of exceptions it raises UserError alone.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if (readers := idle) is None:
            return function(*args, **kwargs)
        reader = readers.get()
        try:
            return reader(functools.partial(wrapped, **kwargs), *args)
        finally:
            readers.put(reader)

    return wrapped
