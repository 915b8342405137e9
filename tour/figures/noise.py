"""The figures of chapter 1: one latent at eight noise levels, and the curves of the schedule."""

import torch

from sd.schedule import SD1_SCHEDULE, scaled_linear_betas
from tour.figure import Figure, Models
from tour.plots import BLUE, GREEN, ORANGE, Axes, beside, image_rows

PROMPT, SEED = "a red apple, fluent 3d emoji", 1
TIMES = (0, 50, 150, 300, 450, 600, 800, 999)


def noisy_latents(models: Models) -> Figure:
    """One latent with the same noise at eight times, decoded; the noise is in the latent, not in the pixels."""
    x0 = models.generate(PROMPT, SEED)
    t = torch.tensor(TIMES)
    noisy = SD1_SCHEDULE.add_noise(x0.expand(len(t), -1, -1, -1), models.noise(2).expand(len(t), -1, -1, -1), t)
    sigmas, products = SD1_SCHEDULE.sigmas[t].tolist(), SD1_SCHEDULE.alphas_cumprod[t].tolist()
    notes = [f"a = {product:.3f}" for product in products]
    image = image_rows({"": models.decode(noisy)}, [f"t = {time}" for time in TIMES], 100, notes)
    numbers = {
        "times": list(TIMES),
        "sigmas": sigmas,
        "products": products,
        "signal": [product**0.5 for product in products],
        "noise": [(1 - product) ** 0.5 for product in products],
        "std": noisy.std(dim=(1, 2, 3)).tolist(),
    }
    alt = "One apple at eight times from 0 to 999: clean, then spotted, then a reddish area, then only colored shards."
    return Figure(image, numbers, alt)


def schedule_curves(models: Models) -> Figure:
    """Left: one factor alpha and the product of all up to t. Right: sigma and the signal-to-noise ratio, in logs."""
    products, sigmas = SD1_SCHEDULE.alphas_cumprod, SD1_SCHEDULE.sigmas
    alphas = 1 - scaled_linear_betas()
    t = range(0, 1000, 3)
    left = Axes((0, 1000), (0, 1.05), "one factor and the product", "t", size=(440, 300))
    left.line(t, alphas[::3], ORANGE, "alpha = 1 - beta").line(t, products[::3], BLUE, "a = product of all alphas to t")
    left.points(TIMES, products[list(TIMES)], BLUE)
    right = Axes((0, 1000), (0.003, 2000), "the same in sigma", "t", y_log=True, size=(440, 300))
    right.line(t, sigmas[::3], GREEN, "sigma = sqrt((1 - a) / a)").points(TIMES, sigmas[list(TIMES)], GREEN)
    right.line(t, sigmas[::3] ** -2, ORANGE, "signal to noise = 1 / sigma^2")
    numbers = {
        "least_alpha": alphas.min().item(),
        "last_product": products[-1].item(),
        "last_signal": products[-1].item() ** 0.5,
        "sigma_range": [sigmas[0].item(), sigmas[-1].item()],
        "snr_range": [sigmas[0].item() ** -2, sigmas[-1].item() ** -2],
        "even_time": int((sigmas < 1).sum()),  # the first t at which there is more noise than signal
        "beta_range": [scaled_linear_betas()[0].item(), scaled_linear_betas()[-1].item()],
    }
    alt = (
        "Left: alpha stays close to 1 at all times while the product falls to nearly 0. "
        "Right: sigma rises and the signal-to-noise ratio falls, each over several powers of ten."
    )
    return Figure(beside([left.render("bottom left"), right.render("top right")]), numbers, alt)


FIGURES = {"noisy_latents": noisy_latents, "schedule_curves": schedule_curves}
