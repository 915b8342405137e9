"""Training examples of a ControlNet: a latent, a condition image made from the pixels of the same view, a caption."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.training.controlnet.conditions import make_condition
from sd.training.finetune.data.captions import Captions
from sd.training.finetune.latent_cache import LatentCache
from sd.training.finetune.runs import printable
from sd.training.pretrain.scene_latents import SceneLatents
from sd.training.pretrain.scene_vae import encode_images
from sd.training.pretrain.scenes.render import render, render_batch
from sd.training.pretrain.scenes.stream import SceneStream
from sd.utils.errors import UserError
from sd.vae import LATENT_SCALE, AutoencoderKL

WORKERS = 4  # threads that make condition images
CHECKED = 4  # scenes that are encoded again, to see whether latents belong to this VAE
SAME_LATENT = 0.1  # the largest relative error of latents that went through half precision; another VAE gives 1


@dataclass
class Batch:
    """latents: (B, 4, h, w), scaled. conditions: (B, 3, H, W) in [0, 1]. captions: B, some of them empty."""

    latents: Tensor
    conditions: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Variation:
    """What is random beside the views. kinds: of CONDITIONS, one of which is chosen for each example.

    empty: the fraction of empty captions, 0 to 1, from which the ControlNet learns to recognize the objects in its
    image, and with which guidance has a prediction without a prompt.
    """

    kinds: tuple[str, ...]
    empty: float

    def conditions(self, images: Sequence[Image.Image], generator: torch.Generator) -> Tensor:
        """Return a random condition image of each image, (B, 3, H, W) in [0, 1]."""
        chosen = torch.randint(len(self.kinds), (len(images),), generator=generator).tolist()
        seeds = torch.randint(2**62, (len(images),), generator=generator).tolist()
        with ThreadPoolExecutor(WORKERS) as workers:
            made = workers.map(make_condition, images, (self.kinds[k] for k in chosen), seeds)
        return torch.from_numpy(np.stack(list(made))).permute(0, 3, 1, 2).float() / 255

    def captions(self, captions: list[str], generator: torch.Generator) -> list[str]:
        """Return the captions, some of them replaced by the empty one."""
        dropped = torch.rand(len(captions), generator=generator).lt(self.empty).tolist()
        return ["" if drop else caption for drop, caption in zip(dropped, captions)]


class Source(Protocol):
    """Training examples by number. what: their plural. facts: what must not change when a run resumes."""

    what: str

    @property
    def facts(self) -> dict: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Return the examples with these numbers, (B,); all randomness comes from the generator."""

    def examples(self, count: int) -> list[tuple[Image.Image, str]]:
        """Return at most `count` images with their captions that are not trained on, for previews."""


class FolderSource:
    """The images of a folder, as views of a latent cache. held_out: the number of images that are not trained on."""

    what = "images"

    def __init__(self, latents: LatentCache, captions: Captions, variation: Variation, held_out: int):
        self.latents, self.captions, self.variation = latents, captions, variation
        self.images = latents.folder.images
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0)).tolist()
        self.spared = sorted(order[:held_out])
        taken = [i for i in range(len(self.images)) if i not in set(self.spared)]
        self.indices = [i for i in taken for _ in range(self.images[i].repeats)]

    @property
    def facts(self) -> dict:
        return {"pictures": [printable(image.path.name) for image in self.images]}

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        chosen = [self.indices[i] for i in indices.tolist()]
        latents, views = zip(*self.latents.sample_views(chosen, generator))
        with ThreadPoolExecutor(WORKERS) as workers:
            images = list(workers.map(self.latents.view, chosen, views))
        captions = self.captions.sample(chosen, generator)
        conditions = self.variation.conditions(images, generator)
        return Batch(torch.stack(latents), conditions, self.variation.captions(captions, generator))

    def examples(self, count: int) -> list[tuple[Image.Image, str]]:
        indices = (self.spared or sorted(set(self.indices)))[:count]
        return [(self.latents.view(i, 0), self.captions.wordings[i][0]) for i in indices]


class SceneSource:
    """Scenes of the bundled model's world: latents from shards, pixels rendered again, as the number is the seed."""

    what = "scenes"

    def __init__(self, stream: SceneStream, data: SceneLatents, variation: Variation):
        self.stream, self.data, self.variation = stream, data, variation

    @property
    def facts(self) -> dict:
        return {"scenes": len(self)}

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        places = indices.tolist()
        images = [render(self.stream.scene(self.data.numbers[i]), self.stream.cutouts) for i in places]
        wordings = [self.data.captions[i] for i in places]
        chosen = torch.randint(2**31, (len(places),), generator=generator).tolist()
        captions = [texts[k % len(texts)] for texts, k in zip(wordings, chosen)]
        conditions = self.variation.conditions(images, generator)
        return Batch(self.data.latents[indices].float(), conditions, self.variation.captions(captions, generator))

    def examples(self, count: int) -> list[tuple[Image.Image, str]]:
        scenes = [self.stream.scene(max(self.data.numbers) + 1 + k) for k in range(count)]
        return [(render(scene, self.stream.cutouts), scene.caption) for scene in scenes]


def check_latents(data: SceneLatents, stream: SceneStream, vae: AutoencoderKL, folder: Path) -> None:
    """Raise UserError where latents are not those of the same scenes under this VAE.

    A ControlNet trained on them would follow edges of other pictures, or belong to another decoder.
    """
    places = torch.linspace(0, len(data) - 1, min(CHECKED, len(data))).long()  # from the first to the last
    images = render_batch([stream.scene(data.numbers[i]) for i in places.tolist()], stream.cutouts)
    weight = vae.quant_conv.weight
    expected = encode_images(vae, images.to(weight.device, weight.dtype)).float().cpu() * LATENT_SCALE
    found = data.latents[places].float()
    if found.shape != expected.shape or (found - expected).norm() > SAME_LATENT * expected.norm():
        raise UserError(
            f"the latents in {folder} were made with another VAE or from other cut-outs than these: leave out "
            "--latents, or give those that this checkpoint was trained on."
        )
