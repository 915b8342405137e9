"""The figures of chapter 3: the channels of a latent, their histogram, and what other scales do to an image."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.schedule import SD1_SCHEDULE
from sd.utils.images import to_tensor
from sd.vae import LATENT_SCALE
from tour.figure import Figure, Models
from tour.images import SIDE, sheet_images
from tour.plots import BLUE, GRAY, ORANGE, Axes, heat_map, histogram, image_rows


def encode(models: Models, images: list[Image.Image]) -> Tensor:
    """Return the mean latents of images, (B, 4, 16, 16), unscaled, ten images at a time."""
    pixels = torch.cat([to_tensor(image) for image in images])
    return torch.cat([models.vae.encode(some)[0] for some in pixels.split(10)])


def latent_channels(models: Models) -> Figure:
    """One image, the four channels of its latent after scaling, and the image decoded from them."""
    image = sheet_images()[28]
    latent = encode(models, [image]) * LATENT_SCALE
    (decoded,) = models.decode(latent)
    channels = [heat_map(channel, -3, 3, SIDE, diverging=True) for channel in latent[0]]
    columns = ["128 x 128 x 3", *(f"channel {i}" for i in range(4)), "decoded"]
    error = (np.asarray(image, dtype=float) - np.asarray(decoded, dtype=float)) ** 2
    numbers = {
        "values_of_image": SIDE * SIDE * 3,
        "values_of_latent": latent.numel(),
        "ratio": SIDE * SIDE * 3 / latent.numel(),
        "psnr": float(10 * np.log10(255**2 / error.mean())),
        "largest": latent.abs().max().item(),
    }
    alt = (
        "A red apple, four maps of 16 x 16 cells in which its outline and its parts can be recognized, "
        "and the apple decoded from them, which looks the same."
    )
    return Figure(image_rows({"": [image, *channels, decoded]}, columns, SIDE), numbers, alt)


def scale_histogram(models: Models) -> Figure:
    """The histogram of the latents of 70 images, before and after multiplying by 0.18215."""
    latents = encode(models, sheet_images())
    std = latents.std().item()
    axes = Axes((-16, 16), (0, 0.55), "all values of 70 latents", "value", "density", size=(620, 320))
    edges = torch.linspace(-4, 4, 161)
    normal = torch.exp(-(edges**2) / 2) / (2 * torch.pi) ** 0.5
    axes.bars(*histogram(latents, -16, 16, 96), BLUE, "as the encoder gives them")
    axes.bars(*histogram(latents * LATENT_SCALE, -16, 16, 192), ORANGE, "times 0.18215")
    axes.line(edges, normal, GRAY, "standard normal")
    first = SD1_SCHEDULE.sigmas[-1].item()
    numbers = {
        "std": std,
        "scale": 1 / std,
        "scaled_std": std * LATENT_SCALE,
        "channel_std": latents.std(dim=(0, 2, 3)).tolist(),
        "channel_mean": latents.mean(dim=(0, 2, 3)).tolist(),
        "v1_std": 1 / LATENT_SCALE,
        "snr_scaled": first**-2,
        "snr_unscaled": (1 / LATENT_SCALE / first) ** 2,
    }
    alt = (
        "Two histograms around 0: a wide, low one of the encoder's values, and a narrow, high one after scaling, "
        "about as wide as the standard normal density but more pointed."
    )
    return Figure(axes.render("top left"), numbers, alt)


def wrong_scales(models: Models) -> Figure:
    """The same latents decoded as they should be, with the scale forgotten or applied twice, and shuffled."""
    latents = encode(models, [sheet_images()[i] for i in (45, 6)])  # unscaled
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    variants = {
        "right": latents,
        "not divided": latents * LATENT_SCALE,
        "divided twice": latents / LATENT_SCALE,
        "channels 1 0 2 3": latents[:, [1, 0, 2, 3]],
        "sign changed": -latents,
        "places shuffled": latents.flatten(2)[..., order].unflatten(2, (16, 16)),
    }
    columns = [[models.decode(unscaled * LATENT_SCALE)[i] for unscaled in variants.values()] for i in range(2)]
    right, pale = (torch.cat([to_tensor(column[i]) for column in columns]).std().item() for i in (0, 1))
    numbers = {"right_std": right, "pale_std": pale, "contrast_left": pale / right}
    alt = (
        "A rocket and a car six times: as they should be, as pale lines, dark and glaring, in false colors twice, "
        "and as confetti of the same colors."
    )
    return Figure(image_rows({"": columns[0], " ": columns[1]}, list(variants), 112), numbers, alt)


FIGURES = {"latent_channels": latent_channels, "scale_histogram": scale_histogram, "wrong_scales": wrong_scales}
