"""The figures of chapter 7: guidance step by step, as arrows, and at several scales."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sd.denoiser import Denoiser, Guidance
from tour.figure import GUIDANCE, Figure, Models
from tour.plots import BLUE, GRAY, ORANGE, RED, Axes, image_rows, principal_plane

PROMPT, SEED, STEPS = "a red apple, fluent 3d emoji", 1, 8
SCALES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
SCALE_PROMPTS = ("a red apple, fluent 3d emoji", "a panda, fluent 3d emoji")


class Trace(NamedTuple):
    """One sampling with guidance: the sigma of each step, and (steps, 4, 16, 16) of x and of three estimates of x0."""

    sigmas: list[float]
    x: Tensor
    guided: Tensor
    cond: Tensor
    uncond: Tensor


class Remembering(Denoiser):
    """A denoiser that keeps its estimates, (2, 4, 16, 16) each: without the prompt first, then with it."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser.unet, denoiser.context)
        self.estimates: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.estimates.append(super().__call__(x, sigma))
        return self.estimates[-1]


@lru_cache(maxsize=1)
def trace(models: Models) -> Trace:
    """Sample once and keep the estimates with and without the prompt, which `Guidance` combines."""
    guidance = Guidance(models.unet, models.context(PROMPT), models.context(""), GUIDANCE)
    guidance.both = remembering = Remembering(guidance.both)
    _, steps = models.steps(guidance, SEED, STEPS, "euler", "sgm_uniform")
    x, guided = (torch.cat([getattr(step, name) for step in steps]) for name in ("x", "x0"))
    uncond, cond = torch.stack(remembering.estimates).unbind(1)
    return Trace([step.sigma for step in steps], x, guided, cond, uncond)


def rms(x: Tensor) -> list[float]:
    """Return the root mean square of each of (B, 4, h, w)."""
    return x.square().mean(dim=(1, 2, 3)).sqrt().tolist()


def four_rows(models: Models) -> Figure:
    """What the sampler has, and the three estimates of the clean latent, at every step."""
    run = trace(models)
    noisy = torch.stack([x / (1 + sigma**2) ** 0.5 for x, sigma in zip(run.x, run.sigmas)])
    rows = {
        "x_t": models.decode(noisy),
        "x0, guided": models.decode(run.guided),
        "x0 with the prompt": models.decode(run.cond),
        "x0 without it": models.decode(run.uncond),
    }
    image = image_rows(rows, [f"sigma {sigma:.2f}" for sigma in run.sigmas], 100)
    numbers: dict[str, Any] = {
        "steps": STEPS,
        "scale": GUIDANCE,
        "sigmas": run.sigmas,
        "distance": rms(run.cond - run.uncond),
    }
    return Figure(image, numbers, ALT_FOUR_ROWS)


ALT_FOUR_ROWS = (
    "Four rows over eight steps: the noisy latent, the guided estimate, the estimate with the prompt, and the one "
    "without it."
)


def guidance_arrows(models: Models) -> Figure:
    """The three estimates of some steps in the plane in which they vary most, with the arrow that guidance follows."""
    run = trace(models)
    points = torch.cat([run.uncond, run.cond, run.guided]).flatten(1)
    mean, directions = principal_plane(points)
    plane = (points - mean) @ directions  # (3 * steps, 2)
    low, high = plane.amin(dim=0), plane.amax(dim=0)
    (left, bottom), (right, top) = (low - 0.1 * (high - low)).tolist(), (high + 0.1 * (high - low)).tolist()
    title = f"from the estimate without the prompt to the guided one, scale {GUIDANCE:g}"
    axes = Axes((left, right), (bottom, top), title, "first direction", "second direction", size=(560, 400))
    uncond, cond, guided = plane.chunk(3)
    for i in range(STEPS):
        start, end = uncond[i].tolist(), guided[i].tolist()
        axes.arrow((start[0], start[1]), (end[0], end[1]), GRAY)
    steps = [str(i + 1) for i in range(STEPS)]
    axes.points(uncond[:, 0], uncond[:, 1], BLUE, "without the prompt", steps)
    axes.points(cond[:, 0], cond[:, 1], ORANGE, "with the prompt")
    axes.points(guided[:, 0], guided[:, 1], RED, "guided")
    along = (run.guided - run.uncond).flatten(1).norm(dim=1) / (run.cond - run.uncond).flatten(1).norm(dim=1)
    alt = "Arrows from the estimate without the prompt through the one with it to the guided one, shorter by the step."
    return Figure(axes.render("top left"), {"ratio": along.tolist(), "distance": rms(run.cond - run.uncond)}, alt)


def guidance_scales(models: Models) -> Figure:
    """The same noise and prompts at seven scales."""
    generated = [models.generate(list(SCALE_PROMPTS), SEED, steps=10, scale=scale) for scale in SCALES]
    images = [models.decode(latents) for latents in generated]
    rows = {prompt.split(",")[0]: list(row) for prompt, row in zip(SCALE_PROMPTS, zip(*images))}
    image = image_rows(rows, [f"scale {scale:g}\nw = {scale - 1:g}" for scale in SCALES], 112)
    numbers = {"scales": list(SCALES), "std": [latents.std().item() for latents in generated]}
    return Figure(image, numbers, ALT_SCALES)


ALT_SCALES = "An apple and a panda from the same noise at seven guidance scales from 0 to 12."
FIGURES = {"four_rows": four_rows, "guidance_arrows": guidance_arrows, "guidance_scales": guidance_scales}
