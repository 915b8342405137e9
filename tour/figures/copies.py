"""The figures of chapter 10: the perfect minimizer of the loss copies, and how soon a real network does."""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sd.denoiser import Denoiser
from sd.evaluation.memorization import COPY_THRESHOLD, pixel_similarity
from sd.samplers import ddim
from sd.schedule import sigma_list
from sd.training.loss import snr_weights
from sd.training.pretrain.train_unet import X0_WEIGHTS
from sd.unet import UNetModel
from tour.figure import Figure, Models
from tour.images import NAMES, emoji, encode_pictures, sheet_image
from tour.plots import image_rows
from tour.short_training import config_for, fit

TRAINED = ("a poodle", "a mango", "a scooter", "a newspaper")
HELD_OUT = ("a rat", "a dove")
KEPT = (0, 20, 60)
IDEAL_SIGMAS = (160.0, 80.0, 40.0, 20.0, 10.0, 5.0, 1.0, 0.0)


def ideal_denoiser(pictures: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Return the denoiser of the least possible loss on these latents, (N, 4, h, w) (Karras et al. 2022, eq. 57).

    It is the mean of the pictures, each weighted by how likely it is that x is that picture with noise of level sigma.
    """

    def denoise(x: Tensor, sigma: float) -> Tensor:
        distances = (x[:, None] - pictures).square().sum(dim=(2, 3, 4))  # (B, N)
        weights = (-distances / (2 * sigma**2)).softmax(dim=1)
        return torch.einsum("bn,nchw->bchw", weights, pictures)

    return denoise


def ideal_copies(models: Models) -> Figure:
    """Sampling with the ideal denoiser of ten pictures: its estimates by step, from three noises."""
    pictures = encode_pictures(models.vae, [sheet_image(name) for name in NAMES])
    x = IDEAL_SIGMAS[0] * models.noise(1, 3)
    steps = torch.stack([x0 for _, x0 in ddim(ideal_denoiser(pictures), x, list(IDEAL_SIGMAS), None)])
    rows = {f"noise {i + 1}": models.decode(steps[:, i]) for i in range(3)}
    image = image_rows(rows, [f"sigma {sigma:g}" for sigma in IDEAL_SIGMAS[:-1]], 100)
    distances = (steps[-1][:, None] - pictures).square().mean(dim=(2, 3, 4)).sqrt()
    apart = torch.pdist(pictures.flatten(1)) / pictures[0].numel() ** 0.5
    numbers = {"distance": distances.amin(dim=1).tolist(), "apart": apart.min().item()}
    return Figure(image, numbers, "From three noises one blurred mean becomes one of ten pictures each.")


@lru_cache(maxsize=1)
def training_runs(models: Models) -> dict[int, list[Image.Image]]:
    """Train a copy of the bundled U-Net on four emoji; return its images of six names after each of KEPT steps."""
    names = [f"{name}, fluent 3d emoji" for name in (*TRAINED, *HELD_OUT)]
    contexts = models.context(names)
    latents = encode_pictures(models.vae, [emoji(name) for name in TRAINED])
    sigmas = sigma_list(8)
    x = models.noise(3, len(names)) * (1 + sigmas[0] ** 2) ** 0.5

    def generate(unet: UNetModel) -> list[Image.Image]:
        with torch.no_grad():
            *_, (latents, _) = ddim(Denoiser(unet, contexts), x, sigmas, None)
            return models.decode(latents)

    generated = {0: generate(models.unet)}

    def keep(average: UNetModel, step: int) -> None:
        if step in KEPT:
            generated[step] = generate(average)

    unet = copy.deepcopy(models.unet).requires_grad_(True)
    fit(unet, unet, latents, lambda i: contexts[i], config_for(KEPT[-1], 4, 3e-4), snr_weights(*X0_WEIGHTS), keep)
    return generated


def trained_copies(models: Models) -> Figure:
    """Images of four trained names and two others by step, the nearest picture, and how similar it is."""
    generated = training_runs(models)
    pictures = [emoji(name) for name in (*TRAINED, *HELD_OUT)]
    similarity = {step: pixel_similarity(images, pictures) for step, images in generated.items()}  # (6, 6) each
    trained = {step: one[:, : len(TRAINED)] for step, one in similarity.items()}
    rows = {f"{step} steps": images for step, images in sorted(generated.items())}
    nearest = trained[KEPT[-1]].argmax(dim=1).tolist()
    rows["nearest of the four"] = [pictures[i] for i in nearest]
    columns = [*(f"{name}\n(trained)" for name in TRAINED), *(f"{name}\n(not trained)" for name in HELD_OUT)]
    own = {f"own_{step}": similarity[step].diagonal().tolist() for step in KEPT}
    most = {f"nearest_{step}": trained[step].amax(dim=1).tolist() for step in KEPT}
    copied = [(trained[step][: len(TRAINED)].amax(dim=1) >= COPY_THRESHOLD).sum().item() for step in KEPT]
    numbers: dict[str, Any] = {"steps": list(KEPT), "threshold": COPY_THRESHOLD, "copied": copied, **own, **most}
    return Figure(image_rows(rows, columns, 112), numbers, ALT)


ALT = "Six names after 0, 20 and 60 steps of training on four emoji, and the nearest of these four below each."
FIGURES = {"ideal_copies": ideal_copies, "trained_copies": trained_copies}
