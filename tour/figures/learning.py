"""The figures of chapter 9: a training of 200 steps, by its loss and by what it generates."""

import copy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.predictions import EPS, PREDICTIONS, Prediction
from sd.denoiser import Denoiser
from sd.pipeline.sampling.v_prediction import VDenoiser
from sd.samplers import ddim
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.training.loss import prediction_errors
from sd.training.pretrain.train_unet import new_unet
from sd.unet import UNetModel
from tour.figure import Figure, Models
from tour.images import NAMES
from tour.plots import BLUE, GRAY, ORANGE, Axes, beside, image_rows
from tour.short_training import FALLS_BELOW, SIZES, STEPS, ten_names, train_briefly

V = PREDICTIONS["v"]
KEPT = (50, 100, 200)
TIMES = (0, 50, 100, 200, 300, 450, 600, 800, 999)


@lru_cache(maxsize=2)
def training(models: Models, prediction: Prediction) -> tuple[dict[int, UNetModel], list[float]]:
    """Train once to predict the noise or v; return the U-Net after 0 and after each of KEPT steps, and the losses."""
    kept = {0: new_unet(SIZES)}

    def keep(average: UNetModel, step: int) -> None:
        if step in KEPT:
            kept[step] = copy.deepcopy(average)

    errors = partial(prediction_errors, prediction=prediction)
    _, losses = train_briefly(*ten_names(models), errors=errors, on_step=keep)
    return kept, losses


def names_by_step(models: Models) -> Figure:
    """The same ten prompts and noises after more and more steps, and the ten images that were learned from."""
    latents, contexts = ten_names(models)
    sigmas = sigma_list(10, "sgm_uniform")
    x = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)) * (1 + sigmas[0] ** 2) ** 0.5
    denoisers: dict[str, Denoiser] = {
        f"v, {step} steps": VDenoiser(unet, contexts) for step, unet in sorted(training(models, V)[0].items())
    }
    denoisers[f"eps, {STEPS} steps"] = Denoiser(training(models, EPS)[0][STEPS], contexts)
    rows, distances = {}, []
    for name, denoise in denoisers.items():
        *_, (generated, _) = ddim(denoise, x, sigmas, None)
        rows[name] = models.decode(generated)
        distances.append((generated - latents).square().mean().sqrt().item())
    rows["learned from"] = models.decode(latents)
    image = image_rows(rows, [name.split(" ", 1)[1] for name in NAMES], 84)
    numbers: dict[str, Any] = {
        "distance": distances,
        "parameters": count(new_unet(SIZES)),
        "bundled": count(models.unet),
    }
    return Figure(image, numbers, ALT)


ALT = "Ten generated images after 0, 50, 100 and 200 steps of training, and the ten pictures that were learned from."


def count(unet: UNetModel) -> float:
    """Return a network's parameters in millions."""
    return sum(parameter.numel() for parameter in unet.parameters()) / 1e6


def loss_curves(models: Models) -> Figure:
    """The loss of each step, and the error by the time t before and after the training."""
    unets = {"eps": training(models, EPS)[0][STEPS], "v": training(models, V)[0][STEPS]}
    losses = training(models, EPS)[1]
    smooth = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(STEPS)]
    left = Axes((0, STEPS), (0, 1.2), "loss by step, eps", "step", size=(400, 300))
    left.line(range(1, STEPS + 1), losses, (200, 205, 215)).line(range(1, STEPS + 1), smooth, BLUE, "mean of 10")
    latents, contexts = ten_names(models)
    eps = [error_at(unets["eps"], latents, contexts, t, EPS) for t in TIMES]
    v = [error_at(unets["v"], latents, contexts, t, V) for t in TIMES]
    variances = (SD1_SCHEDULE.sigmas[torch.tensor(TIMES)] ** 2).tolist()
    in_x0 = {
        "eps_x0": [variance * error for variance, error in zip(variances, eps)],
        "v_x0": [variance / (1 + variance) * error for variance, error in zip(variances, v)],
    }
    right = Axes((0, 1000), (1e-3, 30), f"error in x0 by t, after {STEPS} steps", "t", y_log=True, size=(400, 300))
    right.line(TIMES, in_x0["eps_x0"], BLUE, "eps").line(TIMES, in_x0["v_x0"], ORANGE, "v")
    nothing = latents.square().mean().item()
    right.line((0, 1000), (nothing, nothing), GRAY, "the answer 0")
    numbers: dict[str, Any] = {
        "first": sum(losses[:5]) / 5,
        "last": sum(losses[-50:]) / 50,
        "bound": FALLS_BELOW,
        "times": list(TIMES),
    }
    alt = "The loss falls from 1, steeply at first; the error in x0 rises with t, much more for eps than for v."
    image = beside([left.render(), right.render("bottom right")])
    return Figure(image, numbers | in_x0 | {"eps": eps, "v": v, "nothing": nothing}, alt)


def error_at(unet: UNetModel, latents: Tensor, contexts: Tensor, t: int, prediction: Prediction) -> float:
    """Return the mean squared error in eps or v at one time, over all pictures and four noises each."""
    generator = torch.Generator().manual_seed(t)
    x0, states = latents.repeat(4, 1, 1, 1), contexts.repeat(4, 1, 1)
    noise = torch.randn(x0.shape, generator=generator)
    t_of_all = torch.full((len(x0),), t)
    return prediction_errors(unet, x0, noise, t_of_all, states, torch.ones(1000), prediction).mean().item()


FIGURES = {"names_by_step": names_by_step, "loss_curves": loss_curves}
