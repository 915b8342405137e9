"""The six tasks from prompts to scores: images generated with fixed seeds, and rendered scenes of the same contents.

Beside them, the same detector scores the regions of prompts.
"""

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scenes.attention import AttentionShare, attention_share
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.detector import Detector, detector_cutouts
from sd.training.pretrain.scenes.grammar import Scene
from sd.training.pretrain.scenes.layout import lay_out
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.training.pretrain.scenes.tasks import Score, is_right, mean_score, task_scenes, wilson_score
from sd.training.pretrain.scenes.wording import noun_phrases
from sd.utils.images import from_tensor, to_tensor
from sd.vae import AutoencoderKL

Scores = dict[str, dict[str, Score]]  # by the source of the images, then by task
REGIONS = {"regions": "ADDCOL", "plain prompt": "left of"}  # what stands between the two objects of a prompt


def evaluate_tasks(
    tasks: list[str], data: Path, detector: Detector, pipe: StableDiffusion | None, prompts: int, settings: dict,
    sheets: Path | None = None, seed: int = 0, say=print, nouns: Collection[str] | None = None,
) -> Scores:  # fmt: skip
    """Score `pipe` and rendered scenes of the same contents: "real", "real, decoded" and "generated".

    Rendered scenes show the detector's ceiling; the same through the VAE show the cost of its losses. With several
    tasks each has a "mean". seed: of the first image; the k-th image of a task has seed + k. nouns: those of the
    prompts, the whole vocabulary without them.
    """
    cutouts = detector_cutouts(data)
    scores: Scores = {}
    for task in tasks:
        scenes = task_scenes(task, data, prompts, nouns)
        images = {"real": render_batch(scenes, cutouts)}
        captions = [scene.caption for scene in scenes]
        if pipe is not None:
            images["real, decoded"] = reconstruct(pipe.vae, images["real"])
            images["generated"] = generate(pipe, captions, seed, settings)
        for who, made in images.items():
            found = detector.detect(made)
            right = [is_right(scene.content, each) for scene, each in zip(scenes, found)]
            scores.setdefault(who, {})[task] = wilson_score(right)
            if sheets is not None:
                sheets.mkdir(parents=True, exist_ok=True)
                name = f"{task}-{who}.png".replace(" ", "-").replace(",", "")
                captioned_sheet(from_tensor(made), captions, columns=10, right=right).save(sheets / name)
        say(f"{task}: " + ", ".join(f"{who} {each[task]}" for who, each in scores.items()))
    for each in scores.values():
        if len(each) > 1:
            each["mean"] = mean_score(list(each.values()))
    return scores


def evaluate_regions(
    data: Path, detector: Detector, pipe: StableDiffusion, prompts: int, settings: dict,
    sheets: Path | None = None, seed: int = 0, nouns: Collection[str] | None = None,
) -> dict[str, Score]:  # fmt: skip
    """Score held-out pairs in images of two squares side by side: each object is right in its own half only.

    "rendered": both objects rendered, each alone in its square, which shows the detector's ceiling. "regions": a prompt
    for each half. "plain prompt": one for both, "a cat left of a dog". The others: see `evaluate_tasks`.
    """
    scenes = task_scenes("two objects", data, prompts, nouns)
    phrases = [[phrase for (phrase,) in noun_phrases(scene.content)] for scene in scenes]
    asked = {who: [f" {word} ".join(each) for each in phrases] for who, word in REGIONS.items()}
    sizes = settings | {"width": 2 * SIZE, "height": SIZE}
    made = {"rendered": render_halves(scenes, detector_cutouts(data))}
    made |= {who: generate(pipe, texts, seed, sizes) for who, texts in asked.items()}
    scores = {}
    for who, images in made.items():
        right = in_halves([scene.content.names for scene in scenes], images, detector)
        scores[who] = wilson_score(right)
        if sheets is not None:
            sheets.mkdir(parents=True, exist_ok=True)
            texts = asked.get(who, [scene.caption for scene in scenes])
            file = sheets / f"{who.replace(' ', '-')}.png"
            captioned_sheet(from_tensor(images), texts, columns=5, right=right).save(file)
    return scores


def evaluate_attention(
    data: Path, pipe: StableDiffusion, prompts: int, nouns: Collection[str] | None = None
) -> AttentionShare:
    """Return the share of a noun's attention on its object, in images of held-out pairs."""
    return attention_share(pipe, task_scenes("two objects", data, prompts, nouns), detector_cutouts(data))


def render_halves(scenes: list[Scene], cutouts: Cutouts) -> Tensor:
    """Return (B, 3, SIZE, 2 * SIZE) in [-1, 1]: the two objects of each scene, each alone in its square."""
    halves = []
    for k in (0, 1):
        alone = [
            replace(scene.content, kind="single", names=(scene.content.names[k],), colors=(None,), relation="")
            for scene in scenes
        ]
        placed = [
            replace(scene, content=content, objects=lay_out(content, cutouts, random.Random(scene.seed + k)))
            for scene, content in zip(scenes, alone)
        ]
        halves.append(render_batch(placed, cutouts))
    return torch.cat(halves, dim=-1)


def in_halves(names: Sequence[Sequence[str]], images: Tensor, detector: Detector) -> list[bool]:
    """Return for each image whether its first name is detected in the left half, and its second in the right one.

    images: (B, 3, SIZE, 2 * SIZE). Each half is looked at as a square by itself, as the detector has learned them.
    """
    left, right = (detector.detect(half) for half in images.split(SIZE, dim=-1))
    return [
        first in {each.name for each in at_left} and second in {each.name for each in at_right}
        for (first, second), at_left, at_right in zip(names, left, right)
    ]


def generate(pipe: StableDiffusion, prompts: list[str], seed: int, settings: dict, batch: int = 10) -> Tensor:
    """Return (B, 3, H, W) in [-1, 1]: one image for each prompt, the k-th with seed + k."""
    images = []
    for i in range(0, len(prompts), batch):
        images += pipe(prompts[i : i + batch], seed=seed + i, **settings).images
    return torch.cat([to_tensor(image) for image in images])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch: int = 8) -> Tensor:
    """Return (B, 3, H, W) in [-1, 1]: the images encoded to their mean latents and decoded."""
    like = vae.quant_conv.weight
    parts = [vae.decode(vae.encode(part.to(like))[0]) for part in images.split(batch)]
    return torch.cat(parts).float().clamp(-1, 1).cpu()


def append_scores(file: Path, about: dict, scores: Scores, attention: AttentionShare | None) -> None:
    """Append one JSON line to a curve: `about`, the value of each task by the source of its images, the attention."""
    line = about | {who: {task: score.value for task, score in each.items()} for who, each in scores.items()}
    if attention is not None:
        line["attention"] = {"inside": attention.inside, "area": attention.area}
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def table(scores: Scores) -> str:
    """Return one line for each task, with one column for each source of images."""
    sources = list(scores)
    lines = [f"{'task':<20}" + "".join(f"{who:>22}" for who in sources)]
    for task in scores[sources[0]]:
        lines.append(f"{task:<20}" + "".join(f"{scores[who][task]!s:>22}" for who in sources))
    return "\n".join(lines)
