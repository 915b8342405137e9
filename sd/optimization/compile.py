"""The U-Net and the VAE's decoder as code made for one GPU and one size: `torch.compile`, replayed as a CUDA graph.

The first picture of a size waits some minutes for it. What was made stays on disk, and the next process waits less. On
a CPU it does not pay: a bf16 step of v1-5 at 512x512 took 1.1 times as long as without.
"""

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

KEPT = Path.home() / ".cache" / "stable-diffusion-by-hand"


class Compiled:
    """In the place of a network's `forward`.

    mode: one of `torch.compile`'s; "max-autotune" tries several kernels for each product and replays them as a graph.
    """

    def __init__(self, network: nn.Module, mode: str = "max-autotune"):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(KEPT))
        self.network, self.sizes = network, set()
        self.run = torch.compile(self.eager, mode=mode, dynamic=False)
        self.works = True

    def eager(self, *inputs: Tensor) -> Tensor:
        return type(self.network).forward(self.network, *inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.works:
            return self.eager(*inputs)
        sizes = tuple(tuple(tensor.shape) for tensor in inputs)
        if sizes in self.sizes:
            return self.replay(*inputs)
        print("compiling for this size: some minutes the first time, less from then on.", file=sys.stderr)
        try:
            answer = self.replay(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: a compiler that is missing or too old, a kernel that it cannot make
            self.works = False
            print(f"it goes on without compiling, which failed here: {first_line(error)}", file=sys.stderr)
            return self.eager(*inputs)
        self.sizes.add(sizes)
        return answer

    def replay(self, *inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return self.run(*inputs).clone()  # the graph's next answer will lie where this one does


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def compile_forward(network: nn.Module, mode: str = "max-autotune") -> None:
    if "forward" not in vars(network):
        network.forward = Compiled(network, mode)


def run_eagerly(network: nn.Module) -> None:
    if isinstance(vars(network).get("forward"), Compiled):
        del network.forward
