"""The figures of chapter 2: one step gives a mean, its error grows with the noise, and many steps decide."""

import torch
from PIL import Image

from sd.samplers import euler
from sd.schedule import SD1_SCHEDULE, sigma_list
from tour.figure import Figure, Models
from tour.plots import BLUE, GRAY, ORANGE, Axes, beside, image_rows

PROMPT = "a cat face"
COUNTS = (1, 2, 4, 8, 16, 32)
SAMPLES = 48


def many_samples(models: Models, prompt: str) -> torch.Tensor:
    """Latents of SAMPLES images without guidance, so that they are samples of what the model has learned."""
    return models.generate(prompt, seed=100, steps=10, scale=1, count=SAMPLES)


def mean_of_many(models: Models) -> Figure:
    """Four images of one prompt, the mean of 48, and the estimates of x0 from four different pure noises."""
    samples = many_samples(models, PROMPT)
    sigma = SD1_SCHEDULE.sigmas[-1].item()
    denoise = models.denoiser(PROMPT, scale=1, count=4)
    guesses = denoise(models.noise(7, 4) * (1 + sigma**2) ** 0.5, sigma)
    mean = samples.mean(dim=0, keepdim=True)
    columns = ["seed 1", "seed 2", "seed 3", "seed 4", f"mean of {SAMPLES}"]
    rows = {
        "10 steps": models.decode(torch.cat([samples[:4], mean])),
        "one step": models.decode(torch.cat([guesses, guesses.mean(dim=0, keepdim=True)])),
    }
    columns[-1] = "mean"
    def spread(latents):
        return latents.var(dim=0).mean().sqrt().item()
    numbers = {
        "samples": SAMPLES,
        "sigma": sigma,
        "spread_of_samples": spread(samples),
        "spread_of_guesses": spread(guesses),
        "guess_to_mean": (guesses - mean).square().mean().sqrt().item(),
        "sample_to_mean": (samples - mean).square().mean().sqrt().item(),
        "correlation": torch.corrcoef(torch.stack([guesses.mean(dim=0).flatten(), mean.flatten()]))[0, 1].item(),
    }
    alt = "."
    return Figure(image_rows(rows, columns, 128), numbers, alt)


def error_by_time(models: Models) -> Figure:
    """The error of the estimate of x0 at each noise level, beside that of always answering the mean of all."""
    names = ["a red apple", "a cat face", "a rocket", "a house", "a fish", "a snowman", "a banana", "a car"]
    x0 = models.generate([f"{name}" for name in names], seed=5, steps=15)
    noise = models.noise(9, len(names))
    times = [0, 20, 50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900, 999]
    with_text, without = models.denoiser(names, scale=1), models.denoiser("", scale=1, count=len(names))
    errors = {"with its prompt": [], "without a prompt": []}
    for t in times:
        sigma = SD1_SCHEDULE.sigmas[t].item()
        for name, denoise in zip(errors, (with_text, without)):
            errors[name].append(((denoise(x0 + sigma * noise, sigma) - x0).square().mean()).item())
    variance = (x0 - x0.mean(dim=0)).square().mean().item()
    axes = Axes((0, 1000), (0, 1.2), "error of one estimate of x0", "t", "mean squared error", size=(560, 320))
    axes.line((0, 1000), (variance, variance), GRAY, "always the mean of these latents")
    for (name, values), color in zip(errors.items(), (BLUE, ORANGE)):
        axes.line(times, values, color, name).points(times, values, color)
    numbers = {"variance": variance, "times": times, "with": errors["with its prompt"], "without": errors["without a prompt"]}
    return Figure(axes.render("top left"), numbers, ".")


def step_counts(models: Models) -> Figure:
    """The same noise in 1, 2, 4 … 32 steps of Euler's method, and how far each is from 100 steps."""
    prompts = ["a cat face", "a house, noto emoji"]
    denoise = models.denoiser(prompts)
    finished = {}
    for steps in (*COUNTS, 100):
        x = models.noise(3, 2)
        sigmas = sigma_list(steps, "karras")
        x = x * (1 + sigmas[0] ** 2) ** 0.5
        for x, _ in euler(denoise, x, sigmas, lambda: x): pass
        finished[steps] = x
    rows = {p: [models.decode(finished[s][i:i+1])[0] for s in (*COUNTS, 100)] for i, p in enumerate(prompts)}
    scale = finished[100].std().item()
    distances = [(finished[s] - finished[100]).square().mean().sqrt().item() / scale for s in COUNTS]
    columns = ["1 step", *(f"{n} steps" for n in (*COUNTS[1:], 100))]
    notes = [*(f"{d:.2f}" for d in distances), ""]
    return Figure(image_rows(rows, columns, 110, notes), {"counts": list(COUNTS), "distances": distances}, ".")


FIGURES = {"mean_of_many": mean_of_many, "error_by_time": error_by_time, "step_counts": step_counts}
