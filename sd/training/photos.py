"""A folder of somebody's pictures, with or without captions: what can be learnt from, found and checked."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sd.errors import UserError
from sd.image import open_image, to_rgb
from sd.training.caption_files import caption_beside, listed_captions

READABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
OTHER_PICTURES = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd"}  # named as skipped, instead of not seen
READERS = 4  # at once: a picture of the largest size takes 240 MB while it is read
NAMED = 5  # skipped things that are named; the rest is counted


@dataclass
class Photo:
    """One picture, as a path; it is read anew at each `open`."""

    path: Path
    captions: list[str]
    size: tuple[int, int]  # width and height in pixels, upright

    @property
    def caption(self) -> str | None:
        """The first one."""
        return self.captions[0] if self.captions else None

    def open(self) -> Image.Image:
        """Upright RGB, its first frame where it moves, on white where it is transparent."""
        return to_rgb(open_image(self.path))


class Photos:
    """The pictures of a folder, in the order of their names, with the captions found there (see `caption_files.py`).

    Pictures in folders below count where `metadata.jsonl` or `results.csv` names them. Every picture is read once, to
    know that it can be. What is kept of it is its path, size and captions: 45 MB for 30,000 pictures with five each.

    folder: where they are.
    caption: one caption for all of them, whatever else is found. DreamBooth's class pictures have it.
    say: called with sentences for the user: what was found, what was skipped.

    photos: those that can be learnt from. skipped: a sentence for everything that was passed over.
    Raises UserError where there is no such folder or no picture in it can be read.
    """

    def __init__(self, folder: str | Path, caption: str | None = None, say=print):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name one with pictures in it.")
        self.skipped: list[str] = []
        listed = listed_captions(folder, self.skipped.append)
        paths = {path for path in folder.iterdir() if is_picture(path)} | listed.keys()
        with ThreadPoolExecutor(READERS) as readers:
            looks = list(readers.map(look, sorted(paths)))
        self.photos = [photo for photo in looks if isinstance(photo, Photo)]
        self.skipped += [problem for problem in looks if isinstance(problem, str)]
        for photo in self.photos:
            photo.captions = [caption] if caption else caption_beside(photo.path) or listed.get(photo.path, [])
        self.report(folder, say)

    def __len__(self) -> int:
        return len(self.photos)

    def report(self, folder: Path, say) -> None:
        """What was found, or UserError for nothing."""
        if not self.photos and not self.skipped:
            raise UserError(
                f"there are no pictures in {folder}: put some jpg, png or webp files there, 5 to 15 will do."
            )
        if not self.photos:
            raise UserError(f"none of the pictures in {folder} can be read; the first: {self.skipped[0]}")
        captioned = sum(bool(photo.captions) for photo in self.photos)
        say(f"{folder}: {len(self)} picture{'s' * (len(self) > 1)}, {captioned} with captions")
        for sentence in self.skipped[:NAMED]:
            say(f"skipped: {sentence}")
        if len(self.skipped) > NAMED:
            say(f"skipped: {len(self.skipped) - NAMED} more, {len(self.skipped)} in all")


def is_picture(path: Path) -> bool:
    """By its name. Hidden files are not: some systems leave a `._name.jpg` beside each picture."""
    return path.suffix.lower() in READABLE | OTHER_PICTURES and not path.name.startswith(".") and path.is_file()


def look(path: Path) -> Photo | str:
    """The picture, without captions as yet, or a sentence on why it cannot be used."""
    photo = Photo(path, [], (0, 0))
    try:
        photo.size = photo.open().size
    except UserError as problem:
        return str(problem)
    return photo
