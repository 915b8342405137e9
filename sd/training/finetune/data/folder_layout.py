"""The layout of image folders: images in the folder itself or one level below.

The layout of kohya's scripts is supported: `img/10_sks dog/0.png` repeats each image of a folder ten times an epoch;
the folder's name after the number is the caption of images that have none.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sd.utils.errors import UserError

READABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNSUPPORTED = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd"}  # reported as skipped
PACKED = {".zip", ".rar", ".7z", ".tar", ".gz", ".mp4", ".mov", ".webm", ".avi", ".mkv"}  # images may be inside
KOHYA = re.compile(r"(\d+)_(.*)")
MAX_REPEATS = 10_000
MAX_LISTED = 3


@dataclass(frozen=True)
class Subfolder:
    """A folder of images. repeats: number of times an epoch includes each image. caption: of images that have none."""

    folder: Path
    repeats: int = 1
    caption: str | None = None


def is_image(path: Path) -> bool:
    """Return whether the file's name is that of an image.

    Hidden files are excluded: some systems write a `._name.jpg` beside each image.
    """
    return path.suffix.lower() in READABLE | UNSUPPORTED and not path.name.startswith(".") and path.is_file()


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder, by their names."""
    return [path for path in folder.iterdir() if is_image(path)]


def list_folders(folder: Path) -> list[Path]:
    """Return the visible subfolders, in order."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_subfolders(folder: Path, listed: set[Path], skipped: list[str]) -> list[Subfolder]:
    """Return the folders that images are read from. `skipped` gets a sentence for each other folder.

    listed: images that a list in `folder` names. Folders named as kohya's scripts want it are always read; others only
    where the folder itself has no image. Raises UserError where all images are further down, and says where.
    """
    below = [path for path in list_folders(folder) if set(list_images(path)) - listed]
    named = [part for part in map(parse_kohya_name, below) if part is not None]
    own = [Subfolder(folder)] if list_images(folder) or listed else []
    parts = own + [part for part in named if part.repeats]
    if not parts and not named:
        parts = [Subfolder(path) for path in below]
    read = {part.folder for part in parts}
    for path in below:
        if path not in read:
            why = "its name asks for 0 repeats" if path in {part.folder for part in named} else "give it as --images"
            skipped.append(f"{path}: a folder with {len(list_images(path))} images, not read ({why})")
    if not parts:
        refuse_deeper_images(folder)
    return parts or [Subfolder(folder)]


def parse_kohya_name(folder: Path) -> Subfolder | None:
    """Return the folder with the repeats and the caption of its name; None where the name has no number."""
    match = KOHYA.fullmatch(folder.name)
    if match is None:
        return None
    return Subfolder(folder, min(int(match[1]), MAX_REPEATS), match[2].strip() or None)


def refuse_deeper_images(folder: Path) -> None:
    """Raise UserError where images are two levels down only: it is not clear which of these folders are meant."""
    deeper = [path for child in list_folders(folder) for path in list_folders(child) if list_images(path)]
    if deeper:
        places = ", ".join(f"{path} ({len(list_images(path))})" for path in deeper[:MAX_LISTED])
        parent = deeper[0].parent
        raise UserError(
            f"there are no images in {folder} or one folder down, but further down there are: {places}; "
            f"give the folder that holds them, such as --images {str(parent)!r}."
        )


def describe_other_files(folder: Path, images: set[Path]) -> list[str]:
    """Return a sentence for captions without an image, and one for archives and videos."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    stems = {path.stem for path in images}
    lone = [path.name for path in files if path.suffix in (".txt", ".caption") and path.stem not in stems]
    packed = [path.name for path in files if path.suffix.lower() in PACKED]
    sentences = []
    if lone and images:
        sentences.append(f"{join_names(lone)}: captions without an image of the same name")
    if packed:
        sentences.append(f"{join_names(packed)}: an archive or a video; unpack it to train from the images in it")
    return sentences


def join_names(names: list[str]) -> str:
    """Return the first names, separated by commas, and the number of the others."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
