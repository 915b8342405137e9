"""The figures of chapter 2: one step gives a mean, its error grows with the noise, and many steps decide."""

import torch

from sd.samplers import euler
from sd.schedule import SD1_SCHEDULE, sigma_list
from tour.figure import Figure, Models
from tour.plots import BLUE, GRAY, ORANGE, Axes, image_rows

SAMPLES = 32
NAMES = ("a red apple", "a cat face", "a rocket", "a house", "a fish", "a snowman", "a banana", "a car")
TIMES = (0, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
COUNTS, REFERENCE = (1, 2, 4, 8, 16, 32), 64


def mean_of_many(models: Models) -> Figure:
    """Images without a prompt: four samples and the mean of 32, and the estimates of x0 from four pure noises."""
    samples = models.generate("", seed=100, steps=10, scale=1, count=SAMPLES)
    sigma = SD1_SCHEDULE.sigmas[-1].item()
    denoise = models.denoiser("", scale=1, count=4)
    guesses = denoise(models.noise(7, 4) * (1 + sigma**2) ** 0.5, sigma)
    mean, guess = (latents.mean(dim=0, keepdim=True) for latents in (samples, guesses))
    rows = {
        "ten steps": models.decode(torch.cat([samples[:4], mean])),
        "one step": models.decode(torch.cat([guesses, guess])),
    }
    numbers = {
        "samples": SAMPLES,
        "sigma": sigma,
        "spread_of_samples": spread(samples),
        "spread_of_guesses": spread(guesses),
        "correlation": torch.corrcoef(torch.stack([guess.flatten(), mean.flatten()]))[0, 1].item(),
    }
    alt = (
        "Above: four half-formed things, and their mean, a pale gray blot. "
        "Below: four estimates in one step, pale and without details: three of blots, one a texture."
    )
    return Figure(image_rows(rows, ["", "", "", "", "mean"], 128), numbers, alt)


def spread(latents: torch.Tensor) -> float:
    """Return the standard deviation between latents (B, 4, h, w), over all positions."""
    return latents.var(dim=0).mean().sqrt().item()


def error_by_time(models: Models) -> Figure:
    """The error of the estimate of x0 at each noise level, beside that of always answering the latents' mean."""
    x0, noise = models.generate(list(NAMES), seed=5, steps=12), models.noise(9, len(NAMES))
    prompts: dict[str, str | list[str]] = {"told the prompt": list(NAMES), "told nothing": ""}
    errors = {}
    for name, prompt in prompts.items():
        denoise = models.denoiser(prompt, scale=1, count=len(NAMES))
        levels = [SD1_SCHEDULE.sigmas[t].item() for t in TIMES]
        errors[name] = [mean_square(denoise(x0 + sigma * noise, sigma) - x0) for sigma in levels]
    variance = mean_square(x0 - x0.mean(dim=0))
    axes = Axes((0, 1000), (0, 1.2), "error of one estimate of x0", "t", "mean squared error", size=(560, 320))
    axes.line((0, 1000), (variance, variance), GRAY, "the mean of the eight latents as the answer")
    for (name, values), color in zip(errors.items(), (BLUE, ORANGE)):
        axes.line(TIMES, values, color, f"the U-Net, {name}").points(TIMES, values, color)
    numbers = {
        "variance": variance,
        "times": list(TIMES),
        "told": errors["told the prompt"],
        "not_told": errors["told nothing"],
    }
    alt = (
        "The error rises with t: slowly where the U-Net knows the prompt, and past that of answering with the mean "
        "where it does not."
    )
    return Figure(axes.render("top left"), numbers, alt)


def mean_square(x: torch.Tensor) -> float:
    return x.square().mean().item()


def step_counts(models: Models) -> Figure:
    """The same noise in 1, 2, 4 … 32 of Euler's steps, and how far each result is from that of 64 steps."""
    prompts = ["a cat face", "a house, noto emoji"]
    denoise, finished = models.denoiser(prompts), {}
    for steps in (*COUNTS, REFERENCE):
        sigmas = sigma_list(steps, "sgm_uniform")
        x = models.noise(3, len(prompts)) * (1 + sigmas[0] ** 2) ** 0.5
        *_, (finished[steps], _) = euler(denoise, x, sigmas, noise=lambda: models.noise(0))  # Euler draws none
    images = {steps: models.decode(latents) for steps, latents in finished.items()}
    rows = {prompt: [images[steps][i] for steps in images] for i, prompt in enumerate(prompts)}
    last = finished[REFERENCE]
    distances = [(mean_square(finished[steps] - last) / last.var().item()) ** 0.5 for steps in COUNTS]
    columns = ["1 step", *(f"{steps} steps" for steps in (*COUNTS[1:], REFERENCE))]
    image = image_rows(rows, columns, 104, [*(f"{distance:.2f}" for distance in distances), "0"])
    alt = (
        "A cat face and a house in 1 to 64 steps: blurred, with glaring colors, in one step, "
        "clean from four on, and nearly the same from eight on."
    )
    return Figure(image, {"counts": list(COUNTS), "reference": REFERENCE, "distances": distances}, alt)


FIGURES = {"mean_of_many": mean_of_many, "error_by_time": error_by_time, "step_counts": step_counts}
