"""How good the bundled model is at its small world: does a drawing show the name and the style that were asked for?

Drawings are compared with the dataset in a space that no part was trained in: colours of 16 x 16 cells and the
strengths of edges in them, unit length. A drawing counts as what its nearest picture is called.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sd.evaluation.clip_vision import CLIP, clip_pixels
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.tokenizer import Tokenizer
from sd.training.pretrain.dataset import Emoji, EmojiPictures, with_article
from sd.utils.images import to_tensor

CELLS = 16
COPY = 0.98  # the cosine from which a drawing counts as a copy of a picture it was trained on


def features(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to (B, 5 * 16 * 16) of unit length."""
    ink = (1 - images.float()) / 2  # 0 on white, so that the empty ground says nothing
    grey = ink.mean(dim=1, keepdim=True)
    across = F.pad(grey.diff(dim=-1).abs(), (0, 1))
    down = F.pad(grey.diff(dim=-2).abs(), (0, 0, 0, 1))
    maps = torch.cat([ink, 2 * across, 2 * down], dim=1)
    return F.normalize(F.adaptive_avg_pool2d(maps, CELLS).flatten(1), dim=1)


def draw(pipe: StableDiffusion, prompts: list[str], batch: int = 16, **settings) -> Tensor:
    """(B, 3, H, W) in [-1, 1]: one drawing for each prompt, the k-th with seed k."""
    drawn = []
    for i in range(0, len(prompts), batch):
        drawn += pipe(prompts[i : i + batch], seed=i, **settings).images
    return torch.cat([to_tensor(image) for image in drawn])


def features_of_all(pictures: EmojiPictures) -> Tensor:
    """(N, 5 * 16 * 16): every picture's features."""
    return torch.cat([features(pictures.images(part)) for part in torch.arange(len(pictures)).split(256)])


def judge(drawings: Tensor, asked: list[Emoji], known: list[Emoji], known_features: Tensor) -> dict[str, float]:
    """Shares of drawings whose nearest picture has the name, the style, both; and of copies of trained pictures.

    drawings: (B, 3, H, W), drawn for `asked`. known: all that they might be, held-out ones included, with what
    `features_of_all` makes of them.
    """
    closeness = features(drawings) @ known_features.T  # (B, N)
    nearest = [known[i] for i in closeness.argmax(dim=1).tolist()]
    trained = torch.tensor([emoji.split == "train" for emoji in known])
    name = torch.tensor([found.name == wanted.name for found, wanted in zip(nearest, asked)])
    style = torch.tensor([found.style == wanted.style for found, wanted in zip(nearest, asked)])
    copies = closeness[:, trained].amax(dim=1) >= COPY
    shares = {"name": name, "style": style, "both": name & style, "copies": copies}
    return {key: value.float().mean().item() for key, value in shares.items()}


@torch.no_grad()
def retrieval(clip: CLIP, pictures: EmojiPictures, vectors: Tensor, names: set[str]) -> dict[str, float]:
    """Shares of held-out pairs that CLIP finds first among all of `names`, or all their pictures, in the same style.

    vectors: (N, P), what `encode_pictures` makes of `pictures`.
    """
    ordered = sorted(names)
    places = [i for i, emoji in enumerate(pictures.emoji) if emoji.name in names]
    asked = [i for i in places if pictures.emoji[i].split == "pair"]
    text = {
        style: torch.cat(
            [encode_texts(clip, [f"{with_article(name)}, {style}" for name in part]) for part in parts(ordered)]
        )
        for style in {pictures.emoji[i].style for i in asked}
    }
    to_text = to_picture = 0
    for i in asked:
        emoji = pictures.emoji[i]
        to_text += ordered[(text[emoji.style] @ vectors[i]).argmax()] == emoji.name
        same = [k for k in places if pictures.emoji[k].style == emoji.style]
        best = same[(vectors[same] @ text[emoji.style][ordered.index(emoji.name)]).argmax()]
        to_picture += pictures.emoji[best].name == emoji.name
    return {"picture to text": to_text / len(asked), "text to picture": to_picture / len(asked)}


def encode_texts(clip: CLIP, texts: list[str]) -> Tensor:
    return clip.encode_text(Tokenizer()(texts))


@torch.no_grad()
def encode_pictures(clip: CLIP, pictures: EmojiPictures) -> Tensor:
    size = clip.vision_model.image_size
    indices = torch.arange(len(pictures)).split(64)
    return torch.cat([clip.encode_image(clip_pixels(pictures.images(part), size)) for part in indices])


def parts(items: list, size: int = 64) -> Iterable[list]:
    return (items[i : i + size] for i in range(0, len(items), size))
