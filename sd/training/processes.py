"""Several processes that train as one, as `torchrun` starts them, and what a person tells a process."""

import os
import signal
import threading

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
    """Remembers that Ctrl-C or SIGTERM came, so that the loop can stop between two steps.

    Outside of the main thread, where Python hands out no signals, whoever started it sets `asked`.
    """

    def __init__(self):
        self.asked, self.before = False, {}
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, *_) -> None:
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
