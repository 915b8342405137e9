"""Data-parallel training under `torchrun`, and the signals that stop a run."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import nn

from sd.utils.device import rank_and_world_size


def join_processes(device: str) -> tuple[int, int]:
    """Join the process group of `torchrun` and return (rank, world size); (0, 1) for a single process."""
    rank, world_size = rank_and_world_size()
    if world_size > 1 and not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return rank, world_size


def any_process(requested: bool, world_size: int) -> bool:
    """Return whether the condition holds in any process.

    All processes stop after the same step; otherwise the remaining ones would wait forever.
    """
    if world_size == 1:
        return requested
    votes = torch.tensor(float(requested), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(votes)
    return votes.item() > 0


def average_gradients(parameters: list[nn.Parameter], world_size: int) -> None:
    """Replace each gradient by its mean over all processes, sent as one vector."""
    if world_size == 1:
        return
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world_size).split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


class StopSignal:
    """Records Ctrl-C or SIGTERM, so that the loop can stop between two steps; a second signal exits at once.

    The first signal prints what the program waits for. With several processes a second one has no effect, because
    `torchrun` itself forwards it. Outside of the main thread, where Python delivers no signals, the caller sets
    `requested`.

    waits_for: the work in progress, in words. describe_saved: tells what is lost by exiting at once, in words.
    """

    def __init__(self, world_size: int = 1, verbose: bool = False, describe_saved: Callable[[], str] = str):
        self.requested, self.forced, self.previous_handlers = False, False, {}
        self.world_size, self.verbose, self.describe_saved = world_size, verbose, describe_saved
        self.waits_for = "this step"
        if threading.current_thread() is threading.main_thread():
            self.previous_handlers = {s: signal.signal(s, self.handle_signal) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle_signal(self, *_) -> None:
        """Handle a signal. The message bypasses Python's buffers, which the signal may have interrupted."""
        if self.requested and self.world_size == 1:
            self.forced = True
            self.print_sentence("exiting at once.")
            raise KeyboardInterrupt
        self.requested = True
        self.print_sentence(
            f"stopping: waiting for {self.waits_for}, then saving. The same command resumes from there. "
            f"Ctrl-C again exits at once ({self.describe_saved()})."
        )

    def print_sentence(self, sentence: str) -> None:
        if self.verbose:
            with suppress(OSError):
                os.write(2, f"\n{sentence}\n".encode(errors="backslashreplace"))

    def request_stop(self) -> None:
        """Act as a first Ctrl-C does."""
        self.requested = True

    def restore(self) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
