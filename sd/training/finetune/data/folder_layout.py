"""Where images stand in the folders that people train from: in the folder itself, or one folder down.

The layout of kohya's scripts is read: `img/10_sks dog/0.png` stands for ten times each image of a folder, whose name
after the number is the caption of the images that have none.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sd.utils.errors import UserError

READABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
OTHER_PICTURES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd"}  # named as skipped, instead of not seen
PACKED = {".zip", ".rar", ".7z", ".tar", ".gz", ".mp4", ".mov", ".webm", ".avi", ".mkv"}  # images may be inside
KOHYA = re.compile(r"(\d+)_(.*)")
MOST_REPEATS = 10_000
NAMED = 3


@dataclass(frozen=True)
class Part:
    """A folder of images. repeats: how often an epoch takes each. caption: of images that have none."""

    folder: Path
    repeats: int = 1
    caption: str | None = None


def is_picture(path: Path) -> bool:
    """By its name. Hidden files are not: some systems leave a `._name.jpg` beside each picture."""
    return path.suffix.lower() in READABLE | OTHER_PICTURES and not path.name.startswith(".") and path.is_file()


def images_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_picture(path)]


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def parts_of(folder: Path, listed: set[Path], skipped: list[str]) -> list[Part]:
    """Which folders images are read from. `skipped` gets a sentence for each that is not read.

    listed: images that a list in `folder` names. Folders named as kohya's scripts want it are always read; others only
    where the folder itself has no image. Raises UserError where all images are further down, and says where.
    """
    below = [path for path in folders_in(folder) if set(images_in(path)) - listed]
    named = [part for part in map(kohya_part, below) if part is not None]
    own = [Part(folder)] if images_in(folder) or listed else []
    parts = own + [part for part in named if part.repeats]
    if not parts and not named:
        parts = [Part(path) for path in below]
    read = {part.folder for part in parts}
    for path in below:
        if path not in read:
            why = "its name asks for 0 repeats" if path in {part.folder for part in named} else "give it as --images"
            skipped.append(f"{path}: a folder with {len(images_in(path))} images, not read ({why})")
    if not parts:
        check_deeper(folder)
    return parts or [Part(folder)]


def kohya_part(folder: Path) -> Part | None:
    match = KOHYA.fullmatch(folder.name)
    if match is None:
        return None
    return Part(folder, min(int(match[1]), MOST_REPEATS), match[2].strip() or None)


def check_deeper(folder: Path) -> None:
    """Raises UserError where there are images, but two folders down: which of these folders are meant is not clear."""
    deeper = [path for child in folders_in(folder) for path in folders_in(child) if images_in(path)]
    if deeper:
        places = ", ".join(f"{path} ({len(images_in(path))})" for path in deeper[:NAMED])
        parent = deeper[0].parent
        raise UserError(
            f"there are no images in {folder} or one folder down, but further down there are: {places}; "
            f"give the folder that holds them, such as --images {str(parent)!r}."
        )


def others_in(folder: Path, images: set[Path]) -> list[str]:
    """A sentence for archives and videos, and one for captions that belong to no image."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    stems = {path.stem for path in images}
    lone = [path.name for path in files if path.suffix in (".txt", ".caption") and path.stem not in stems]
    packed = [path.name for path in files if path.suffix.lower() in PACKED]
    said = []
    if lone and images:
        said.append(f"{few(lone)}: captions beside which there is no image of that name")
    if packed:
        said.append(f"{few(packed)}: an archive or a video; unpack it to train from the images in it")
    return said


def few(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
