"""Objects without their background: each name in each style as a trimmed transparent image with measured colors.

`prepare_cutouts` renders them once, from the packages that `prepare_emoji.py` downloaded, into `<data>/cutouts/` and
`<data>/cutouts.jsonl`; `Cutouts` reads them.
"""

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sd.training.pretrain.emoji_dataset import (
    SIZE,
    STYLES,
    EmojiPackage,
    Name,
    open_package,
    rasterize,
    read_names,
    strip_variation_selectors,
)
from sd.training.pretrain.scenes.colors import COLORS, color_word, main_color, recolor
from sd.utils.errors import UserError
from sd.utils.files import replacing

ONE_COLOR = 0.55  # the minimum fraction of a recolorable object's area in its main color
OTHER_COLORS = 0.3  # the maximum fraction in other clear colors
CHECKED = 64  # side in pixels at which colors are measured, about the size in a scene


@dataclass(frozen=True)
class Cutout:
    """One object in one style, as `cutouts.jsonl` describes it."""

    name: str
    style: str
    split: str  # train, pair, name or style: see `sd.training.pretrain.emoji_dataset.Name.split`
    file: str  # of the image, relative to the data folder
    width: int  # pixels, in the emoji's square of SIZE
    height: int
    left: int  # position of the object in that square
    top: int
    natural: str | None = None  # the word for its own main color, if it is clear
    colors: list[str] = field(
        default_factory=list
    )  # words to which it can be recolored so that it measures as that word


class TransparentPackage(EmojiPackage):
    """The images of one package with their transparency."""

    def transparent(self, name: Name) -> Image.Image | None:
        """Return RGBA, SIZE x SIZE; None where the package has no such image."""
        code = strip_variation_selectors("-".join(f"{ord(character):x}" for character in name.emoji))
        if self.files:
            data = self.files.get(code)
        else:
            icon = name.fxemoji if self.style == "fxemoji" else self.by_code.get(code)
            icon = self.icons.get("aliases", {}).get(icon, {}).get("parent", icon)
            data = rasterize(self.icons, icon) if icon in self.icons["icons"] else None
        if data is None:
            return None
        return Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def trim(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """Return the image cropped to its visible part (opacity above 6 %), and the position of that part: (left, top)."""
    box = image.getchannel("A").point(lambda value: 255 * (value > 15)).getbbox() or (0, 0, *image.size)
    return image.crop(box), box[:2]


def measured_colors(image: Image.Image) -> tuple[str | None, list[str]]:
    """Return the natural color word of a cut-out, and the words to which it can be recolored and then measures so."""
    small = np.asarray(image.resize(scaled_size(image.size, CHECKED), Image.Resampling.BICUBIC))
    main = main_color(small)
    if main is None or main.share < ONE_COLOR or main.other > OTHER_COLORS:
        return None, []
    natural = color_word(main)
    reached = []
    for word in COLORS:
        if word == natural:
            continue
        new = main_color(recolor(small, main, word))
        if new.share >= ONE_COLOR and new.other <= OTHER_COLORS and color_word(new) == word:
            reached.append(word)
    return natural, reached


def scaled_size(size: tuple[int, int], side: float) -> tuple[int, int]:
    """Return (width, height) scaled so that the longer one is `side`."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def prepare_cutouts(folder: Path, names: list[Name] | None = None, say=print) -> int:
    """Render, trim and measure every name in every style; return the number of cut-outs.

    Raises UserError where a package is neither in `folder/packages` nor can be downloaded.
    """
    lines, lists = [], {}
    for style in STYLES:
        say(f"{style}: cut-outs")
        package_images = open_package(TransparentPackage, style, folder, lists)
        style_folder = folder / "cutouts" / style.replace(" ", "-")
        style_folder.mkdir(parents=True, exist_ok=True)
        for name in names or read_names():
            image = package_images.transparent(name)
            if image is None:
                continue
            image, (left, top) = trim(image)
            file = style_folder / f"{name.name.replace(' ', '-')}.png"
            image.save(file)
            natural, colors = measured_colors(image)
            about = (name.name, style, name.split(style), str(file.relative_to(folder)))
            lines.append(asdict(Cutout(*about, *image.size, left, top, natural, colors)))
    with replacing(folder / "cutouts.jsonl") as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


class Cutouts:
    """The prepared cut-outs, by (name, style); each image is read when first used and then cached."""

    def __init__(self, folder: Path, splits: tuple[str, ...] = ("train",)):
        """Raises UserError where the cut-outs have not been prepared."""
        self.folder, index = Path(folder), Path(folder) / "cutouts.jsonl"
        if not index.exists():
            raise UserError(f"file not found: {index}; run `python scripts/prepare_scenes.py` first.")
        lines = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
        self.cutouts = {(line["name"], line["style"]): Cutout(**line) for line in lines if line["split"] in splits}
        self.styles: dict[str, list[str]] = {}  # by name
        for name, style in self.cutouts:
            self.styles.setdefault(name, []).append(style)
        self.images: dict[tuple[str, str], Image.Image] = {}

    def __len__(self) -> int:
        return len(self.cutouts)

    def __getitem__(self, key: tuple[str, str]) -> Cutout:
        return self.cutouts[key]

    def image(self, name: str, style: str) -> Image.Image:
        """Return RGBA, trimmed, as rendered for a square of SIZE x SIZE."""
        key = (name, style)
        if key not in self.images:
            with Image.open(self.folder / self.cutouts[key].file) as image:
                self.images[key] = image.convert("RGBA")
        return self.images[key]
