"""The figures of chapter 8: which levels a run visits, the paths of samplers, and their errors by steps."""

import math
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sd.samplers import SAMPLERS
from sd.schedule import SD1_SCHEDULE, sigma_list
from tour.figure import Figure, Models
from tour.plots import COLORS, Axes, image_rows, principal_plane

PROMPT, SEED = "a red apple, fluent 3d emoji", 5
COMPARED = ("euler", "heun", "dpmpp_2m", "euler_a")
FEW = (2, 4, 8, 16)
SCHEDULES = ("ldm", "sgm_uniform", "karras", "exponential")
ORDER_STEPS = {"euler": (5, 10, 20, 40), "dpmpp_2m": (5, 10, 20, 40), "heun": (5, 10, 20)}
REFERENCE = 60  # steps of Heun's method, each of two evaluations


def levels(models: Models) -> Figure:
    """The noise levels of ten steps under four schedules, and the time that each of LDM's is."""
    axes = Axes((0, 10), (0.02, 20), "ten steps", "step", "sigma", y_log=True, size=(520, 340))
    for name, color in zip(SCHEDULES, COLORS):
        sigmas = sigma_list(10, name, to_zero=False)
        axes.line(range(11), sigmas, color, name).points(range(11), sigmas, color)
    times = [round(SD1_SCHEDULE.t_of(sigma)) for sigma in sigma_list(10, "ldm")[:-1]]
    fifty = [round(SD1_SCHEDULE.t_of(sigma)) for sigma in sigma_list(50, "ldm")[:-1]]
    even = [round(SD1_SCHEDULE.t_of(sigma)) for sigma in sigma_list(10, "sgm_uniform")[:-1]]
    numbers: dict[str, Any] = {
        "times": times,
        "first": fifty[0],
        "last": fifty[-1],
        "gap": fifty[0] - fifty[1],
        "even": even,
    }
    firsts = {f"{name}_first": sigma_list(10, name)[0] for name in SCHEDULES}
    alt = "Four curves of sigma over ten steps: from 14.6, or 8.4 for ldm, down to 0.03."
    return Figure(axes.render(), numbers | firsts, alt)


@lru_cache(maxsize=1)
def few_step_runs(models: Models) -> dict[tuple[str, int], list[Tensor]]:
    """Return by (sampler, steps) the latents before each step in VP form, and the finished one at the end."""
    runs = {}
    for name in COMPARED:
        for steps in FEW:
            latent, taken = models.steps(models.denoiser(PROMPT), SEED, steps, name, "karras")
            runs[name, steps] = [step.x / math.sqrt(1 + step.sigma**2) for step in taken] + [latent]
    return runs


def few_steps(models: Models) -> Figure:
    """One prompt and one noise: four samplers at 2, 4, 8 and 16 steps."""
    runs = few_step_runs(models)
    rows = {name: models.decode(torch.cat([runs[name, steps][-1] for steps in FEW])) for name in COMPARED}
    best = runs["heun", FEW[-1]][-1]
    numbers = {
        name: [(runs[name, steps][-1] - best).square().mean().sqrt().item() for steps in FEW] for name in COMPARED
    }
    alt = "An apple by four samplers at 2, 4, 8 and 16 steps."
    return Figure(image_rows(rows, [f"{steps} steps" for steps in FEW], 112), numbers, alt)


def sampler_paths(models: Models) -> Figure:
    """The paths of four samplers from one noise, in the plane in which they vary most."""
    paths = {name: torch.cat(few_step_runs(models)[name, FEW[-1]]).flatten(1) for name in COMPARED}
    mean, directions = principal_plane(torch.cat(list(paths.values())))
    plane = {name: (path - mean) @ directions for name, path in paths.items()}
    points = torch.cat(list(plane.values()))
    (left, bottom), (right, top) = (points.amin(dim=0) - 4).tolist(), (points.amax(dim=0) + 4).tolist()
    title = "from noise to an image in 16 steps"
    axes = Axes((left, right), (bottom, top), title, "first direction", "second direction", size=(560, 400))
    for (name, path), color in zip(plane.items(), COLORS):
        axes.line(path[:, 0], path[:, 1], color, name, width=1.5).points(path[:, 0], path[:, 1], color)
    ends = {name: (path[-1] - paths["heun"][-1]).norm().item() for name, path in paths.items()}
    lengths = {
        f"{name}_length": sum((b - a).norm().item() for a, b in pairwise(path)) / (path[-1] - path[0]).norm().item()
        for name, path in paths.items()
    }
    alt = "Four paths that leave one point of noise: three lie close together, that of euler_a goes another way."
    return Figure(axes.render(), ends | lengths, alt)


def sampler_orders(models: Models) -> Figure:
    """The error against the answer of many small steps, by the number of steps, on logarithmic axes."""

    def finished(name: str, steps: int) -> Tensor:
        sigmas = sigma_list(steps, "karras", to_zero=False)
        x = models.noise(SEED) * math.sqrt(1 + sigmas[0] ** 2)
        *_, (latent, _) = SAMPLERS[name].run(models.denoiser(PROMPT, scale=1), x, sigmas, None)
        return latent

    exact = finished("heun", REFERENCE)
    errors: dict[str, Any] = {
        name: [(finished(name, count) - exact).square().mean().sqrt().item() for count in counts]
        for name, counts in ORDER_STEPS.items()
    }
    lowest, highest = min(map(min, errors.values())), max(map(max, errors.values()))
    ticks = {float(count): str(count) for count in (5, 10, 20, 40)}
    title = f"distance to {REFERENCE} steps of heun"
    axes = Axes(
        (4.5, 45), (lowest / 1.5, highest * 1.5), title, "steps", "error", True, True, (520, 360), x_ticks=ticks
    )
    for (name, found), color in zip(errors.items(), COLORS):
        axes.line(ORDER_STEPS[name], found, color, name).points(ORDER_STEPS[name], found, color)
    slopes = {
        f"{name}_slope": math.log(found[0] / found[-1]) / math.log(ORDER_STEPS[name][-1] / ORDER_STEPS[name][0])
        for name, found in errors.items()
    }
    alt = "Error against steps on logarithmic axes: the line of euler falls more slowly than the other two."
    return Figure(axes.render("bottom left"), errors | slopes, alt)


FIGURES = {"levels": levels, "few_steps": few_steps, "sampler_paths": sampler_paths, "sampler_orders": sampler_orders}
