"""The one training loop.

Everything random in a step is drawn from a generator seeded by (seed, step, rank), and the order of the data is a
function of the step too. So a checkpoint needs no random state, and a run that was killed goes on bit for bit from its
last checkpoint. Several processes under `torchrun` each take their own examples and average their gradients.
"""

import copy
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd.errors import UserError
from sd.training.log import Log

Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


@dataclass
class Settings:
    """How long and how fast to learn."""

    steps: int
    batch: int  # examples a step, in each process
    lr: float = 1e-3
    warmup: int = 100  # steps
    final_lr: float = 0.02  # the end of the cosine, as a share of lr
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema: float = 0.999  # 0 leaves the average out
    bf16: bool = True
    seed: int = 0
    device: str = "cpu"
    save_minutes: float = 3.0

    def lr_at(self, step: int) -> float:
        """Linear warmup, then half a cosine down to `final_lr * lr` (Loshchilov & Hutter 2016, eq. 5)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    def ema_at(self, step: int) -> float:
        """The average's memory, short at first so that it forgets the random start."""
        return min(self.ema, (1 + step) / (10 + step))


def train(
    model: nn.Module,
    loss: Loss,
    examples: int,
    run: Path,
    settings: Settings,
    on_save: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Train `model` for `settings.steps` steps, or go on from `run/state.pt` where that exists.

    loss: (model, indices, generator) -> the loss of the examples with these indices; `indices` are (batch,), below
        `examples`, each once an epoch; `generator` (on the CPU) gives all that is random.
    on_save: called with the averaged model and the step after each checkpoint, for sample sheets.

    Writes `run/state.pt` (whole or not at all) and `run/log.jsonl`. Ctrl-C and SIGTERM save and stop.
    Returns the averaged model.

    Raises:
        UserError: the loss is no longer a number.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    rank, ranks = join_processes(settings.device)
    # On a CPU and at these sizes, flash attention's backward pass takes twice as long as plain matrix products.
    attention_kernel = nullcontext if settings.device != "cpu" else partial(sdpa_kernel, SDPBackend.MATH)
    model.to(settings.device).train()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    state = TrainingState(Path(run), model, average, optimizer, settings)
    state.resume()
    log = Log(Path(run), state.step, settings.steps, leader=rank == 0)
    stopping = StopSignal()

    stop = False
    while state.step < settings.steps and not stop:
        generator = torch.Generator().manual_seed(step_seed(settings.seed, state.step, rank))
        indices = examples_of(state.step, settings.batch, examples, settings.seed, rank, ranks)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(state.step)
        with (
            torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=settings.bf16),
            attention_kernel(),
        ):
            value = loss(model, indices, generator)
        if not math.isfinite(value.item()):
            raise UserError(
                f"the loss is no longer a number at step {state.step}: go on from {state.path} with a lower --lr."
            )
        optimizer.zero_grad()
        value.backward()
        average_gradients(parameters, ranks)
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        follow(average, model, settings.ema_at(state.step))
        state.step += 1
        stop = any_process(stopping.asked, ranks)
        log.add(state.step, value.item(), settings.lr_at(state.step - 1), settings.batch * ranks)
        if rank == 0 and (state.step == settings.steps or stop or state.age() > 60 * settings.save_minutes):
            state.save()
            if on_save is not None:
                on_save(average, state.step)
    log.close()
    stopping.restore()
    if stop and state.step < settings.steps:
        raise KeyboardInterrupt
    return average


class TrainingState:
    """What a checkpoint holds, and the file that holds it."""

    def __init__(
        self, run: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings
    ):
        self.path = run / "state.pt"
        self.parts = {"model": model, "average": average, "optimizer": optimizer}
        self.settings = settings
        self.step = 0
        self.saved = time.monotonic()

    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved

    def save(self) -> None:
        """Write beside, then rename: a kill at any moment leaves a whole file, the old one or the new."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        contents = {"step": self.step, "settings": asdict(self.settings)}
        contents |= {name: part.state_dict() for name, part in self.parts.items()}
        beside = self.path.with_suffix(".writing")
        with open(beside, "wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        self.saved = time.monotonic()

    def resume(self) -> None:
        if not self.path.exists():
            return
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        self.step = saved["step"]
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])


class StopSignal:
    """Remembers that Ctrl-C or SIGTERM came, so that the loop can stop between two steps."""

    def __init__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, *_) -> None:
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed of its own for each (seed, step, rank)."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def examples_of(step: int, batch: int, examples: int, seed: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """(batch,) indices: this rank's share of step `step`, in a walk that takes each example once an epoch."""
    first = (step * ranks + rank) * batch
    places = torch.arange(first, first + batch)
    orders = {
        epoch: torch.randperm(examples, generator=torch.Generator().manual_seed(step_seed(seed, epoch)))
        for epoch in set((places // examples).tolist())
    }
    return torch.stack([orders[place // examples][place % examples] for place in places.tolist()])


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model"""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


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
    """Whether any process was asked to stop: all stop after the same step, or those left would wait for ever."""
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


def keep(part: nn.Module, run: Path) -> None:
    """A network as it is used, in `run/model.safetensors`."""
    save_file({key: tensor.cpu().contiguous() for key, tensor in part.state_dict().items()}, run / "model.safetensors")


def kept(part: nn.Module, run: Path) -> nn.Module:
    """What `keep` wrote, ready for use.

    Raises:
        UserError: that part has not been trained.
    """
    if not (run / "model.safetensors").exists():
        raise UserError(f"{run} holds no trained part yet: run `python scripts/train_scratch.py {run.name}` first.")
    part.load_state_dict(load_file(run / "model.safetensors"))
    return part.requires_grad_(False).eval()
