"""The six tasks from prompts to scores: images generated with fixed seeds, and rendered scenes of the same contents.

Beside them, the same detector scores the regions of prompts.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scenes.attention import AttentionShare
from sd.training.pretrain.scenes.detector import Detection, Detector, detector_cutouts
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.sheets import captioned_sheet
from sd.training.pretrain.scenes.tasks import Score, is_right, mean_score, task_scenes, wilson_score
from sd.training.pretrain.scenes.wording import noun_phrases
from sd.utils.images import from_tensor, to_tensor
from sd.vae import AutoencoderKL

Scores = dict[str, dict[str, Score]]  # by the source of the images, then by task


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

    "regions": a prompt for each half. "plain prompt": one for both, "a cat left of a dog". The others: see
    `evaluate_tasks`.
    """
    scenes, scores = task_scenes("two objects", data, prompts, nouns), {}
    for who, between in (("regions", " ADDCOL "), ("plain prompt", " left of ")):
        texts = [between.join(phrase for (phrase,) in noun_phrases(scene.content)) for scene in scenes]
        made = generate(pipe, texts, seed, settings | {"width": 2 * SIZE, "height": SIZE})
        right = [in_halves(scene.content.names, each) for scene, each in zip(scenes, detector.detect(made))]
        scores[who] = wilson_score(right)
        if sheets is not None:
            sheets.mkdir(parents=True, exist_ok=True)
            file = sheets / f"{who.replace(' ', '-')}.png"
            captioned_sheet(from_tensor(made), texts, columns=5, right=right).save(file)
    return scores


def in_halves(names: Sequence[str], found: list[Detection]) -> bool:
    """Return whether the first object is left of the middle, and the second one right of it, SIZE pixels from the
    left.
    """
    left = {each.name for each in found if each.x < SIZE}
    right = {each.name for each in found if each.x >= SIZE}
    return names[0] in left and names[1] in right


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
