"""CLIP's vision tower once more, alone, towards a text tower that stays as it is (Zhai et al. 2022, "LiT")."""

from pathlib import Path

import torch
from torch import Tensor

from sd.clip import CLIP, clip_pixels
from sd.tokenizer import Tokenizer
from sd.training.contrastive import numbered, shaken, soft_cross_entropy
from sd.training.data import EmojiPictures, with_article
from sd.training.emoji import TRAINED_STYLES
from sd.training.loop import Settings, keep, train

STYLED = 0.7  # how much a picture belongs to the words with its style; the rest to those without
FIRST_WORD = 0.5  # the share of names that go by their first word, the others by any of theirs


def train_vision(clip: CLIP, run: Path, pictures: EmojiPictures, settings: Settings) -> CLIP:
    """Each picture finds its words among those of all names in all styles, and these words their pictures in the batch.

    The text tower is fixed, so that what a U-Net has learnt of it stays right, and its vectors are made once: no batch
    has to bring the wrong answers along. Pictures in a style of which no text speaks go without one.
    """
    clip.requires_grad_(True)
    for part in (clip.text_model, clip.text_projection):
        part.requires_grad_(False)
    words = Words(clip.to(settings.device), pictures)

    def loss(clip: CLIP, indices: Tensor, generator: torch.Generator) -> Tensor:
        device = clip.logit_scale.device
        # Half of the pictures have another one shining through (Zhang et al. 2018, "mixup", eq. 1).
        share = torch.rand(len(indices), generator=generator)
        share = torch.where(share < 0.5, 1.0, share)

        def mixed(rows: Tensor) -> Tensor:
            part = share.view(-1, *[1] * (rows.ndim - 1))
            return (part * rows + (1 - part) * rows.roll(1, 0)).to(device)

        images = mixed(faded(shaken(pictures.images(indices), generator), generator))
        fits, texts = mixed(words.fits(indices)), words.draw(generator).to(device)
        image = clip.encode_image(clip_pixels(images, clip.vision_model.image_size))
        logits = clip.logit_scale.clamp(max=4.6052).exp() * image.float() @ texts.T  # at most 100, as in `train_clip`
        met = fits.any(dim=0)  # the words that fit something here
        return (soft_cross_entropy(logits, fits) + soft_cross_entropy(logits[:, met].T, fits[:, met].T)) / 2

    return train(clip, loss, len(pictures), run, settings, on_save=lambda average, step: keep(average, run))


class Words:
    """What can be said of the pictures: each name with each style and, in the last of `columns`, without any."""

    def __init__(self, clip: CLIP, pictures: EmojiPictures):
        said = {emoji.name: [emoji.name, *emoji.words] for emoji in pictures.emoji}
        endings = [f", {style}" for style in TRAINED_STYLES] + [""]
        self.columns = len(endings)
        self.counts = torch.tensor([len(words) for words in said.values()])
        self.texts = encode(clip, [f"{with_article(w)}{e}" for words in said.values() for w in words for e in endings])
        self.texts = self.texts.view(-1, self.columns, self.texts.shape[1])  # (words, columns, P)
        self.name = numbered(emoji.name for emoji in pictures.emoji)  # in the order of `said`
        places = {style: place for place, style in enumerate(TRAINED_STYLES)}
        self.style = torch.tensor([places.get(emoji.style, self.columns - 1) for emoji in pictures.emoji])

    def draw(self, generator: torch.Generator) -> Tensor:
        """(names * columns, P), of unit length: each name goes by one of its words."""
        pick, first = torch.rand(2, len(self.counts), generator=generator)
        word = torch.where(first < FIRST_WORD, 0, (pick * self.counts).long())
        return self.texts[self.counts.cumsum(0) - self.counts + word].flatten(0, 1)

    def fits(self, indices: Tensor) -> Tensor:
        """(B, names * columns): how much each picture belongs to each of the words, in sum 1."""
        fits = torch.zeros(len(indices), len(self.counts), self.columns)
        rows, name = torch.arange(len(indices)), self.name[indices]
        fits[rows, name, -1] = 1 - STYLED
        fits[rows, name, self.style[indices]] += STYLED
        return fits.flatten(1)


@torch.no_grad()
def encode(clip: CLIP, texts: list[str], batch: int = 256) -> Tensor:
    """(texts, P), of unit length, on the CPU."""
    vectors = []
    for tokens in Tokenizer()(texts).split(batch):
        end = (tokens == tokens.max()).int().argmax(dim=1).max() + 1  # causal: nothing after matters
        vectors.append(clip.encode_text(tokens[:, :end].to(clip.logit_scale.device)).cpu())
    return torch.cat(vectors)


def faded(images: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W): of each picture a part of its colours is taken out, for each hand has colours of its own."""
    grey = images.mean(dim=1, keepdim=True)
    share = torch.rand(len(images), 1, 1, 1, generator=generator) ** 2
    return images + share * (grey - images)
