"""Several processes that train as one, as `torchrun` starts them, and what a person tells a process."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import nn


def join_processes(device: str) -> tuple[int, int]:
    """(rank, number of processes): those that `torchrun` started, or (0, 1)."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size()


def any_process(asked: bool, ranks: int) -> bool:
    """Whether it is so in any process: all stop after the same step, or those left would wait for ever."""
    if ranks == 1:
        return asked
    votes = torch.tensor(float(asked), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(votes)
    return votes.item() > 0


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """The mean over all processes, sent as one vector."""
    if ranks == 1:
        return
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / ranks).split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


class StopSignal:
    """Remembers that Ctrl-C or SIGTERM came, so that the loop can stop between two steps; a second one leaves at once.

    The first says what is waited for. With several processes there is no second one: `torchrun` itself sends it on.
    Outside of the main thread, where Python hands out no signals, whoever started it sets `asked`.

    waits_for: what is being done, in words. kept: what is lost by leaving at once, in words.
    """

    def __init__(self, ranks: int = 1, speaks: bool = False, kept: Callable[[], str] = str):
        self.asked, self.hurried, self.before = False, False, {}
        self.ranks, self.speaks, self.kept, self.waits_for = ranks, speaks, kept, "this step"
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self.heard) for s in (signal.SIGINT, signal.SIGTERM)}

    def heard(self, *_) -> None:
        """A signal. Written past Python's buffers, which it may have come in the middle of."""
        if self.asked and self.ranks == 1:
            self.hurried = True
            self.write("leaving at once.")
            raise KeyboardInterrupt
        self.asked = True
        self.write(
            f"stopping: waiting for {self.waits_for}, then saving. The same command goes on from there. "
            f"Ctrl-C again leaves at once ({self.kept()})."
        )

    def write(self, sentence: str) -> None:
        if self.speaks:
            with suppress(OSError):
                os.write(2, f"\n{sentence}\n".encode(errors="backslashreplace"))

    def ask(self) -> None:
        """As a first Ctrl-C."""
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
