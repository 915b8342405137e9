"""A folder of training images, with or without captions, found and checked."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sd.training.finetune.data.caption_files import read_caption_lists, read_sidecar_caption
from sd.training.finetune.data.folder_layout import (
    Subfolder,
    describe_other_files,
    find_subfolders,
    list_images,
)
from sd.utils.errors import UserError
from sd.utils.images import is_first_frame, open_image, to_rgb

READERS = 4  # threads; an image of the largest size takes 240 MB while it is read
MAX_LISTED = 5  # skipped files that are named; the rest is counted


@dataclass
class ImageFile:
    """The path of one image, its captions and its size; `open` reads the file each time."""

    path: Path
    captions: list[str]
    size: tuple[int, int]  # width and height in pixels, upright
    repeats: int = 1  # number of times an epoch includes it
    folder_caption: str | None = None  # the caption from its folder's name, for an image without one
    is_first_frame: bool = False  # of several frames or pages in its file

    @property
    def caption(self) -> str | None:
        """Return the first caption, or None."""
        return self.captions[0] if self.captions else None

    def open(self) -> Image.Image:
        """Return the image as upright RGB: the first frame of an animation, on white where it is transparent."""
        return to_rgb(open_image(self.path))


class ImageFolder:
    """The images of a folder, in the order of their names, with the captions found there (see `caption_files.py`).

    Images in subfolders count where `metadata.jsonl` or `results.csv` names them, and by the rules of
    `folder_layout.py`. Every image is read once, to check it. Path, size and captions stay in memory: 45 MB for 30,000
    images with five captions each.

    folder: the path of the folder.
    caption: one caption for all images, which replaces all others; class images have it.
    say: called with sentences for the user: what was found, what was skipped.

    parts: the folders that hold the images. images: the readable ones. skipped: a sentence for everything else.
    Raises UserError where the folder does not exist or no image in it can be read.
    """

    def __init__(self, folder: str | Path, caption: str | None = None, say=print):
        folder = check_image_folder(folder)
        self.skipped: list[str] = []
        listed = read_caption_lists(folder, self.skipped.append)
        self.parts = find_subfolders(folder, set(listed), self.skipped)
        self.images: list[ImageFile] = []
        for part in self.parts:
            self.read_folder(
                part, listed if part.folder == folder else read_caption_lists(part.folder, self.skipped.append)
            )
        for image in self.images:
            image.captions = [caption] if caption else image.captions
        self.report(folder, say)

    def __len__(self) -> int:
        return len(self.images)

    def read_folder(self, part: Subfolder, listed: dict[Path, list[str]]) -> None:
        """Add the images of one folder and those that a caption list in it names."""
        paths = {*list_images(part.folder), *listed}
        with ThreadPoolExecutor(READERS) as readers:
            results = list(readers.map(inspect_image, sorted(paths)))
        self.skipped += [problem for problem in results if isinstance(problem, str)] + describe_other_files(
            part.folder, paths
        )
        for image in (one for one in results if isinstance(one, ImageFile)):
            image.captions = read_sidecar_caption(image.path) or listed.get(image.path, [])
            image.repeats, image.folder_caption = part.repeats, part.caption
            self.images.append(image)

    def report(self, folder: Path, say) -> None:
        """Print the number of images and what was skipped. Raises UserError where there is no image."""
        if not self.images and not self.skipped:
            raise UserError(f"no images in {folder}: put 5 to 15 JPEG, PNG or WebP files there.")
        if not self.images:
            raise UserError(f"none of the images in {folder} can be read; the first: {self.skipped[0]}")
        captioned = sum(bool(image.captions) for image in self.images)
        say(f"{folder}: {len(self)} image{'s' * (len(self) > 1)}, {captioned} with captions")
        for part in self.parts:
            if part.folder != folder:
                say(self.describe_subfolder(part))
        if several := [image.path.name for image in self.images if image.is_first_frame]:
            more = f" and {len(several) - MAX_LISTED} more" if len(several) > MAX_LISTED else ""
            say(f"note: only the first frame or page is used of {', '.join(several[:MAX_LISTED])}{more}")
        for sentence in self.skipped[:MAX_LISTED]:
            say(f"skipped: {sentence}")
        if len(self.skipped) > MAX_LISTED:
            say(f"skipped: {len(self.skipped) - MAX_LISTED} more, {len(self.skipped)} in all")

    def describe_subfolder(self, part: Subfolder) -> str:
        """Return a sentence about the images of a subfolder."""
        count = sum(image.path.parent == part.folder for image in self.images)
        times = f", each {part.repeats} times an epoch" if part.repeats > 1 else ""
        called = f", with the caption {part.caption!r} where they have none" if part.caption else ""
        return f"  {part.folder.name}: {count} image{'s' * (count != 1)}{times}{called}"


def check_image_folder(folder: str | Path) -> Path:
    """Return the path of a folder. Raises UserError where there is none; call it before a model is loaded."""
    folder = Path(folder)
    if not folder.is_dir():
        problem = "this is a file" if folder.is_file() else "folder not found"
        raise UserError(f"{problem}: {folder}; give a folder of images.")
    return folder


def inspect_image(path: Path) -> ImageFile | str:
    """Return the image, without captions yet, or a sentence on why it cannot be used."""
    try:
        opened = open_image(path)
        return ImageFile(path, [], to_rgb(opened).size, is_first_frame=is_first_frame(opened))
    except UserError as problem:
        return str(problem)
