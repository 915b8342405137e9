"""Training scenes as tensors, rendered on demand: the number of an example is the seed of its scene."""

import random

import torch
from torch import Tensor

from sd.training.pretrain.dataset import Emoji, with_article
from sd.training.pretrain.emoji_dataset import read_names
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.grammar import Grammar, Scene, usual_style
from sd.training.pretrain.scenes.layout import Placed
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.vocabulary import COMMON_NOUNS
from sd.training.pretrain.scenes.wording import Content

EXAMPLES = 1_000_000  # scenes in an epoch
COMMON = 0.9  # the fraction of the scenes that have common nouns only
SINGLE_EMOJI = 0.5  # the fraction of examples with one emoji on white, as large and where its artist put it


class SceneStream:
    """Scenes and single emoji, by example number. Single emoji cover all names, scenes only those of the vocabulary."""

    def __init__(self, cutouts: Cutouts, single_emoji: float = SINGLE_EMOJI, common: float = COMMON):
        self.cutouts, self.single_emoji, self.common = cutouts, single_emoji, common
        self.grammar, self.common_grammar = Grammar(cutouts), Grammar(cutouts, nouns=COMMON_NOUNS)
        self.keys = sorted(cutouts.cutouts)
        self.words = {name.name: name.words for name in read_names()}

    def scene(self, example: int) -> Scene:
        """Return the scene of this number, always the same."""
        rng = random.Random(f"stream {example}")
        if rng.random() < self.single_emoji:
            return self.emoji(rng, example)
        return (self.common_grammar if rng.random() < self.common else self.grammar).scene(example)

    def emoji(self, rng: random.Random, seed: int) -> Scene:
        """Return one emoji as its artist drew it, in one of the captions of the shipped model's training."""
        cutout = self.cutouts[rng.choice(self.keys)]
        content = Content("emoji", cutout.style, (cutout.name,))
        side = max(cutout.width, cutout.height)
        place = (cutout.left, cutout.top, cutout.width, cutout.height)
        placed = Placed(cutout.name, cutout.style, None, *place, side)
        emoji = Emoji(cutout.file, cutout.name, cutout.style, self.words[cutout.name], cutout.split)
        exact = f"{with_article(cutout.name)}, {cutout.style}"
        is_usual = cutout.style == usual_style([cutout.name], self.cutouts)
        others = emoji.captions if is_usual else emoji.captions[: -len(emoji.plain_captions)]
        caption = exact if rng.random() < 0.4 else rng.choice(others)
        return Scene(content, (placed,), caption, seed)

    def images(self, indices: Tensor) -> tuple[Tensor, list[str]]:
        """Return (B, 3, 128, 128) in [-1, 1], and the captions."""
        scenes = [self.scene(int(index)) for index in indices]
        return render_batch(scenes, self.cutouts), [scene.caption for scene in scenes]


def fixed_sample(count: int, first: int = 10 * EXAMPLES) -> Tensor:
    """Return numbers of examples outside every epoch, for evaluation."""
    return torch.arange(first, first + count)
