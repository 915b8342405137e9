"""CLIP scores of generated images. CLIP-I: are they similar to the subject. CLIP-T: do they match their prompts.

Gal et al. 2022, "An Image is Worth One Word", section 5.2: both are cosine similarities in CLIP's space, between each
generated image and each reference image, and between each generated image and its prompt without the new word. Scores
of different CLIPs are not comparable, so each is reported with its CLIP's name. ViT-L/14's text tower is the one that
conditions Stable Diffusion 1.x, which favors its images in CLIP-T.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from sd.adapters.lora_tags import TAG
from sd.checkpoints.discovery import SHIPPED
from sd.evaluation.clip_loader import read_clip
from sd.evaluation.confidence import MeanCI, mean_with_ci
from sd.evaluation.memorization import COPY_THRESHOLD, pixel_similarity
from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.prompts.weighting import BREAK, parse_prompt
from sd.tokenizer import Tokenizer
from sd.utils.device import default_device
from sd.utils.errors import UserError
from sd.utils.files import read_prompts
from sd.utils.images import open_image, to_rgb, to_tensor
from sd.vision.clip_vision import CLIP, clip_pixels

BUNDLED_CLIP = SHIPPED / "emoji-clip.safetensors"
BATCH = 16
NAMES = {
    (768, 32): "ViT-B/32",
    (768, 16): "ViT-B/16",
    (1024, 14): "ViT-L/14",
}  # by width and patch, of the vision tower
SHEET = re.compile(r"(grid-|compare-)\d+\.png|preview\.png")  # image grids that the scripts save beside images


class LazyImages(Sequence):
    """A sequence of images that opens each from its path when it is indexed, so that only one is in memory."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Image.Image:  # type: ignore[override]  # nobody takes a slice
        return to_rgb(open_image(self.paths[i]))


class FeatureExtractor(Protocol):
    """Turns images into unit rows (B, P), whose products are cosines; `name` stands beside every result."""

    name: str

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor: ...


class Scorer:
    """A CLIP that embeds images and texts as unit vectors, whose products are cosine similarities.

    name: describes the CLIP; it is reported with every score.
    """

    def __init__(self, clip: CLIP, name: str, device: torch.device | str = "cpu"):
        self.clip, self.name, self.device = clip.to(device), name, device
        self.tokenizer = Tokenizer()

    @torch.no_grad()
    def embed_images(self, images: Iterable[Image.Image]) -> Tensor:
        """Return (B, P) rows of unit length on the CPU, for B images."""
        pixels, rows = (preprocess_image(image, self.clip.vision_model.image_size) for image in images), []
        while batch := list(islice(pixels, BATCH)):
            rows.append(self.clip.encode_image(torch.cat(batch).to(self.device)).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return (B, P) rows of unit length on the CPU, for B texts; each is cut off after 77 tokens."""
        parts = self.tokenizer(texts).split(BATCH)
        return torch.cat([self.clip.encode_text(part.to(self.device)).cpu() for part in parts])


def load_clip(path: str | Path | None = None, device: torch.device | str | None = None) -> Scorer:
    """Load the CLIP of a file or folder, see `clip_loader`; the bundled one if `path` is None.

    device: a GPU if there is one and it is None. Raises UserError for a file that is not a CLIP.
    """
    device = default_device() if device is None else device
    clip = read_clip(BUNDLED_CLIP if path is None else path)
    if path is None or Path(path).name == BUNDLED_CLIP.name:
        return Scorer(clip, "the bundled CLIP, which knows emoji alone", device)
    tower = clip.vision_model
    width, _, patch, _ = tower.embeddings.patch_embedding.weight.shape
    kind = NAMES.get((width, patch), f"ViT of width {width}, patches of {patch}")
    return Scorer(clip, f"CLIP {kind} at {tower.image_size} pixels, from {Path(path).name}", device)


def preprocess_image(image: Image.Image, size: int) -> Tensor:
    """Return an image preprocessed as OpenAI's CLIP does it: (1, 3, size, size).

    Pillow's bicubic filter resizes its shorter side to `size`, the middle is cropped, and CLIP's mean and standard
    deviation are applied.
    """
    image = to_rgb(image)
    width, height = (int(size * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return clip_pixels(to_tensor(image), size)


def clip_i(scorer: FeatureExtractor, generated: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """Return the mean cosine similarity over all pairs of a generated image and a reference."""
    return (scorer.embed_images(generated) @ scorer.embed_images(references).T).mean().item()


@dataclass(frozen=True)
class Copy:
    """The reference that a generated image is most similar to in pixels: its index, and two similarities.

    pixels: see `memorization`; it decides `copied`. features: CLIP's cosine similarity, for comparison.
    """

    nearest: int
    pixels: float
    features: float

    @property
    def copied(self) -> bool:
        return self.pixels >= COPY_THRESHOLD


def nearest_references(pixels: Tensor, features: Tensor) -> list[Copy]:
    """Return the most similar reference of each of B images; pixels, features: (B, R) similarities to R references."""
    return [Copy(j, pixels[i, j].item(), features[i, j].item()) for i, j in enumerate(pixels.argmax(dim=1).tolist())]


@dataclass
class Evaluation:
    """The scores that `evaluate` computes, as means over the generated images.

    clip_i, clip_t: None without references or prompts. copies: one for each image, or none without references.
    """

    backbone: str
    clip_i: MeanCI | None
    clip_t: MeanCI | None
    copies: list[Copy]


def evaluate(
    scorer: Scorer,
    generated: Sequence[Image.Image],
    references: Sequence[Image.Image] | None = None,
    prompts: list[str] | None = None,
) -> Evaluation:
    """Compute all scores; each image is embedded once.

    prompts: the text of each generated image, see `without_placeholder`. Raises UserError if there are no generated
    images, or not as many prompts as images.
    """
    if not generated:
        raise UserError("there are no generated images to evaluate.")
    if prompts is not None and len(prompts) != len(generated):
        raise UserError(f"there are {len(prompts)} prompts for {len(generated)} images: give one for each.")
    features = scorer.embed_images(generated)  # (B, P)
    found = Evaluation(scorer.name, None, None, [])
    if prompts is not None:
        found.clip_t = mean_with_ci((features * scorer.embed_texts(prompts)).sum(dim=1))
    if references:
        cosines = features @ scorer.embed_images(references).T  # (B, R)
        found.clip_i = mean_with_ci(cosines.mean(dim=1))
        found.copies = nearest_references(pixel_similarity(generated, references), cosines)
    return found


def without_placeholder(prompt: str, word: str | None = None, class_word: str = "") -> str:
    """Return the text of a prompt for CLIP: without tags, weights and brackets, with the class word for the new word.

    >>> without_placeholder("a (<rex>:1.2) in the snow <lora:rex:0.8>", "<rex>", "dog")
    'a dog in the snow'
    """
    pieces = parse_prompt(TAG.sub("", prompt))
    text = "".join(" " if piece is BREAK else piece[0] for piece in pieces)
    return " ".join(replace_word(text, word, class_word).split())


def replace_word(prompt: str, word: str | None, class_word: str) -> str:
    """Replace each `word` by the class word, and not twice where that follows: "a sks dog" becomes "a dog"."""
    if not word:
        return prompt
    follows = rf"(?:\s+{re.escape(class_word)}(?!\w))?" if class_word else ""
    before, after = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return re.sub(before + re.escape(word) + after + follows, lambda _: class_word, prompt)


def prompts_by_path(paths: list[Path], file: Path | None = None) -> dict[Path, str]:
    """Return the prompt of each image: from the lines of a text file, or from the image's own metadata.

    file: one prompt a line in the order of the paths, or a single one for all. Raises UserError for an image without
    metadata, and for a file with another number of prompts.
    """
    if file is None:
        return {path: parse_infotext(read_infotext(path))["Prompt"] for path in paths}
    lines = read_prompts(file)
    lines = lines * len(paths) if len(lines) == 1 else lines
    if len(lines) != len(paths):
        raise UserError(f"{file} has {len(lines)} prompts for {len(paths)} images: give one for each, or one for all.")
    return dict(zip(paths, lines))
