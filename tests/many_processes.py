"""Work in a process of its own, forked, so that nothing is imported a second time.

Tests that fork use the fixture `one_thread`: a child has none of its parent's OpenMP threads, but believes that it has
and waits for them for ever. The parent then computes with one thread as well, for the same bits.
"""

import os
import sys
import traceback
from collections.abc import Callable

import torch


def forked(work: Callable[[], None], **environment: str) -> int:
    """Starts `work` in a child; returns its process id, for `ended`."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        os.environ.update(environment)
        torch.set_num_threads(1)
        work()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> int:
    """The exit code once it is over, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def together(work: Callable[[], None], count: int, port: int) -> list[int]:
    """`work` in `count` processes at once that know of each other as `torchrun` tells them; their exit codes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    pids = [forked(work, RANK=str(rank), LOCAL_RANK=str(rank), **address) for rank in range(count)]
    return [ended(pid) for pid in pids]
