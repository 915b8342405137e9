"""Conversion of npm packages of emoji to a folder of 128 x 128 images with names: the dataset of the bundled model.

`data/emoji_names.tsv` lists the names and everything that is fixed about them, above all what is held out.
`prepare_dataset` renders each name in each style on white and writes one line of index.jsonl for each image.
"""

import io
import json
import subprocess
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from sd.training.pretrain.dataset import Emoji
from sd.utils.errors import UserError
from sd.utils.files import DATA

SIZE = 128
NAMES = DATA / "emoji_names.tsv"
# Style in captions: (npm package, version). The last one is never trained.
STYLES = {
    "fluent 3d emoji": ("@lobehub/fluent-emoji-3d", "1.1.0"),
    "fluent flat emoji": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "noto emoji": ("@iconify-json/noto", "1.2.9"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2"),
    "fluent emoji": ("@iconify-json/fluent-emoji", "1.2.7"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
}
SMALL_WORLD = ("fluent 3d emoji", "fluent flat emoji", "noto emoji", "fxemoji", "twemoji")
HELD_OUT_STYLE = "twemoji"
TRAINED_STYLES = tuple(style for style in STYLES if style != HELD_OUT_STYLE)
SAME_CHARACTERS_AS = {"fluent emoji": "fluent flat emoji"}  # for a package without its own list of characters


@dataclass
class Name:
    """One row of the list of names."""

    emoji: str  # the Unicode characters
    name: str  # in captions
    world: str  # "small" for common names, "all" for the rest
    held_out: str  # "-", "name" (in every style) or the one style in which this name is not trained on
    fxemoji: str  # its icon in that package, which has its own names; "-" for none
    words: list[str]  # other names for the same thing

    def split(self, style: str) -> str:
        """Return the split of this name in this style: train, pair, name or style."""
        if style == HELD_OUT_STYLE:
            return "style"
        if self.held_out == "name":
            return "name"
        return "pair" if self.held_out == style else "train"


def read_names(path: Path = NAMES) -> list[Name]:
    """Return the fixed list of names, in Unicode's order."""
    names = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        emoji, name, world, held_out, fxemoji, words = line.split("\t")
        names.append(Name(emoji, name, world, held_out, fxemoji, [] if words == "-" else words.split(", ")))
    return names


def download_package(package: str, version: str, folder: Path) -> Path:
    """Download the package's tarball to `folder` with `npm pack`, unless it exists there, and return its path.

    Raises UserError where npm is missing or cannot download the package.
    """
    tarball = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if tarball.exists():
        return tarball
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", f"{package}@{version}", "--silent"], cwd=folder, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as problem:
        raise UserError(
            f"{package}@{version} could not be downloaded: install npm and check the network, or put {tarball.name} "
            f"into {folder}."
        ) from problem
    return tarball


class EmojiPackage:
    """The images of one package, by name.

    Iconify packages hold all images as SVG in one JSON file; the package of 3D emoji holds WebP files named by their
    code points.
    """

    def __init__(self, style: str, tarball: Path):
        self.style = style
        with tarfile.open(tarball) as tar:
            members = {member.name: member for member in tar.getmembers()}
            if "package/icons.json" in members:
                self.icons = json.load(tar.extractfile("package/icons.json"))
                self.by_code = json.load(tar.extractfile("package/chars.json"))
                self.files = {}
            else:
                self.by_code = {}
                self.files = {
                    strip_variation_selectors(Path(name).stem): tar.extractfile(member).read()
                    for name, member in members.items()
                    if name.endswith(".webp")
                }

    def render(self, name: Name) -> Image.Image | None:
        """Return the image of `name` on white, SIZE x SIZE, or None where this package has none."""
        code = strip_variation_selectors("-".join(f"{ord(character):x}" for character in name.emoji))
        if self.files:
            return on_white(self.files[code]) if code in self.files else None
        icon = name.fxemoji if self.style == "fxemoji" else self.by_code.get(code)
        # A package may have aliases; one that mirrors another icon counts as that icon.
        icon = self.icons.get("aliases", {}).get(icon, {}).get("parent", icon)
        return on_white(rasterize(self.icons, icon)) if icon in self.icons["icons"] else None


Package = TypeVar("Package", bound=EmojiPackage)


def open_package(kind: type[Package], style: str, folder: Path, lists: dict[str, dict]) -> Package:
    """Return the images of a style, downloaded to `folder/packages` if they are not there.

    lists: the lists of characters of the styles before it, to which its own is added; a package without one uses that
    of `SAME_CHARACTERS_AS`. Raises UserError where the download fails.
    """
    package, version = STYLES[style]
    images = kind(style, download_package(package, version, folder / "packages"))
    lists[style] = images.by_code
    if style in SAME_CHARACTERS_AS:
        images.by_code = lists[SAME_CHARACTERS_AS[style]]
    return images


def strip_variation_selectors(code: str) -> str:
    """Return the code points without U+FE0F, which some packages write and others omit."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def rasterize(icons: dict, icon: str) -> bytes:
    """Return one icon of an Iconify package as PNG, SIZE x SIZE."""
    import resvg_py  # only the preparation of the data needs it

    box = {"left": 0, "top": 0, "width": 16, "height": 16} | icons | icons["icons"][icon]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}" width="{SIZE}" height="{SIZE}">'
        f"{box['body']}</svg>"
    )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg))


def on_white(data: bytes) -> Image.Image:
    """Return an encoded image with transparency on white, resized to SIZE x SIZE."""
    image = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def prepare_dataset(folder: Path, small: bool = False, say=print) -> int:
    """Download, render and write the dataset; return the number of images.

    Writes `folder/pictures/<style>/<name>.png` and `folder/index.jsonl`, whose lines have file, name, style, words and
    split (train, pair, name, style). `small` takes only common names, in one style less, for short trainings.
    """
    names = [name for name in read_names() if not small or name.world == "small"]
    lines, lists = [], {}
    for style in SMALL_WORLD if small else STYLES:
        package, version = STYLES[style]
        say(f"{style}: {package}@{version}")
        package_images = open_package(EmojiPackage, style, folder, lists)
        style_folder = folder / "pictures" / style.replace(" ", "-")
        style_folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            image = package_images.render(name)
            if image is None:
                continue
            file = style_folder / f"{name.name.replace(' ', '-')}.png"
            image.save(file)
            lines.append(asdict(Emoji(str(file.relative_to(folder)), name.name, style, name.words, name.split(style))))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "index.jsonl").write_text(text, encoding="utf-8")
    return len(lines)
