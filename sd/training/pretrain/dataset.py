"""Images and captions of the prepared dataset, as tensors."""

import json
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd.utils.errors import UserError


@dataclass
class Emoji:
    """One image of the prepared dataset, as `index.jsonl` describes it."""

    file: str
    name: str
    style: str
    words: list[str]  # other names for the same thing
    split: str  # train, pair, name or style: see `sd.training.pretrain.emoji_dataset.Name.split`

    @cached_property
    def captions(self) -> list[str]:
        """Return all captions for training on this image, those with the style first.

        Prompts need not be exact: with and without article, style before or after, other names, no style at all.
        """
        names = [self.name, *self.words]
        styled = [f"{with_article(name)}, {self.style}" for name in names]
        styled += [f"{name}, {self.style}" for name in names]
        styled += [f"{self.style} of {with_article(self.name)}", f"{self.style}, {self.name}"]
        return styled + self.plain_captions

    @property
    def plain_captions(self) -> list[str]:
        """Return the captions without the style."""
        return [with_article(name) for name in [self.name, *self.words]] + [self.name]


def with_article(name: str) -> str:
    """Return "a red apple" or "an owl", but "grapes" and "the sun" unchanged."""
    if name.startswith("the ") or (name.endswith("s") and not name.endswith("ss")) or name in UNCOUNTED:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


UNCOUNTED = {"fire", "lightning", "corn", "maize", "popcorn", "milk", "coffee", "beer", "honey", "music", "rain", "ice"}


class EmojiDataset:
    """The prepared dataset in memory, or some of its `splits`."""

    def __init__(self, folder: Path, splits: tuple[str, ...] = ("train",)):
        """Raises UserError where the data has not been prepared."""
        index = Path(folder) / "index.jsonl"
        if not index.exists():
            raise UserError(f"file not found: {index}; run `python scripts/prepare_emoji.py` first.")
        lines = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
        self.emoji = [Emoji(**line) for line in lines if line["split"] in splits]
        images = [np.asarray(Image.open(Path(folder) / emoji.file).convert("RGB")) for emoji in self.emoji]
        self.pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W), uint8

    def __len__(self) -> int:
        return len(self.emoji)

    def of(self, split: str) -> "EmojiDataset":
        """Return the images of one split."""
        return self.at([i for i, emoji in enumerate(self.emoji) if emoji.split == split])

    def at(self, indices: list[int]) -> "EmojiDataset":
        """Return the images at these indices, in this order."""
        some = copy(self)
        some.emoji, some.pixels = [self.emoji[i] for i in indices], self.pixels[indices]
        return some

    def images(self, indices: Tensor | list[int] | slice = slice(None)) -> Tensor:
        """Return (B, 3, H, W) in [-1, 1]."""
        return self.pixels[indices].float() / 127.5 - 1


def random_crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return (B, C, size, size) of (B, C, H, W): each cropped at its own position, half of them mirrored."""
    height, width = images.shape[-2:]
    tops = torch.randint(height - size + 1, (len(images),), generator=generator)
    lefts = torch.randint(width - size + 1, (len(images),), generator=generator)
    crops = torch.stack(
        [image[:, y : y + size, x : x + size] for image, y, x in zip(images, tops.tolist(), lefts.tolist())]
    )
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], crops.flip(-1), crops)
