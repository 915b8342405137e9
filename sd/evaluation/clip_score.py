"""How good are drawings of a subject? CLIP-I: do they look like it. CLIP-T: do they show what the prompt says.

Gal et al. 2022, "An Image is Worth One Word", section 5.2: both are cosines in CLIP's space, between each drawing and
each picture of the subject, and between each drawing and its prompt without the new word. Figures of different CLIPs do
not compare, so each stands beside its CLIP's name. ViT-L/14's text tower is the one that Stable Diffusion 1.x draws by,
which flatters CLIP-T.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sd.adapters.lora_tags import TAG
from sd.evaluation.clip_loader import read_clip
from sd.evaluation.clip_vision import CLIP, clip_pixels
from sd.evaluation.confidence import Mean, mean_of
from sd.evaluation.memorization import COPY, pixel_closeness
from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.pipeline.stable_diffusion import WEIGHTS
from sd.prompts.weighting import BREAK, parse_prompt
from sd.tokenizer import Tokenizer
from sd.utils.device import default_device
from sd.utils.errors import UserError
from sd.utils.files import read_prompts
from sd.utils.images import open_image, to_rgb, to_tensor

BUNDLED_CLIP = WEIGHTS / "emoji-clip.safetensors"
BATCH = 16
NAMES = {
    (768, 32): "ViT-B/32",
    (768, 16): "ViT-B/16",
    (1024, 14): "ViT-L/14",
}  # by width and patch, of the vision tower
SHEET = re.compile(r"(grid-|compare-)\d+\.png|preview\.png")  # pictures of ours that are no drawings


class Opened(Sequence):
    """Pictures by their paths, each opened when it is looked at: a thousand photographs in the memory of one."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Image.Image:
        return to_rgb(open_image(self.paths[i]))


class Scorer:
    """A CLIP that turns pictures and texts into unit rows, (B, P) on the CPU, whose products are cosines.

    name: which CLIP it is, to stand beside every figure.
    """

    def __init__(self, clip: CLIP, name: str, device: torch.device | str = "cpu"):
        self.clip, self.name, self.device = clip.to(device), name, device
        self.tokenizer = Tokenizer()

    @torch.no_grad()
    def pictures(self, images: Iterable[Image.Image]) -> Tensor:
        pixels, rows = (clip_picture(image, self.clip.vision_model.image_size) for image in images), []
        while batch := list(islice(pixels, BATCH)):
            rows.append(self.clip.encode_image(torch.cat(batch).to(self.device)).cpu())
        return torch.cat(rows)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """What goes beyond CLIP's 77 places is cut off."""
        parts = self.tokenizer(texts).split(BATCH)
        return torch.cat([self.clip.encode_text(part.to(self.device)).cpu() for part in parts])


def load_clip(path: str | Path | None = None, device: torch.device | str | None = None) -> Scorer:
    """The CLIP of a file or folder, see `clip_files`; the bundled one if None. On a GPU where there is one.

    Raises UserError for what is no CLIP.
    """
    device = default_device() if device is None else device
    clip = read_clip(BUNDLED_CLIP if path is None else path)
    if path is None or Path(path).name == BUNDLED_CLIP.name:
        return Scorer(clip, "the bundled CLIP, which knows emoji alone", device)
    tower = clip.vision_model
    width, _, patch, _ = tower.embeddings.patch_embedding.weight.shape
    kind = NAMES.get((width, patch), f"ViT of width {width}, patches of {patch}")
    return Scorer(clip, f"CLIP {kind} at {tower.image_size} pixels, from {Path(path).name}", device)


def clip_picture(image: Image.Image, size: int) -> Tensor:
    """A picture as OpenAI shows it to CLIP: (1, 3, size, size).

    Shrunk by Pillow's bicubic until the shorter side fits, the middle cut out, with CLIP's mean and deviation.
    """
    image = to_rgb(image)
    width, height = (int(size * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return clip_pixels(to_tensor(image), size)


def clip_i(scorer: Scorer, made: Sequence[Image.Image], references: Sequence[Image.Image]) -> float:
    """The mean cosine over all pairs of a drawing and a reference."""
    return (scorer.pictures(made) @ scorer.pictures(references).T).mean().item()


def clip_t(scorer: Scorer, made: Sequence[Image.Image], prompts: list[str]) -> float:
    """The mean cosine of each drawing with its own prompt; see `without_placeholder` for what CLIP should read."""
    return (scorer.pictures(made) * scorer.texts(prompts)).sum(dim=1).mean().item()


@dataclass(frozen=True)
class Copy:
    """A drawing beside the reference it is nearest to in pixels: that one's index, and how close they are.

    pixels: a correlation, see `copies`, which decides `copied`. features: CLIP's cosine, for comparison.
    """

    nearest: int
    pixels: float
    features: float

    @property
    def copied(self) -> bool:
        return self.pixels >= COPY


def copies(scorer: Scorer, made: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[Copy]:
    """For each drawing the nearest reference."""
    return nearest(pixel_closeness(made, references), scorer.pictures(made) @ scorer.pictures(references).T)


def nearest(pixels: Tensor, features: Tensor) -> list[Copy]:
    """Both (B, R)."""
    return [Copy(j, pixels[i, j].item(), features[i, j].item()) for i, j in enumerate(pixels.argmax(dim=1).tolist())]


@dataclass
class Evaluation:
    """What `evaluate` found; None where there was nothing to compare with. The means are over drawings."""

    backbone: str
    clip_i: Mean | None
    clip_t: Mean | None
    copies: list[Copy]


def evaluate(
    scorer: Scorer,
    made: Sequence[Image.Image],
    references: Sequence[Image.Image] | None = None,
    prompts: list[str] | None = None,
) -> Evaluation:
    """Everything at once, each picture encoded once.

    Raises UserError where there are no drawings, or not as many prompts as drawings.
    """
    if not made:
        raise UserError("there are no drawings to judge.")
    if prompts is not None and len(prompts) != len(made):
        raise UserError(f"there are {len(prompts)} prompts for {len(made)} drawings: give one for each.")
    drawn = scorer.pictures(made)  # (B, P)
    found = Evaluation(scorer.name, None, None, [])
    if prompts is not None:
        found.clip_t = mean_of((drawn * scorer.texts(prompts)).sum(dim=1))
    if references:
        cosines = drawn @ scorer.pictures(references).T  # (B, R)
        found.clip_i = mean_of(cosines.mean(dim=1))
        found.copies = nearest(pixel_closeness(made, references), cosines)
    return found


def without_placeholder(prompt: str, word: str | None = None, class_word: str = "") -> str:
    """What CLIP should read of a prompt: no tags, weights or brackets, and the class word in place of the new word.

    >>> without_placeholder("a (<rex>:1.2) in the snow <lora:rex:0.8>", "<rex>", "dog")
    'a dog in the snow'
    """
    pieces = parse_prompt(TAG.sub("", prompt))
    text = "".join(" " if piece is BREAK else piece[0] for piece in pieces)
    return " ".join(replace_word(text, word, class_word).split())


def replace_word(prompt: str, word: str | None, class_word: str) -> str:
    """The class word for each `word`, and once where it follows anyway: "a sks dog" becomes "a dog"."""
    if not word:
        return prompt
    follows = rf"(?:\s+{re.escape(class_word)}(?!\w))?" if class_word else ""
    before, after = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
    return re.sub(before + re.escape(word) + after + follows, lambda _: class_word, prompt)


def prompts_of(paths: list[Path], file: Path | None = None) -> dict[Path, str]:
    """Each drawing's prompt: a line of a text file, by the order of the paths or one for all, or else from inside it.

    Raises UserError for a drawing without one, and where the file has not as many as there are drawings.
    """
    if file is None:
        return {path: parse_infotext(read_infotext(path))["Prompt"] for path in paths}
    lines = read_prompts(file)
    lines = lines * len(paths) if len(lines) == 1 else lines
    if len(lines) != len(paths):
        raise UserError(
            f"{file} has {len(lines)} prompts for {len(paths)} drawings: give one for each, or one for all."
        )
    return dict(zip(paths, lines))
