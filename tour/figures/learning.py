"""The figures of chapter 9: a training of 200 steps, by its loss and by what it draws."""

import copy
from functools import lru_cache

import torch
from torch import Tensor

from sd.denoiser import Denoiser
from sd.samplers import ddim
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.training.loss import prediction_errors, snr_weights
from sd.training.pretrain.train_unet import X0_WEIGHTS, new_unet
from sd.unet import UNetModel
from tour.drawings import NAMES
from tour.figure import Figure, Models
from tour.plots import BLUE, GRAY, ORANGE, Axes, beside, image_rows
from tour.short_training import FALLS_BELOW, SIZES, STEPS, ten_names, train_briefly

KEPT = (50, 100, 200)
TIMES = (0, 50, 100, 200, 300, 450, 600, 800, 999)


@lru_cache(maxsize=2)
def training(models: Models, weighted: bool) -> tuple[dict[int, UNetModel], list[float]]:
    """Train once; return the U-Net after 0 and after each of KEPT steps, and the losses.

    weighted: with the weights that the bundled model was trained with, instead of the plain loss.
    """
    kept = {0: new_unet(SIZES)}

    def keep(average: UNetModel, step: int) -> None:
        if step in KEPT:
            kept[step] = copy.deepcopy(average)

    weights = snr_weights(*X0_WEIGHTS) if weighted else None
    _, losses = train_briefly(*ten_names(models), on_step=keep, weights=weights)
    return kept, losses


def names_by_step(models: Models) -> Figure:
    """The same ten prompts and noises after more and more steps, and the ten drawings that were learned from."""
    latents, contexts = ten_names(models)
    sigmas = sigma_list(10)
    x = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)) * (1 + sigmas[0] ** 2) ** 0.5
    unets = {f"{step} steps": unet for step, unet in sorted(training(models, True)[0].items())}
    unets["200 steps, plain loss"] = training(models, False)[0][STEPS]
    rows, distances = {}, []
    for name, unet in unets.items():
        *_, (drawn, _) = ddim(Denoiser(unet, contexts), x, sigmas, None)
        rows[name] = models.decode(drawn)
        distances.append((drawn - latents).square().mean().sqrt().item())
    rows["learned from"] = models.decode(latents)
    image = image_rows(rows, [name.split(" ", 1)[1] for name in NAMES], 84)
    numbers = {"distance": distances, "parameters": count(unets["0 steps"]), "bundled": count(models.unet)}
    return Figure(image, numbers, ALT)


ALT = "Ten drawings after 0, 50, 100 and 200 steps of training, and the ten pictures that were learned from."


def count(unet: UNetModel) -> float:
    """Return a network's parameters in millions."""
    return sum(parameter.numel() for parameter in unet.parameters()) / 1e6


def loss_curves(models: Models) -> Figure:
    """The loss of each step, and the error by the time t before and after the training."""
    plain, losses = training(models, False)
    weighted, _ = training(models, True)
    smooth = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(STEPS)]
    left = Axes((0, STEPS), (0, 1.2), "plain loss by step", "step", size=(400, 300))
    left.line(range(1, STEPS + 1), losses, (200, 205, 215)).line(range(1, STEPS + 1), smooth, BLUE, "mean of 10")
    latents, contexts = ten_names(models)
    right = Axes((0, 1000), (0.004, 2), "error in the noise by t", "t", y_log=True, size=(400, 300))
    by_time = {}
    for name, unet, color in (("plain", plain[STEPS], BLUE), ("weighted", weighted[STEPS], ORANGE)):
        by_time[name] = [error_at(unet, latents, contexts, t) for t in TIMES]
        right.line(TIMES, by_time[name], color, f"after {STEPS} steps, {name}")
    products = SD1_SCHEDULE.alphas_cumprod[torch.tensor(TIMES)]
    by_time["input"] = (products + (1 - (1 - products).sqrt()) ** 2).tolist()  # for x0 of variance 1
    right.line(TIMES, by_time["input"], GRAY, "of the input as the answer")
    numbers = {"first": sum(losses[:5]) / 5, "last": sum(losses[-50:]) / 50, "bound": FALLS_BELOW, "times": list(TIMES)}
    alt = "The loss falls from 1, steeply at first; the error by t is largest at small t."
    return Figure(beside([left.render(), right.render()]), numbers | by_time, alt)


def error_at(unet: UNetModel, latents: Tensor, contexts: Tensor, t: int) -> float:
    """Return the mean squared error in the noise at one time, over all pictures and four noises each."""
    generator = torch.Generator().manual_seed(t)
    x0, states = latents.repeat(4, 1, 1, 1), contexts.repeat(4, 1, 1)
    noise = torch.randn(x0.shape, generator=generator)
    return prediction_errors(unet, x0, noise, torch.full((len(x0),), t), states, snr_weights()).mean().item()


FIGURES = {"names_by_step": names_by_step, "loss_curves": loss_curves}
