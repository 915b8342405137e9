"""What an approximation costs and gives: the same seeds drawn exactly and with it, in turn, and what then differs."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.tasks import GUIDANCE, Options, RandomModel
from sd.denoiser import Guidance, sigmas_between
from sd.evaluation.clip_score import Scorer
from sd.evaluation.confidence import MeanCI, mean_with_ci
from sd.optimization.deepcache import StepCached
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
    "token merging 0.3": dict(token_merging=0.3),
    "token merging 0.5": dict(token_merging=0.5),
    "token merging 0.75": dict(token_merging=0.75),
    "int8": dict(optimizations=[ALL_EXACT, "int8"]),
    "guidance 0 to 0.8, step cache 2": dict(guidance_end=0.8, step_cache=2),
    "guidance 0 to 0.8, step cache 3": dict(guidance_end=0.8, step_cache=3),
    "int8, step cache 3": dict(optimizations=[ALL_EXACT, "int8"], step_cache=3),
    "int8, step cache 4": dict(optimizations=[ALL_EXACT, "int8"], step_cache=4),
}  # settings, or the pipeline's optimizations
HIGHEST_PSNR = 99.0  # dB, for pictures that are equal, whose ratio is infinite


@dataclass
class Measured:
    """One way to draw. seconds: of each prompt's pictures; psnr: of each picture against the exact one, in dB."""

    name: str
    seconds: list[float] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    clip_t: list[float] = field(default_factory=list)

    def ratios(self, exact: "Measured") -> list[float]:
        """This way's time / the exact way's, turn by turn."""
        return [ours / theirs for ours, theirs in zip(self.seconds, exact.seconds)]

    def clip_t_change(self, exact: "Measured") -> MeanCI:
        """Of CLIP-T, picture by picture."""
        return mean_with_ci([ours - theirs for ours, theirs in zip(self.clip_t, exact.clip_t)])


def ways_here(device: torch.device, dtype: torch.dtype) -> dict[str, dict]:
    """Those of WAYS that this machine has."""

    def fits(way: dict) -> bool:
        return all(OPTIMIZATIONS[name].fits(device, dtype) for name in approximate_names(way.get("optimizations")))

    return {name: way for name, way in WAYS.items() if fits(way)}


def settings_of(way: dict) -> tuple[dict, list[str] | None]:
    """(what it changes of the settings, the pipeline's optimizations)"""
    return {key: value for key, value in way.items() if key != "optimizations"}, way.get("optimizations")


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Of two pictures of equal size, in dB; at most HIGHEST_PSNR."""
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean() / 255**2
    return HIGHEST_PSNR if error == 0 else min(HIGHEST_PSNR, -10 * math.log10(error))


def measure(
    pipe: StableDiffusion,
    scorer: Scorer,
    asked: list[GenerationSettings],
    ways: dict[str, dict],
    on_turn: Callable[[float], None] | None = None,
) -> list[Measured]:
    """Each of `asked` in each way, all ways in turn, after one turn that warms up. The first way is the exact one.

    on_turn: called with the part that is done, 0 to 1.
    """
    found = [Measured(name) for name in ways]
    pipe.generate(asked[0].replace(steps=1))
    for round_, settings in enumerate(asked, start=1):
        for one, (changes, pipe.optimizations) in zip(found, map(settings_of, ways.values())):
            pipe.optimize()
            began = time.perf_counter()
            one.images += pipe.generate(settings.replace(**changes)).images
            one.seconds.append(time.perf_counter() - began)
        if on_turn is not None:
            on_turn(round_ / len(asked))
    texts = scorer.embed_texts([settings.prompt for settings in asked for _ in settings.seeds()])
    for one in found:
        one.psnr = [psnr(ours, exact) for ours, exact in zip(one.images, found[0].images)]
        one.clip_t = (scorer.embed_images(one.images) * texts).sum(dim=1).tolist()
    return found


@torch.no_grad()
def step_ratios(options: Options, ways: dict[str, dict]) -> dict[str, list[float]]:
    """The U-Net alone, at v1-5's size with random weights: a walk's time / the exact walk's, round by round."""
    model = RandomModel(options)
    context = torch.randn(1, 77, model.sizes["unet"]["context_dim"], dtype=model.dtype)
    sigmas = sigma_list(options.steps)
    noise = torch.randn(1, *model.latent_shape) * math.sqrt(1 + sigmas[0] ** 2)

    def walk(changes: dict, optimizations: list[str] | None) -> float:
        way = GenerationSettings(**changes)
        optimize(model.unet, model.vae, optimizations)
        model.unet(*model.step_inputs)  # what is packed at first use is packed
        unet = model.unet if way.step_cache == 1 else StepCached(model.unet, way.step_cache)
        interval = sigmas_between(way.guidance_start, way.guidance_end)
        denoise = Guidance(unet, context, context.flip(1), GUIDANCE, interval=interval)
        began = time.perf_counter()
        with token_merging(model.unet, way.token_merging):
            for _ in SAMPLERS["euler"].run(denoise, noise, sigmas, None):
                pass
        return time.perf_counter() - began

    ratios = {name: [] for name in ways}
    for _ in range(options.rounds):
        seconds = {name: walk(*settings_of(way)) for name, way in ways.items()}
        for name, value in seconds.items():
            ratios[name].append(value / seconds[next(iter(ways))])
    return ratios


def table(found: list[Measured], full_size: dict[str, list[float]]) -> str:
    """Markdown; times are parts of the exact way's. full_size: what `step_ratios` gave, or nothing."""
    exact = found[0]
    how = "Beside the exact way, with the same prompts and seeds: the time, in turn on the bundled model, and of a "
    how += "step of v1-5's size; the PSNR of the pictures to the exact ones."
    head = "| | time | at v1-5's size | PSNR, median (least) | CLIP-T | its change |\n|---|---|---|---|---|---|"
    rows = []
    for one in found:
        ratio = f"{statistics.median(one.ratios(exact)):.2f}"
        large = f"{statistics.median(full_size[one.name]):.2f}" if one.name in full_size else ""
        noise = "" if one is exact else f"{statistics.median(one.psnr):.1f} dB ({min(one.psnr):.1f})"
        change = "" if one is exact else str(one.clip_t_change(exact))
        rows.append(f"| {one.name} | {ratio} | {large} | {noise} | {mean_with_ci(one.clip_t)} | {change} |")
    return "\n".join([how, "", head, *rows])


def sheet(found: list[Measured], prompts: list[str]) -> Image.Image:
    """Each prompt's first picture in every way, side by side."""
    each = len(found[0].images) // len(prompts)
    pictures = [list(row) for row in zip(*(one.images[::each] for one in found))]
    return contact_sheet(pictures, prompts, [one.name for one in found])
