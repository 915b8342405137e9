"""Trainings that take seconds: the project's loop and loss, on a few pictures that the repository has."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.schedule import TIMES
from sd.training.loop import TrainConfig, train
from sd.training.loss import prediction_errors, snr_weights
from sd.training.pretrain.train_unet import new_unet
from sd.unet import UNetModel
from tour.figure import Models
from tour.images import NAMES, encode_pictures, sheet_image

STEPS = 200
FALLS_BELOW = 0.35  # the mean loss of the last 50 steps on the ten names; it begins at 1
SIDE = 64  # pixels of the ten images, for latents of 8 x 8
# A tenth of the bundled U-Net's parameters.
SIZES = dict(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=4, context_dim=192
)


def config_for(steps: int, batch: int, lr: float, ema: float = 0.9) -> TrainConfig:
    """Return the settings of a short training: no weight decay, a short average (none if 0), full precision."""
    return TrainConfig(
        steps=steps, batch=batch, lr=lr, warmup=5, weight_decay=0.0, ema=ema, precision="fp32", save_minutes=60
    )


def fit(
    module: nn.Module,
    unet: nn.Module,
    latents: Tensor,
    contexts: Callable[[Tensor], Tensor],
    config: TrainConfig,
    weights: Tensor,
    on_step: Callable[[nn.Module, int], None] = lambda average, step: None,
    errors: Callable = prediction_errors,
    run: Path | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train the parameters of `module`, through `unet`, to predict the noise in these latents.

    module: the U-Net itself, or an adapter in it. latents: (N, 4, h, w). contexts: indices (B,) -> (B, M, D), the text
    of each. weights: (1000,), see `snr_weights`. on_step: called with the averaged module and the step. errors: the
    loss, see `prediction_errors`. run: a folder for the state and the log. Returns the averaged module and the losses.
    """
    losses: list[float] = []

    def loss(trained: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        x0 = latents[indices]
        noise = torch.randn(x0.shape, generator=generator)
        # One time from each of B equal parts of 0 … 999, so that the loss of a step depends less on its times.
        t = ((torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) * TIMES / len(x0)).long()
        return errors(unet, x0, noise, t, contexts(indices), weights).mean()

    def after(average: nn.Module, step: int, value: float) -> None:
        losses.append(value)
        on_step(average, step)

    with tempfile.TemporaryDirectory() as folder, torch.enable_grad(), contextlib.redirect_stderr(io.StringIO()):
        return train(module, loss, len(latents), run or Path(folder), config, on_step=after), losses


def ten_names(models: Models) -> tuple[Tensor, Tensor]:
    """Return the latents (10, 4, 8, 8) of ten images, and the text states (10, 77, 192) of their names."""
    small = [sheet_image(name).resize((SIDE, SIDE)) for name in NAMES]
    with torch.no_grad():
        return encode_pictures(models.vae, small), models.context(list(NAMES))


def train_briefly(
    latents: Tensor,
    contexts: Tensor,
    run: Path | None = None,
    errors: Callable = prediction_errors,
    on_step: Callable[[nn.Module, int], None] = lambda average, step: None,
) -> tuple[UNetModel, list[float]]:
    """Train a new, tiny U-Net on ten latents with the states of their names; return its average and the losses."""
    torch.manual_seed(0)  # of the random weights
    unet = new_unet(SIZES)
    config = config_for(STEPS, batch=10, lr=3e-3)
    average, losses = fit(unet, unet, latents, lambda i: contexts[i], config, snr_weights(), on_step, errors, run)
    return average, losses
