"""Measure each approximation against exact generation with the same seeds: its time, PSNR and CLIP-T."""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.tasks import GUIDANCE, Options, RandomModel
from sd.denoiser import Guidance, sigmas_between
from sd.evaluation.clip_score import Scorer
from sd.evaluation.confidence import MeanCI, mean_with_ci
from sd.optimization.deepcache import cache_steps
from sd.optimization.registry import EXACT as ALL_EXACT
from sd.optimization.registry import OPTIMIZATIONS, approximate_names, optimize
from sd.optimization.token_merging import token_merging
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import SAMPLERS
from sd.schedule import sigma_list
from sd.utils.image_grid import contact_sheet

EXACT = "exact"
WAYS: dict[str, dict[str, Any]] = {
    EXACT: {},
    "guidance 0 to 0.8": dict(guidance_end=0.8),
    "guidance 0 to 0.5": dict(guidance_end=0.5),
    "guidance 0.1 to 0.7": dict(guidance_start=0.1, guidance_end=0.7),
    "step cache 2": dict(step_cache=2),
    "step cache 3": dict(step_cache=3),
    "step cache 5": dict(step_cache=5),
    "step cache 0.15": dict(step_cache=0.15),
    "step cache 0.2": dict(step_cache=0.2),
    "step cache 0.3": dict(step_cache=0.3),
    "token merging 0.3": dict(token_merging=0.3),
    "token merging 0.5": dict(token_merging=0.5),
    "token merging 0.75": dict(token_merging=0.75),
    "int8": dict(optimizations=[ALL_EXACT, "int8"]),
    "guidance 0 to 0.8, step cache 2": dict(guidance_end=0.8, step_cache=2),
    "guidance 0 to 0.8, step cache 3": dict(guidance_end=0.8, step_cache=3),
    "int8, step cache 3": dict(optimizations=[ALL_EXACT, "int8"], step_cache=3),
    "int8, step cache 4": dict(optimizations=[ALL_EXACT, "int8"], step_cache=4),
}  # settings, or the pipeline's optimizations
HIGHEST_PSNR = 99.0  # dB, for equal images, whose ratio is infinite


@dataclass
class Measured:
    """The figures of one way to generate. seconds: per prompt; psnr: of each image against the exact one, in dB."""

    name: str
    seconds: list[float] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    clip_t: list[float] = field(default_factory=list)

    def ratios(self, exact: "Measured") -> list[float]:
        """Return this way's time / the exact way's time, for each prompt."""
        return [ours / theirs for ours, theirs in zip(self.seconds, exact.seconds)]

    def clip_t_change(self, exact: "Measured") -> MeanCI:
        """Return the mean change of CLIP-T over all pairs of images."""
        return mean_with_ci([ours - theirs for ours, theirs in zip(self.clip_t, exact.clip_t)])


def available_ways(device: torch.device, dtype: torch.dtype) -> dict[str, dict]:
    """Return the entries of WAYS that this machine supports."""

    def is_available(way: dict) -> bool:
        return all(
            OPTIMIZATIONS[name].is_supported(device, dtype) for name in approximate_names(way.get("optimizations"))
        )

    return {name: way for name, way in WAYS.items() if is_available(way)}


def split_way(way: dict) -> tuple[dict, list[str] | None]:
    """Split a value of WAYS into (changed settings, the pipeline's optimizations)."""
    return {key: value for key, value in way.items() if key != "optimizations"}, way.get("optimizations")


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two images of equal size, in dB, at most HIGHEST_PSNR."""
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean() / 255**2
    return HIGHEST_PSNR if error == 0 else min(HIGHEST_PSNR, -10 * math.log10(error))


def measure(
    pipe: StableDiffusion,
    scorer: Scorer,
    requests: list[GenerationSettings],
    ways: dict[str, dict],
    on_progress: Callable[[float], None] | None = None,
) -> list[Measured]:
    """Generate each of `requests` in every way, alternating between the ways, after one run to warm up.

    ways: the first is the exact one. on_progress: called with the fraction that is done, 0 to 1.
    """
    found = [Measured(name) for name in ways]
    pipe.generate(requests[0].replace(steps=1))
    for round_, settings in enumerate(requests, start=1):
        for measured, (changes, pipe.optimizations) in zip(found, map(split_way, ways.values())):
            pipe.optimize()
            began = time.perf_counter()
            measured.images += pipe.generate(settings.replace(**changes)).images
            measured.seconds.append(time.perf_counter() - began)
        if on_progress is not None:
            on_progress(round_ / len(requests))
    texts = scorer.embed_texts([settings.prompt for settings in requests for _ in settings.seeds()])
    for measured in found:
        measured.psnr = [psnr(ours, exact) for ours, exact in zip(measured.images, found[0].images)]
        measured.clip_t = (scorer.embed_images(measured.images) * texts).sum(dim=1).tolist()
    return found


@torch.no_grad()
def step_time_ratios(options: Options, ways: dict[str, dict]) -> dict[str, list[float]]:
    """Time the sampling loop alone, at v1-5's size with random weights.

    Returns, for each way and round, the loop's time / the exact loop's time.
    """
    model = RandomModel(options)
    context = torch.randn(1, 77, model.sizes["unet"]["context_dim"], dtype=model.dtype)
    sigmas = sigma_list(options.steps)
    noise = torch.randn(1, *model.latent_shape) * math.sqrt(1 + sigmas[0] ** 2)

    def time_sampling(changes: dict, optimizations: list[str] | None) -> float:
        way = GenerationSettings(**changes)
        optimize(model.unet, model.vae, optimizations)
        model.unet(*model.step_inputs)  # weights that are packed at the first use are packed here
        unet = cache_steps(model.unet, way.step_cache)
        interval = sigmas_between(way.guidance_start, way.guidance_end)
        denoise = Guidance(unet, context, context.flip(1), GUIDANCE, interval=interval)
        began = time.perf_counter()
        with token_merging(model.unet, way.token_merging):
            for _ in SAMPLERS["euler"].run(denoise, noise, sigmas, None):
                pass
        return time.perf_counter() - began

    ratios = {name: [] for name in ways}
    for _ in range(options.rounds):
        seconds = {name: time_sampling(*split_way(way)) for name, way in ways.items()}
        for name, value in seconds.items():
            ratios[name].append(value / seconds[next(iter(ways))])
    return ratios


def full_size_ratios(rounds: int, ways: dict[str, dict], folder: Path) -> dict[str, list[float]]:
    """Return `step_time_ratios` at 512 x 512 in bf16.

    With 0 rounds those of an earlier run in that folder, which do not depend on the bundled model, or {}.
    """
    if rounds:
        return step_time_ratios(Options(dtype="bf16", size=512, steps=10, rounds=rounds), ways)
    file = folder / "approximations.json"
    return json.loads(file.read_text(encoding="utf-8"))["full size"] if file.exists() else {}


def table(found: list[Measured], full_size: dict[str, list[float]]) -> str:
    """Return a Markdown table. Times are fractions of the exact way's. full_size: from `step_time_ratios`, or {}."""
    exact = found[0]
    how = "Compared with exact generation, with the same prompts and seeds: the time on the bundled model, the time of "
    how += "a step at v1-5's size, and the PSNR of the images to the exact ones."
    head = "| | time | at v1-5's size | PSNR, median (least) | CLIP-T | its change |\n|---|---|---|---|---|---|"
    rows = []
    for measured in found:
        ratio = f"{statistics.median(measured.ratios(exact)):.2f}"
        large = f"{statistics.median(full_size[measured.name]):.2f}" if measured.name in full_size else ""
        noise = "" if measured is exact else f"{statistics.median(measured.psnr):.1f} dB ({min(measured.psnr):.1f})"
        change = "" if measured is exact else str(measured.clip_t_change(exact))
        rows.append(f"| {measured.name} | {ratio} | {large} | {noise} | {mean_with_ci(measured.clip_t)} | {change} |")
    return "\n".join([how, "", head, *rows])


def sheet(found: list[Measured], prompts: list[str]) -> Image.Image:
    """Return a contact sheet with the first image of each prompt, a column for each way."""
    each = len(found[0].images) // len(prompts)
    image_rows = [list(row) for row in zip(*(measured.images[::each] for measured in found))]
    return contact_sheet(image_rows, prompts, [measured.name for measured in found])
