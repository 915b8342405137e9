"""The one training loop.

Everything random in a step is drawn from a generator seeded by (seed, step, place in the step), and the order of the
data is a function of the step too. So a checkpoint needs no random state, and a run that was killed goes on bit for bit
from its last checkpoint. Several processes under `torchrun` each take their own examples and average their gradients.
"""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd.training.distributed import StopSignal, any_process, average_gradients, join_processes
from sd.training.logger import Log
from sd.training.train_state import TrainingState
from sd.utils.errors import UserError

Random = torch.Generator | list[torch.Generator]  # a list of one for each example where `Settings.by_example`
Loss = Callable[[nn.Module, Tensor, Random], Tensor]
OnStep = Callable[[nn.Module, int, float], dict | None]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Settings:
    """How long and how fast to learn."""

    steps: int
    batch: int  # examples at once, in each process
    accumulate: int = 1  # batches to a step
    lr: float = 1e-3
    shares: dict[str, float] = field(default_factory=dict)  # of lr, for a part of the model by its name
    schedule: str = "cosine"  # or "constant"
    warmup: int = 100  # steps
    final_lr: float = 0.02  # the end of the cosine, as a share of lr
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema: float = 0.999  # 0 leaves the average out
    precision: str = "bf16"  # of autocast, or "fp16", with scaled gradients; "fp32": each layer in its weights' own
    math_attention: bool = True  # on a CPU; needs the memory of the whole attention matrix
    by_example: bool = False  # a generator for each example: a step is then the same however its batch is cut
    seed: int = 0
    device: str = "cpu"
    save_minutes: float = 3.0

    def lr_at(self, step: int) -> float:
        """Linear warmup, then constant, or half a cosine down to `final_lr * lr` (Loshchilov & Hutter 2016, eq. 5)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    def ema_at(self, step: int) -> float:
        """The average's memory, short at first so that it forgets the random start."""
        return min(self.ema, (1 + step) / (10 + step))

    def autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)


def train(
    model: nn.Module,
    loss: Loss,
    examples: int,
    run: Path,
    settings: Settings,
    on_save: Callable[[nn.Module, int], None] | None = None,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Train `model` for `settings.steps` steps, or go on from `run/state.pt` where that exists.

    model: what is trained, and nothing else: for an adapter its patches alone.
    loss: (model, indices, generator) -> the loss of the examples with these indices; `indices` are (batch,), below
        `examples`, each once an epoch; `generator` (on the CPU) gives all that is random.
    on_save: called with the averaged model and the step after each checkpoint, for sample sheets.
    on_step: called in the first process with the averaged model, the step and its loss; what it returns is logged. A
        KeyboardInterrupt from it is a Ctrl-C.

    Writes `run/state.pt` (whole or not at all) and `run/log.jsonl`. Ctrl-C and SIGTERM save and stop; a second one
    stops without.
    Returns the averaged model, which is `model` itself without an average.

    Raises:
        UserError: the loss is no longer a number, or a checkpoint cannot be written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    rank, ranks = join_processes(settings.device)
    learner = Learner(model, loss, settings, rank, ranks)
    state = TrainingState(Path(run), learner.parts(), settings)
    state.resume()
    log = Log(Path(run), state.step, settings.steps, leader=rank == 0)
    stopping = StopSignal(ranks, rank == 0, state.kept)
    taken = settings.batch * settings.accumulate
    try:
        stop = False
        while state.step < settings.steps and not stop:
            value, wrong = learner.step(
                state.step, examples_of(state.step, taken, examples, settings.seed, rank, ranks)
            )
            if wrong:
                raise UserError(
                    f"the {wrong} is no longer a number at step {state.step}: {state.kept()}; "
                    "give the same command with a lower --lr."
                )
            state.step += 1
            numbers = after_step(on_step, learner.average, state.step, value, stopping) if rank == 0 else None
            stop = any_process(stopping.asked, ranks)
            log.add(state.step, value, settings.lr_at(state.step - 1), taken * ranks, numbers)
            if rank == 0 and (state.step == settings.steps or stop or state.age() > 60 * settings.save_minutes):
                state.save()
                if on_save is not None:
                    on_save(learner.average, state.step)
    except OSError as error:
        reason = f"{run} cannot be written to ({error.strerror or error})"
        raise UserError(f"{reason}: {state.kept()}; make room and give the same command again.") from error
    finally:
        log.close()
        stopping.restore()
    if stop and state.step < settings.steps:
        raise KeyboardInterrupt
    return learner.average


def after_step(on_step: OnStep | None, average: nn.Module, step: int, loss: float, stopping: StopSignal) -> dict | None:
    """What `on_step` measures. It says what a Ctrl-C has to wait for where it has `waits_for`."""
    if on_step is None:
        return None
    name = getattr(on_step, "waits_for", None)
    stopping.waits_for = name(step) if name else "this step"
    try:
        return on_step(average, step, loss)
    except KeyboardInterrupt:
        if stopping.hurried:
            raise
        stopping.ask()
        return None
    finally:
        stopping.waits_for = "this step"


class Learner:
    """A model with its optimizer, and one step of both."""

    def __init__(self, model: nn.Module, loss: Loss, settings: Settings, rank: int, ranks: int):
        self.model, self.loss, self.settings, self.rank, self.ranks = model, loss, settings, rank, ranks
        model.to(settings.device).train()
        self.average = copy.deepcopy(model).requires_grad_(False).eval() if settings.ema else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups, self.shares = lr_groups(model, settings.shares)
        self.optimizer = torch.optim.AdamW(
            groups, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(torch.device(settings.device).type, enabled=settings.precision == "fp16")
        # On a CPU and at small sizes, flash attention's backward pass takes twice as long as plain matrix products.
        is_math = settings.device == "cpu" and settings.math_attention
        self.attention_kernel = partial(sdpa_kernel, SDPBackend.MATH) if is_math else nullcontext

    def parts(self) -> dict[str, Any]:
        """What a checkpoint has to hold, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        parts |= {"average": self.average} if self.settings.ema else {}
        return parts | ({"scaler": self.scaler} if self.scaler.is_enabled() else {})

    def step(self, step: int, indices: Tensor) -> tuple[float, str]:
        """Learn from these examples. Returns the loss and, with nothing changed, what is no number ("" if all is)."""
        for group, share in zip(self.optimizer.param_groups, self.shares):
            group["lr"] = share * self.settings.lr_at(step)
        value = self.gradients(step, indices)
        if any_process(not math.isfinite(value), self.ranks):
            return value, "loss"
        average_gradients(self.parameters, self.ranks)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if not norm.isfinite() and self.scaler.get_scale() <= 1:  # above 1 the scaler skips the step and scales less
            return value, "gradient"
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.settings.ema:
            follow(self.average, self.model, self.settings.ema_at(step))
        return value, ""

    def gradients(self, step: int, indices: Tensor) -> float:
        """The mean loss of the step's batches; its gradients are left in the parameters."""
        self.optimizer.zero_grad()
        total = 0.0
        for i, batch in enumerate(indices.split(self.settings.batch)):
            random = random_of(self.settings, step, self.rank * self.settings.accumulate + i)
            with self.attention_kernel():
                with self.settings.autocast():
                    value = self.loss(self.model, batch, random)
                self.scaler.scale(value / self.settings.accumulate).backward()
            total += value.item() / self.settings.accumulate
        return total


def lr_groups(model: nn.Module, shares: dict[str, float]) -> tuple[list[dict], list[float]]:
    """The optimizer's groups of parameters, and each one's share of the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(shares.get(name.split(".")[0], 1.0), []).append(parameter)
    return [{"params": parameters} for parameters in groups.values()], list(groups)


def random_of(settings: Settings, step: int, place: int) -> Random:
    """For batch number `place` of a step, counted over processes and accumulation: a generator, or one an example."""
    if not settings.by_example:
        return torch.Generator().manual_seed(step_seed(settings.seed, step, place))
    places = range(place * settings.batch, (place + 1) * settings.batch)
    return [torch.Generator().manual_seed(step_seed(settings.seed, step, one)) for one in places]


def step_seed(seed: int, step: int, place: int = 0) -> int:
    """A seed of its own for each (seed, step, place)."""
    return ((seed * 1_000_003 + step) * 1_009 + place) % 2**64  # what a generator can take


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


def keep(part: nn.Module, run: Path) -> None:
    """A network as it is used, in `run/model.safetensors`."""
    save_file({key: tensor.cpu().contiguous() for key, tensor in part.state_dict().items()}, run / "model.safetensors")


def is_kept(run: Path) -> bool:
    return (run / "model.safetensors").exists()


def kept(part: nn.Module, run: Path) -> nn.Module:
    """What `keep` wrote, ready for use.

    Raises:
        UserError: that part has not been trained.
    """
    if not is_kept(run):
        raise UserError(f"{run} holds no trained part yet: run `python scripts/train_scratch.py {run.name}` first.")
    part.load_state_dict(load_file(run / "model.safetensors"))
    return part.requires_grad_(False).eval()
