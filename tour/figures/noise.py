"""The figures of chapter 1: one image at eight noise levels, and the curves of the schedule."""

import torch

from sd.schedule import SD1_SCHEDULE
from tour.figure import Figure, Models
from tour.plots import image_rows

PROMPT, SEED = "a red apple, fluent 3d emoji", 1
TIMES = (0, 50, 150, 300, 450, 600, 800, 999)


def noisy_latents(models: Models) -> Figure:
    """One latent at eight times, with its sigma and its share of signal; decoded, because a latent is not an image."""
    x0 = models.generate(PROMPT, SEED)
    t = torch.tensor(TIMES)
    noisy = SD1_SCHEDULE.add_noise(x0.expand(len(t), -1, -1, -1), models.noise(2).expand(len(t), -1, -1, -1), t)
    sigmas, products = SD1_SCHEDULE.sigmas[t].tolist(), SD1_SCHEDULE.alphas_cumprod[t].tolist()
    columns = [f"t = {time}\nsigma {sigma:.2f}" for time, sigma in zip(TIMES, sigmas)]
    image = image_rows({"decoded": models.decode(noisy)}, columns, 100)
    numbers = {
        "times": list(TIMES),
        "sigmas": sigmas,
        "products": products,
        "signal": [product**0.5 for product in products],
        "std": noisy.std(dim=(1, 2, 3)).tolist(),
    }
    return Figure(image, numbers, "One apple at eight times from 0 to 999: clean, grainy, a red blot, then only noise.")


FIGURES = {"noisy_latents": noisy_latents}
