"""From npm packages of drawings to a folder of 128 x 128 pictures with their names: the world of the bundled model.

The list of names with everything that is fixed about them (what is held out, above all) is sd/data/emoji_names.tsv;
`prepare` draws each name in each style on white and writes one line of index.jsonl for each picture.
"""

import io
import json
import subprocess
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from sd.utils.errors import UserError
from sd.utils.files import DATA

SIZE = 128
NAMES = DATA / "emoji_names.tsv"
# Style as a caption says it: (npm package, version). The last one is never trained on.
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
SISTERS = {"fluent emoji": "fluent flat emoji"}  # whose own list of characters is empty, and by whose it is found


@dataclass
class Name:
    """One row of the list of names."""

    emoji: str  # the Unicode characters
    name: str  # what a caption calls it
    world: str  # "small" for those that everybody knows, "all" for the rest
    held_out: str  # "-", "name" (in every style) or the one style in which this name is not trained on
    fxemoji: str  # its icon in that set, whose names are its own; "-" for none
    words: list[str]  # other names for the same thing

    def split(self, style: str) -> str:
        """Which part of the data this name in this style belongs to: train, pair, name or style."""
        if style == HELD_OUT_STYLE:
            return "style"
        if self.held_out == "name":
            return "name"
        return "pair" if self.held_out == style else "train"


def read_names(path: Path = NAMES) -> list[Name]:
    """The fixed list, in Unicode's order."""
    names = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        emoji, name, world, held_out, fxemoji, words = line.split("\t")
        names.append(Name(emoji, name, world, held_out, fxemoji, [] if words == "-" else words.split(", ")))
    return names


def fetch(package: str, version: str, folder: Path) -> Path:
    """The package's tarball in `folder`, through `npm pack` unless it is there already.

    Raises:
        UserError: npm is missing, or cannot fetch the package.
    """
    tarball = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if tarball.exists():
        return tarball
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", f"{package}@{version}", "--silent"], cwd=folder, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as problem:
        raise UserError(
            f"{package}@{version} could not be fetched: install npm and check the network, or put {tarball.name} "
            f"into {folder}."
        ) from problem
    return tarball


class Drawings:
    """The pictures of one package, asked for by name.

    Iconify packages hold all drawings as SVG in one JSON file; the package of 3D emoji holds WebP files named by
    their code points.
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
                    without_variation(Path(name).stem): tar.extractfile(member).read()
                    for name, member in members.items()
                    if name.endswith(".webp")
                }

    def draw(self, name: Name) -> Image.Image | None:
        """`name` on white, SIZE x SIZE, or None where this set has no such drawing."""
        code = without_variation("-".join(f"{ord(character):x}" for character in name.emoji))
        if self.files:
            return on_white(self.files[code]) if code in self.files else None
        icon = name.fxemoji if self.style == "fxemoji" else self.by_code.get(code)
        # A set may give an icon a second name; those that mirror another drawing are taken as that drawing.
        icon = self.icons.get("aliases", {}).get(icon, {}).get("parent", icon)
        return on_white(rasterise(self.icons, icon)) if icon in self.icons["icons"] else None


def without_variation(code: str) -> str:
    """Code points without U+FE0F, which sets write or leave out as they like."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def rasterise(icons: dict, icon: str) -> bytes:
    """One icon of an Iconify set as PNG, SIZE x SIZE."""
    import resvg_py  # only the preparation of the data needs it

    box = {"left": 0, "top": 0, "width": 16, "height": 16} | icons | icons["icons"][icon]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}" width="{SIZE}" height="{SIZE}">'
        f"{box['body']}</svg>"
    )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg))


def on_white(data: bytes) -> Image.Image:
    """An encoded picture with transparency, laid on white and brought to SIZE x SIZE."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def prepare(folder: Path, small: bool = False, say=print) -> int:
    """Fetch, draw and write the dataset; returns the number of pictures.

    Writes `folder/pictures/<style>/<name>.png` and `folder/index.jsonl`, whose lines have file, name, style, words and
    split (train, pair, name, style). `small` takes the names that everybody knows, in one style less: soon learnt.
    """
    names = [name for name in read_names() if not small or name.world == "small"]
    lines, lists = [], {}
    for style in SMALL_WORLD if small else STYLES:
        package, version = STYLES[style]
        say(f"{style}: {package}@{version}")
        drawings = Drawings(style, fetch(package, version, folder / "packages"))
        lists[style] = drawings.by_code
        if style in SISTERS:
            drawings.by_code = lists[SISTERS[style]]
        place = folder / "pictures" / style.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            picture = drawings.draw(name)
            if picture is None:
                continue
            file = place / f"{name.name.replace(' ', '-')}.png"
            picture.save(file)
            entry = asdict(name)
            kept = {"file": str(file.relative_to(folder)), "name": name.name, "style": style, "words": entry["words"]}
            lines.append(kept | {"split": name.split(style)})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "index.jsonl").write_text(text, encoding="utf-8")
    return len(lines)
