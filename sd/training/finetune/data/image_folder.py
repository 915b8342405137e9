"""A folder of somebody's pictures, with or without captions: what can be learnt from, found and checked."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sd.training.finetune.data.caption_files import caption_beside, listed_captions
from sd.training.finetune.data.folder_layout import Part, images_in, is_picture, others_in, parts_of
from sd.utils.errors import UserError
from sd.utils.images import open_image, to_rgb

__all__ = ["Photo", "Photos", "is_picture"]

READERS = 4  # at once: a picture of the largest size takes 240 MB while it is read
NAMED = 5  # skipped things that are named; the rest is counted


@dataclass
class Photo:
    """One picture, as a path; it is read anew at each `open`."""

    path: Path
    captions: list[str]
    size: tuple[int, int]  # width and height in pixels, upright
    repeats: int = 1  # how often an epoch takes it
    folder_caption: str | None = None  # what its folder's name says of it, which counts where it has no caption

    @property
    def caption(self) -> str | None:
        """The first one."""
        return self.captions[0] if self.captions else None

    def open(self) -> Image.Image:
        """Upright RGB, its first frame where it moves, on white where it is transparent."""
        return to_rgb(open_image(self.path))


class Photos:
    """The pictures of a folder, in the order of their names, with the captions found there (see `caption_files.py`).

    Pictures in folders below count where `metadata.jsonl` or `results.csv` names them, and as `image_folders.py` says.
    Every picture is read once, to
    know that it can be. What is kept of it is its path, size and captions: 45 MB for 30,000 pictures with five each.

    folder: where they are.
    caption: one caption for all of them, whatever else is found. DreamBooth's class pictures have it.
    say: called with sentences for the user: what was found, what was skipped.

    parts: the folders they are in. photos: those that can be learnt from. skipped: a sentence for everything that was
    passed over.
    Raises UserError where there is no such folder or no picture in it can be read.
    """

    def __init__(self, folder: str | Path, caption: str | None = None, say=print):
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name one with pictures in it.")
        self.skipped: list[str] = []
        listed = listed_captions(folder, self.skipped.append)
        self.parts = parts_of(folder, set(listed), self.skipped)
        self.photos: list[Photo] = []
        for part in self.parts:
            self.read(part, listed if part.folder == folder else listed_captions(part.folder, self.skipped.append))
        for photo in self.photos:
            photo.captions = [caption] if caption else photo.captions
        self.report(folder, say)

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, part: Part, listed: dict[Path, list[str]]) -> None:
        """Adds the images of one folder, and those that a list there names."""
        paths = {*images_in(part.folder), *listed}
        with ThreadPoolExecutor(READERS) as readers:
            looks = list(readers.map(look, sorted(paths)))
        self.skipped += [problem for problem in looks if isinstance(problem, str)] + others_in(part.folder, paths)
        for photo in (one for one in looks if isinstance(one, Photo)):
            photo.captions = caption_beside(photo.path) or listed.get(photo.path, [])
            photo.repeats, photo.folder_caption = part.repeats, part.caption
            self.photos.append(photo)

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
        for part in self.parts:
            if part.folder != folder:
                say(self.told(part))
        for sentence in self.skipped[:NAMED]:
            say(f"skipped: {sentence}")
        if len(self.skipped) > NAMED:
            say(f"skipped: {len(self.skipped) - NAMED} more, {len(self.skipped)} in all")

    def told(self, part: Part) -> str:
        """What was read from a folder below, in words."""
        count = sum(photo.path.parent == part.folder for photo in self.photos)
        times = f", each {part.repeats} times an epoch" if part.repeats > 1 else ""
        called = f", called {part.caption!r} where they have no caption" if part.caption else ""
        return f"  {part.folder.name}: {count} of them{times}{called}"


def look(path: Path) -> Photo | str:
    """The picture, without captions as yet, or a sentence on why it cannot be used."""
    photo = Photo(path, [], (0, 0))
    try:
        photo.size = photo.open().size
    except UserError as problem:
        return str(problem)
    return photo
