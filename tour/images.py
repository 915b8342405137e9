"""Pictures that the repository has and that a chapter can train on: images of the bundled model, and emoji.

The data set of the bundled model is not in the repository. `weights/emoji-sheet.png` has its own images of fourteen
names in five styles, and `docs/fine-tuning.png` has emoji, drawn by people, that it has never seen.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from sd.utils.images import to_tensor
from sd.vae import LATENT_SCALE, AutoencoderKL
from tour.source import ROOT

SIDE = 128  # pixels of each picture
SHEET = ROOT / "weights" / "emoji-sheet.png"  # the model card's images: 5 rows of 14, with gaps of 2 pixels
NAMES = (
    "a red apple",
    "a rocket",
    "a tree",
    "a house",
    "a car",
    "a pizza",
    "a red heart",
    "a fish",
    "a snowman",
    "a banana",
)
SHEET_COLUMNS = dict(zip(NAMES, (0, 3, 4, 5, 6, 7, 8, 9, 10, 11)))
EMOJI_ROWS = ("a dog face", "a poodle", "a rat", "a dove", "a mango", "a hospital", "a scooter", "a newspaper")


def sheet_images() -> list[Image.Image]:
    """Return the 70 images of the model card's sheet, 128 x 128 pixels each."""
    pitch = SIDE + 2
    with Image.open(SHEET) as sheet:
        places = [(x, y) for y in range(0, sheet.height, pitch) for x in range(0, sheet.width, pitch)]
        return [sheet.convert("RGB").crop((x, y, x + SIDE, y + SIDE)) for x, y in places]


def sheet_image(name: str) -> Image.Image:
    """Return the bundled model's image of one of NAMES in the style of 3D emoji, 128 x 128 pixels."""
    return sheet_images()[SHEET_COLUMNS[name]]


def emoji(name: str, second: bool = False) -> Image.Image:
    """Return the emoji of one of EMOJI_ROWS, 128 x 128 pixels: in 3D, or the second one of its row, which is flat."""
    left, top = 136 + 134 * second, 27 + 134 * EMOJI_ROWS.index(name)
    return Image.open(ROOT / "docs" / "fine-tuning.png").convert("RGB").crop((left, top, left + SIDE, top + SIDE))


def encode_pictures(vae: AutoencoderKL, pictures: Sequence[Image.Image]) -> Tensor:
    """Return the mean latents of pictures of one size, scaled, (B, 4, h, w)."""
    with torch.no_grad():
        return LATENT_SCALE * vae.encode(torch.cat([to_tensor(picture) for picture in pictures]))[0]
