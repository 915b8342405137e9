"""The U-Net and the VAE's decoder, compiled for one GPU and one image size: `torch.compile` and CUDA graphs.

The first image of a size takes some minutes longer. The compiled kernels are kept on disk, so that the next process
waits less. On a CPU compiling does not pay: a bf16 step of v1-5 at 512x512 takes 1.1 times as long as without.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sd.utils.files import cache_dir

CACHE_DIR = cache_dir() / "compiled"


class Compiled:
    """Replaces the `forward` of a network.

    mode: of `torch.compile`; "max-autotune" tries several kernels for each product and replays them as a CUDA graph.
    """

    def __init__(self, network: nn.Module, mode: str = "max-autotune"):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE_DIR))
        self.network, self.sizes = network, set()
        self.run = torch.compile(self.eager, mode=mode, dynamic=False)
        self.works = True

    def eager(self, *inputs: Tensor) -> Tensor:
        """The network's own `forward`."""
        return type(self.network).forward(self.network, *inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.works:
            return self.eager(*inputs)
        sizes = tuple(tuple(tensor.shape) for tensor in inputs)
        if sizes in self.sizes:
            return self.replay(*inputs)
        print(
            "compiling for this image size: this takes some minutes the first time, and less from then on.",
            file=sys.stderr,
        )
        try:
            output = self.replay(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: a missing or outdated compiler, a kernel that it cannot generate
            self.works = False
            print(f"compiling failed: {first_line(error)} The network runs without it.", file=sys.stderr)
            return self.eager(*inputs)
        self.sizes.add(sizes)
        return output

    def replay(self, *inputs: Tensor) -> Tensor:
        """Runs the compiled network."""
        torch.compiler.cudagraph_mark_step_begin()
        return self.run(*inputs).clone()  # the graph writes its next output to the same memory


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message that is not empty, or the error's type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def compile_forward(network: nn.Module, mode: str = "max-autotune") -> None:
    """Compiles a network when it first runs; nothing happens where it is compiled already."""
    if "forward" not in vars(network):
        network.forward = Compiled(network, mode)


def run_eagerly(network: nn.Module) -> None:
    """Removes the compiled `forward`."""
    if isinstance(vars(network).get("forward"), Compiled):
        del network.forward


@contextmanager
def eagerly(network: nn.Module) -> Iterator[None]:
    """Runs a network without its compiled `forward` within the context; what is compiled is kept for afterwards."""
    compiled = vars(network).get("forward")
    run_eagerly(network)
    try:
        yield
    finally:
        if isinstance(compiled, Compiled):
            network.forward = compiled
