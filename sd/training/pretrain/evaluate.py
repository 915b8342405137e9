"""Evaluation of the bundled model: does a generated image show the name and the style of its prompt?

Generated images are compared with the dataset in a feature space without training: colors of 16 x 16 cells and the
strengths of edges in them, of unit length. A generated image counts as its nearest neighbor.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import Tokenizer
from sd.training.pretrain.dataset import Emoji, EmojiDataset, with_article
from sd.utils.images import to_tensor
from sd.vision.clip_vision import CLIP, clip_pixels

CELLS = 16
COPY_THRESHOLD = 0.98  # the cosine from which an image counts as a copy of a training image


def features(images: Tensor) -> Tensor:
    """Return (B, 5 * 16 * 16) of unit length for (B, 3, H, W) in [-1, 1]."""
    ink = (1 - images.float()) / 2  # 0 on white, so that the background has no weight
    gray = ink.mean(dim=1, keepdim=True)
    across = F.pad(gray.diff(dim=-1).abs(), (0, 1))
    down = F.pad(gray.diff(dim=-2).abs(), (0, 0, 0, 1))
    maps = torch.cat([ink, 2 * across, 2 * down], dim=1)
    return F.normalize(F.adaptive_avg_pool2d(maps, CELLS).flatten(1), dim=1)


def generate_images(pipe: StableDiffusion, prompts: list[str], batch: int = 16, **settings) -> Tensor:
    """Return (B, 3, H, W) in [-1, 1]: one image for each prompt, the k-th with seed k."""
    decoded = []
    for i in range(0, len(prompts), batch):
        decoded += pipe(prompts[i : i + batch], seed=i, **settings).images
    return torch.cat([to_tensor(image) for image in decoded])


def features_of_all(dataset: EmojiDataset) -> Tensor:
    """Return (N, 5 * 16 * 16): the features of every image."""
    return torch.cat([features(dataset.images(part)) for part in torch.arange(len(dataset)).split(256)])


def nearest_shares(
    images: Tensor, wanted_emoji: list[Emoji], known: list[Emoji], known_features: Tensor
) -> dict[str, float]:
    """Return the fractions of images whose nearest neighbor has the right name, style, both; and of copies of trained
    images.

    images: (B, 3, H, W), generated for `wanted_emoji`. known: all candidates, held-out ones included, with their
        `features_of_all`.
    """
    similarity = features(images) @ known_features.T  # (B, N)
    nearest = [known[i] for i in similarity.argmax(dim=1).tolist()]
    trained = torch.tensor([emoji.split == "train" for emoji in known])
    name = torch.tensor([found.name == expected.name for found, expected in zip(nearest, wanted_emoji)])
    style = torch.tensor([found.style == expected.style for found, expected in zip(nearest, wanted_emoji)])
    copies = similarity[:, trained].amax(dim=1) >= COPY_THRESHOLD
    shares = {"name": name, "style": style, "both": name & style, "copies": copies}
    return {key: value.float().mean().item() for key, value in shares.items()}


@torch.no_grad()
def retrieval(clip: CLIP, dataset: EmojiDataset, vectors: Tensor, names: set[str]) -> dict[str, float]:
    """Return the fractions of held-out pairs that CLIP ranks first among all `names`, or all their images, in the same
    style.

    vectors: (N, P), the `encode_images` of `dataset`.
    """
    ordered = sorted(names)
    places = [i for i, emoji in enumerate(dataset.emoji) if emoji.name in names]
    wanted_emoji = [i for i in places if dataset.emoji[i].split == "pair"]
    text = {
        style: torch.cat(
            [encode_texts(clip, [f"{with_article(name)}, {style}" for name in part]) for part in batches(ordered)]
        )
        for style in {dataset.emoji[i].style for i in wanted_emoji}
    }
    to_text = to_image = 0
    for i in wanted_emoji:
        emoji = dataset.emoji[i]
        to_text += ordered[(text[emoji.style] @ vectors[i]).argmax()] == emoji.name
        same = [k for k in places if dataset.emoji[k].style == emoji.style]
        best = same[(vectors[same] @ text[emoji.style][ordered.index(emoji.name)]).argmax()]
        to_image += dataset.emoji[best].name == emoji.name
    return {"image to text": to_text / len(wanted_emoji), "text to image": to_image / len(wanted_emoji)}


def encode_texts(clip: CLIP, texts: list[str]) -> Tensor:
    return clip.encode_text(Tokenizer()(texts))


@torch.no_grad()
def encode_images(clip: CLIP, dataset: EmojiDataset) -> Tensor:
    size = clip.vision_model.image_size
    indices = torch.arange(len(dataset)).split(64)
    return torch.cat([clip.encode_image(clip_pixels(dataset.images(part), size)) for part in indices])


def batches(items: list, size: int = 64) -> Iterable[list]:
    return (items[i : i + size] for i in range(0, len(items), size))
