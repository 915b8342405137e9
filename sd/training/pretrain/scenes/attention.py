"""Where a word is read: the share of its cross-attention that lies on its object, in rendered scenes with known boxes.

Hertz et al. 2022, "Prompt-to-Prompt Image Editing with Cross Attention Control", figure 2, show such maps; here their
agreement with the object is a number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd.checkpoints.predictions import EPS
from sd.pipeline.sampling.v_prediction import schedule_of
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.pipeline.tracing.attention_maps import AttentionMaps, map_size, observed
from sd.pipeline.tracing.words import Word, find_words, membership
from sd.prompts.weighting import encode_chunks, split_chunks
from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.grammar import Scene
from sd.training.pretrain.scenes.layout import Placed
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.vocabulary import scene_names
from sd.vae import LATENT_SCALE

TIME = 600  # of 1,000: noisy enough that the text decides what an object is, and not too noisy to see where it is


@dataclass(frozen=True)
class AttentionShare:
    """The mean share of a noun's attention inside its object's box, and the mean share of the image that the box is."""

    inside: float
    area: float
    objects: int

    @property
    def ratio(self) -> float:
        """Return how many times the attention is denser in the box than it would be if it were uniform."""
        return self.inside / self.area

    def __str__(self) -> str:
        return f"{self.inside:.2f} in a box of {self.area:.2f} of the image, {self.ratio:.1f} times as dense as uniform"


@torch.no_grad()
def attention_share(pipe: StableDiffusion, scenes: list[Scene], cutouts: Cutouts, seed: int = 0) -> AttentionShare:
    """Measure one evaluation of the U-Net for each scene, at TIME, on the scene's own latent and caption.

    The maps are the mean over heads and over the layers of the finest resolution with cross-attention. Only objects
    whose noun the caption names once count, since two equal words cannot be told apart.
    """
    inside, areas = [], []
    for number, scene in enumerate(scenes):
        chunks = split_chunks(pipe.tokenizer, scene.caption, "none")
        words = find_words(pipe.tokenizer, chunks)
        _, member = membership(words, 77 * len(chunks))
        generator = torch.Generator().manual_seed(seed + number)
        context = encode_chunks(pipe.tokenizer, pipe.clip, chunks, 1, "none")
        maps = scene_maps(pipe, scene, cutouts, context, member, generator)
        for placed in scene.objects:
            entry = noun_entry(words, scene_names()[placed.name].noun)
            if entry is None:
                continue
            box = box_mask(placed, maps.shape[-2:])
            inside.append(((maps[entry] * box).sum() / maps[entry].sum()).item())
            areas.append(box.mean().item())
    return AttentionShare(sum(inside) / len(inside), sum(areas) / len(areas), len(inside))


def scene_maps(
    pipe: StableDiffusion, scene: Scene, cutouts: Cutouts, context: Tensor, member: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the attention maps (E, h, w) of the scene's noisy latent, one for each entry of `member`."""
    like = next(pipe.unet.parameters())
    latent = pipe.vae.encode(render_batch([scene], cutouts).to(like))[0].float().cpu() * LATENT_SCALE
    noise = torch.randn(latent.shape, generator=generator)
    t = torch.tensor([TIME])
    noisy = schedule_of(EPS).add_noise(latent, noise, t).to(like)
    size = map_size(pipe.unet, *latent.shape[-2:])
    assert size is not None  # the middle of the U-Net always has cross-attention
    maps = AttentionMaps(size, member)
    with observed(pipe.unet, maps):
        maps.row = 0
        pipe.unet(noisy, t.to(like.device), context.to(like))
    found = maps.take()
    assert found is not None
    return found.cpu()


def noun_entry(words: list[Word], noun: str) -> int | None:
    """Return the entry of a noun's last word, "dog" of "hot dog"; None where the caption names it never or twice."""
    texts, wanted = [word.text for word in words], noun.lower().split()
    places = [i for i in range(len(texts)) if texts[i : i + len(wanted)] == wanted]
    return places[0] + len(wanted) if len(places) == 1 else None  # entry 0 is the start token


def box_mask(placed: Placed, size: torch.Size) -> Tensor:
    """Return (h, w) with the share of each cell that lies in the object's box."""
    height, width = size
    return covered(placed.top, placed.height, height)[:, None] * covered(placed.left, placed.width, width)[None]


def covered(first: int, length: int, cells: int) -> Tensor:
    """Return (cells,): the share of each of equal parts of 0..SIZE that lies in first..first + length."""
    side = SIZE / cells
    edges = torch.arange(cells) * side
    return ((edges + side).clamp(max=first + length) - edges.clamp(min=first)).clamp(min=0) / side
