"""The one training loop.

All randomness in a step comes from generators seeded by (seed, step, position in the step), and the order of the data
is a function of the step too. So a checkpoint needs no random state, and a run that was killed resumes bit for bit from
its last checkpoint. Several processes under `torchrun` each take their own examples and average their gradients.
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
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd.checkpoints.weight_files import write_weights
from sd.training.distributed import StopSignal, any_process, average_gradients, join_processes
from sd.training.logger import Logger
from sd.training.train_state import TrainingState
from sd.utils.errors import UserError

Generators = torch.Generator | list[torch.Generator]  # a list with one for each example if `TrainConfig.by_example`
Loss = Callable[[nn.Module, Tensor, Any], Tensor]  # Any: a loss takes one of the two kinds of `Generators`
OnStep = Callable[[nn.Module, int, float], dict | None]
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TrainConfig:
    """The length of a run, its learning rates and its precision."""

    steps: int
    batch: int  # examples at once, in each process
    accumulate: int = 1  # batches to a step
    lr: float = 1e-3
    lr_multipliers: dict[str, float] = field(default_factory=dict)  # of lr, by the name of a top-level submodule
    schedule: str = "cosine"  # or "constant"
    warmup: int = 100  # steps
    final_lr: float = 0.02  # the end of the cosine, as a fraction of lr
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema: float = 0.999  # decay of the averaged weights; 0 for no average
    precision: str = "bf16"  # of autocast; "fp16" scales gradients; "fp32" computes each layer in its weights' dtype
    math_attention: bool = True  # plain attention on a CPU, which holds the whole attention matrix in memory
    by_example: bool = False  # one generator for each example: a step does not depend on how its batch is split
    seed: int = 0
    device: str = "cpu"
    save_minutes: float = 3.0

    def lr_at(self, step: int) -> float:
        """Return the learning rate: linear warmup, then constant, or half a cosine down to `final_lr * lr` (Loshchilov
        & Hutter 2016, eq. 5).
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    def ema_at(self, step: int) -> float:
        """Return the decay of the average, which is short at first so that the average forgets the random start."""
        return min(self.ema, (1 + step) / (10 + step))

    def autocast(self) -> torch.autocast:
        dtype = PRECISIONS[self.precision]
        return torch.autocast(torch.device(self.device).type, dtype, enabled=dtype is not None)


def train(
    model: nn.Module,
    loss: Loss,
    examples: int,
    run: Path,
    settings: TrainConfig,
    on_save: Callable[[nn.Module, int], None] | None = None,
    on_step: OnStep | None = None,
) -> nn.Module:
    """Train `model` for `settings.steps` steps, or resume from `run/state.pt` where that exists.

    model: the parameters to train and nothing else; for an adapter its layers alone.
    loss: (model, indices, generator) -> the loss of the examples with these indices. `indices` are (batch,), below
        `examples`, each once an epoch; `generator` (on the CPU) gives all randomness.
    on_save: called with the averaged model and the step after each checkpoint, for sample sheets.
    on_step: called in the first process with the averaged model, the step and its loss; the returned values are logged.
        A KeyboardInterrupt from it acts as a Ctrl-C.

    Writes `run/state.pt` (atomically) and `run/log.jsonl`. Ctrl-C and SIGTERM save and stop; a second one exits without
    saving. Returns the averaged model, which is `model` itself without an average.
    Raises UserError where the loss is not finite or a checkpoint cannot be written, and KeyboardInterrupt after Ctrl-C
    or SIGTERM, once the checkpoint is written.
    """
    rank, world_size = join_processes(settings.device)
    trainer = Trainer(model, loss, settings, rank, world_size)
    state = TrainingState(Path(run), trainer.state_parts(), settings)
    state.resume()
    log = Logger(Path(run), state.step, settings.steps, is_leader=rank == 0)
    stopping = StopSignal(world_size, rank == 0, state.describe_saved)
    examples_per_step = settings.batch * settings.accumulate
    try:
        stop = False
        while state.step < settings.steps and not stop:
            value, wrong = trainer.step(
                state.step, batch_indices(state.step, examples_per_step, examples, settings.seed, rank, world_size)
            )
            if wrong:
                raise UserError(
                    f"the {wrong} is not finite at step {state.step}: {state.describe_saved()}; "
                    "run the same command with a lower --lr."
                )
            state.step += 1
            measures = after_step(on_step, trainer.average, state.step, value, stopping) if rank == 0 else None
            stop = any_process(stopping.requested, world_size)
            log.add_step(state.step, value, settings.lr_at(state.step - 1), examples_per_step * world_size, measures)
            if rank == 0 and (state.step == settings.steps or stop or state.age() > 60 * settings.save_minutes):
                state.save()
                if on_save is not None:
                    on_save(trainer.average, state.step)
    except OSError as error:
        reason = f"{run} cannot be written to ({error.strerror or error})"
        raise UserError(
            f"{reason}: {state.describe_saved()}; free some disk space and run the same command again."
        ) from error
    finally:
        log.close()
        stopping.restore()
    if stop and state.step < settings.steps:
        raise KeyboardInterrupt
    return trainer.average


def after_step(on_step: OnStep | None, average: nn.Module, step: int, loss: float, stopping: StopSignal) -> dict | None:
    """Call `on_step` and return its values; its `waits_for`, if any, names the work that a Ctrl-C waits for."""
    if on_step is None:
        return None
    name = getattr(on_step, "waits_for", None)
    stopping.waits_for = name(step) if name else "this step"
    try:
        return on_step(average, step, loss)
    except KeyboardInterrupt:
        if stopping.forced:
            raise
        stopping.request_stop()
        return None
    finally:
        stopping.waits_for = "this step"


class Trainer:
    """A model with its optimizer and its average, and one training step of all of them."""

    def __init__(self, model: nn.Module, loss: Loss, settings: TrainConfig, rank: int, world_size: int):
        self.model, self.loss, self.settings, self.rank, self.world_size = model, loss, settings, rank, world_size
        model.to(settings.device).train()
        self.average = copy.deepcopy(model).requires_grad_(False).eval() if settings.ema else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups, self.lr_multipliers = lr_groups(model, settings.lr_multipliers)
        self.optimizer = torch.optim.AdamW(
            groups, settings.lr, settings.betas, weight_decay=settings.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(torch.device(settings.device).type, enabled=settings.precision == "fp16")
        # On a CPU and at small sizes, flash attention's backward pass takes twice as long as plain matrix products.
        is_math = settings.device == "cpu" and settings.math_attention
        self.attention_kernel = partial(sdpa_kernel, SDPBackend.MATH) if is_math else nullcontext

    def state_parts(self) -> dict[str, Any]:
        """Return the objects whose state a checkpoint holds, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        parts |= {"average": self.average} if self.settings.ema else {}
        return parts | ({"scaler": self.scaler} if self.scaler.is_enabled() else {})

    def step(self, step: int, indices: Tensor) -> tuple[float, str]:
        """Make one step on these examples.

        Returns the loss and "". Where the loss or the gradient is not finite, nothing changes and its name is returned
        instead.
        """
        for group, share in zip(self.optimizer.param_groups, self.lr_multipliers):
            group["lr"] = share * self.settings.lr_at(step)
        value = self.gradients(step, indices)
        if any_process(not math.isfinite(value), self.world_size):
            return value, "loss"
        average_gradients(self.parameters, self.world_size)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if (
            not norm.isfinite() and self.scaler.get_scale() <= 1
        ):  # above 1 the scaler skips the step and lowers its scale
            return value, "gradient"
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.settings.ema:
            ema_update(self.average, self.model, self.settings.ema_at(step))
        return value, ""

    def gradients(self, step: int, indices: Tensor) -> float:
        """Return the mean loss of the step's batches; their gradients accumulate in the parameters."""
        self.optimizer.zero_grad()
        total = 0.0
        for i, batch in enumerate(indices.split(self.settings.batch)):
            random = generator_for(self.settings, step, self.rank * self.settings.accumulate + i)
            with self.attention_kernel():
                with self.settings.autocast():
                    value = self.loss(self.model, batch, random)
                self.scaler.scale(value / self.settings.accumulate).backward()
            total += value.item() / self.settings.accumulate
        return total


def lr_groups(model: nn.Module, lr_multipliers: dict[str, float]) -> tuple[list[dict], list[float]]:
    """Return the optimizer's parameter groups and the learning-rate multiplier of each."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_multipliers.get(name.split(".")[0], 1.0), []).append(parameter)
    return [{"params": parameters} for parameters in groups.values()], list(groups)


def generator_for(settings: TrainConfig, step: int, position: int) -> Generators:
    """Return the generator of batch number `position` of a step, counted over processes and accumulation; with
    `by_example` a list with one generator for each example.
    """
    if not settings.by_example:
        return torch.Generator().manual_seed(step_seed(settings.seed, step, position))
    positions = range(position * settings.batch, (position + 1) * settings.batch)
    return [torch.Generator().manual_seed(step_seed(settings.seed, step, one)) for one in positions]


def step_seed(seed: int, step: int, position: int = 0) -> int:
    """Return a distinct seed for each (seed, step, position)."""
    return ((seed * 1_000_003 + step) * 1_009 + position) % 2**64  # the range of a generator's seed


def batch_indices(step: int, batch: int, examples: int, seed: int, rank: int = 0, world_size: int = 1) -> Tensor:
    """Return (batch,) indices: this rank's part of step `step`, in an order that visits each example once an epoch."""
    first = (step * world_size + rank) * batch
    positions = torch.arange(first, first + batch)
    orders = {
        epoch: torch.randperm(examples, generator=torch.Generator().manual_seed(step_seed(seed, epoch)))
        for epoch in set((positions // examples).tolist())
    }
    return torch.stack([orders[position // examples][position % examples] for position in positions.tolist()])


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Update in place: average <- decay * average + (1 - decay) * model."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save_model(part: nn.Module, run: Path) -> None:
    """Write a network's weights to `run/model.safetensors`; a failure leaves the earlier file."""
    tensors = {key: tensor.cpu().contiguous() for key, tensor in part.state_dict().items()}
    write_weights(run / "model.safetensors", "safetensors", tensors, {})


def exists(run: Path) -> bool:
    """Return whether `run` holds a trained network."""
    return (run / "model.safetensors").exists()


def load_model(part: nn.Module, run: Path) -> nn.Module:
    """Load what `save_model` wrote into `part`, frozen and in evaluation mode.

    Raises UserError where that part has not been trained.
    """
    if not exists(run):
        raise UserError(f"no trained model in {run}; run `python scripts/train_scratch.py {run.name}` first.")
    part.load_state_dict(load_file(run / "model.safetensors"))
    return part.requires_grad_(False).eval()
