"""Held-out scenes with and without a ControlNet: whether the image has the asked edges, and its objects their names."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.control.preprocessors import preprocess
from sd.evaluation.confidence import MeanCI, mean_with_ci, ratio_with_ci
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.controlnet.conditions import make_condition
from sd.training.controlnet.edge_score import edge_f1
from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.detector import Detector
from sd.training.pretrain.scenes.evaluation import generate, reconstruct
from sd.training.pretrain.scenes.grammar import Scene
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.training.pretrain.scenes.tasks import TASKS, Score, task_scenes, wilson_score
from sd.utils.images import from_tensor, to_tensor

WITHOUT, WITH, DECODED = "without", "with", "real, decoded"
ROW = 3  # images of one scene on the sheet


@dataclass
class ControlScores:
    """The values of each scene, by the source of its image: WITHOUT, WITH, or DECODED, the scene through the VAE.

    f1: of the edges with the scene's own. named: whether every object is detected by its name; empty where no detector
    was given.
    """

    f1: dict[str, list[float]] = field(default_factory=dict)
    named: dict[str, list[bool]] = field(default_factory=dict)

    def edge_mean(self, who: str) -> MeanCI:
        return mean_with_ci(self.f1[who])

    def named_share(self, who: str) -> Score:
        return wilson_score(self.named[who])


def held_out_scenes(data: Path, count: int) -> list[Scene]:
    """Return fixed scenes on white with held-out combinations, equal parts of the six tasks of `evaluate_scenes.py`."""
    scenes: list[Scene] = []
    for k, task in enumerate(TASKS):
        part = count // len(TASKS) + (k < count % len(TASKS))
        scenes += task_scenes(task, data, part) if part else []
    return scenes


def edges_of(image: Image.Image) -> np.ndarray:
    """Return the Canny edges (H, W) at the default thresholds."""
    return preprocess(image, "canny")[..., 0]


def evaluate_control(
    pipe: StableDiffusion, control: str, scenes: list[Scene], cutouts: Cutouts, detector: Detector | None,
    settings: dict, condition: str = "canny", seed: int = 0, sheet: Path | None = None,
) -> ControlScores:  # fmt: skip
    """Generate every scene's caption twice from the same seed, without and with its condition image, and score both.

    control: the name or file of the ControlNet. condition: "canny", the scene's edges at the default thresholds, or
    "scribble", a random one. The k-th scene has seed + k. sheet: a file for the images.
    """
    settings = settings | {"width": SIZE, "height": SIZE}
    real = from_tensor(render_batch(scenes, cutouts))
    asked = [edges_of(image) for image in real]
    conditions = [Image.fromarray(edges).convert("RGB") for edges in asked]
    if condition != "canny":
        conditions = [Image.fromarray(make_condition(image, condition, k)) for k, image in enumerate(real)]
    captions = [scene.caption for scene in scenes]
    controlled = [  # first, so that a ControlNet that cannot be loaded is reported at once
        pipe(caption, seed=seed + k, control=control, control_image=image, **settings).images[0]
        for k, (caption, image) in enumerate(zip(captions, conditions))
    ]
    made = {
        WITHOUT: from_tensor(generate(pipe, captions, seed, settings)),
        WITH: controlled,
        DECODED: from_tensor(reconstruct(pipe.vae, stack(real))),
    }
    scores = ControlScores()
    for who, images in made.items():
        scores.f1[who] = [edge_f1(edges_of(image), edges) for image, edges in zip(images, asked)]
        if detector is not None:
            found = [{each.name for each in one} for one in detector.detect(stack(images))]
            scores.named[who] = [set(scene.content.names) <= names for scene, names in zip(scenes, found)]
    if sheet is not None:
        control_sheet(conditions, made, captions, scores).save(sheet)
    return scores


def stack(images: list[Image.Image]) -> Tensor:
    """Return (B, 3, H, W) in [-1, 1]."""
    return torch.cat([to_tensor(image) for image in images])


def control_sheet(
    conditions: list[Image.Image], made: dict[str, list[Image.Image]], captions: list[str], scores: ControlScores
) -> Image.Image:
    """Return three images for each scene, two scenes in a row: the condition, without, with, each under its scores."""
    images, texts = [], []
    for k, caption in enumerate(captions):
        images += [conditions[k], made[WITHOUT][k], made[WITH][k]]
        texts.append(caption)
        for who in (WITHOUT, WITH):
            named = ("" if scores.named[who][k] else ", not named") if scores.named else ""
            texts.append(f"{who}: F1 {scores.f1[who][k]:.2f}{named}")
    return captioned_sheet(images, texts, columns=2 * ROW)


def control_table(scores: ControlScores) -> str:
    """Return a line for each measure with its value for each source of images, and one with their ratios."""
    sources = list(scores.f1)
    lines = [f"{'':<24}" + "".join(f"{who:>22}" for who in sources)]
    lines.append(f"{'edges, F1 within 2 px':<24}" + "".join(f"{scores.edge_mean(who)!s:>22}" for who in sources))
    ratios = [f"edges {ratio_with_ci(scores.f1[WITH], scores.f1[WITHOUT])}"]
    if scores.named:
        lines.append(f"{'objects named right':<24}" + "".join(f"{scores.named_share(who)!s:>22}" for who in sources))
        named = {who: [float(right) for right in scores.named[who]] for who in (WITH, WITHOUT)}
        ratios.append(f"named {ratio_with_ci(named[WITH], named[WITHOUT])}")
    return "\n".join([*lines, f"with / without: {', '.join(ratios)} (95 % intervals, {len(scores.f1[WITH])} scenes)"])
