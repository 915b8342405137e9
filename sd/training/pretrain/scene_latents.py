"""Scenes as latents, encoded once, in shards of a thousand, each with several of its captions."""

import random
from pathlib import Path

import torch
from torch import Tensor

from sd.training.pretrain.scene_vae import encode_images
from sd.training.pretrain.scenes.attention_loss import Box
from sd.training.pretrain.scenes.grammar import Scene
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.stream import SceneStream
from sd.training.pretrain.scenes.vocabulary import scene_names
from sd.training.pretrain.scenes.wording import random_caption
from sd.utils.device import cpu_has_bf16
from sd.utils.errors import UserError
from sd.utils.files import replacing, write_torch
from sd.vae import LATENT_SCALE, AutoencoderKL

SHARD = 1000  # scenes in a file
WORDINGS = 4  # captions kept for each scene


def wordings(scene: Scene) -> list[str]:
    """Return the scene's caption and, except for single emoji, some others with the same meaning."""
    if scene.content.kind == "emoji":
        return [scene.caption] * WORDINGS
    rng = random.Random(f"wordings {scene.seed}")
    return [scene.caption, *(random_caption(scene.content, rng) for _ in range(WORDINGS - 1))]


def grounded_phrases(scene: Scene) -> list[tuple[str, list[Box]]]:
    """Return the words of each object that every caption of the scene has, "blue heart" or "trees", with its boxes.

    A single emoji has none: its captions may use other words.
    """
    content = scene.content
    boxes = [(each.left, each.top, each.width, each.height) for each in scene.objects]
    if content.kind == "emoji":
        return []
    if content.count > 1:
        plural = scene_names()[content.names[0]].plural
        assert plural is not None  # what has none is never counted
        return [(plural, boxes)]
    nouns = [scene_names()[name].noun for name in content.names]
    phrases = [f"{color} {noun}" if color else noun for color, noun in zip(content.colors, nouns)]
    return [(phrase, [box]) for phrase, box in zip(phrases, boxes)]


def make_latents(vae: AutoencoderKL, stream: SceneStream, folder: Path, count: int, say=print) -> int:
    """Encode scenes 0 .. count - 1 into `folder`, except for whole shards, and return the number of encoded scenes."""
    made = 0
    for number in range(-(-count // SHARD)):
        file, wanted = folder / f"{number:05d}.pt", min(SHARD, count - number * SHARD)
        if file.exists() and len(torch.load(file, weights_only=True)["captions"]) >= wanted:
            continue
        scenes = [stream.scene(number * SHARD + k) for k in range(wanted)]
        parts = [scenes[i : i + 8] for i in range(0, len(scenes), 8)]
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):  # they are stored in bf16 anyway
            latents = torch.cat([encode_images(vae, render_batch(part, stream.cutouts)) for part in parts])
        contents = {
            "latents": (latents * LATENT_SCALE).bfloat16(),
            "captions": [wordings(scene) for scene in scenes],
            "styles": [scene.content.style for scene in scenes],
            "phrases": [grounded_phrases(scene) for scene in scenes],
        }
        with replacing(file) as part:
            write_torch(contents, part)
        made += len(scenes)
        say(f"{file}: scenes up to {number * SHARD + len(scenes)}")
    return made


class SceneLatents:
    """All shards of a folder. numbers: of the scenes, N. latents: (N, 4, h, w) bfloat16, scaled.

    captions: WORDINGS for each. phrases: see `grounded_phrases`.
    """

    def __init__(self, folder: Path):
        """Raises UserError where there is no shard."""
        files = sorted(file for file in folder.glob("*.pt") if file.stem.isdecimal())
        shards = [torch.load(file, weights_only=True) for file in files]
        if not shards:
            raise UserError(f"no latents in {folder}; run `python scripts/train_scenes.py latents` first.")
        # A shard may be missing, or hold fewer scenes than it could: then a place in the lists is not a scene's number.
        self.numbers = [
            int(file.stem) * SHARD + k for file, shard in zip(files, shards) for k in range(len(shard["captions"]))
        ]
        self.latents: Tensor = torch.cat([shard["latents"] for shard in shards])
        self.captions: list[list[str]] = [texts for shard in shards for texts in shard["captions"]]
        self.styles: list[str] = [style for shard in shards for style in shard["styles"]]
        self.phrases: list[list[tuple[str, list[Box]]]] = [each for shard in shards for each in shard["phrases"]]

    def __len__(self) -> int:
        return len(self.latents)
