"""Caption files: a .txt or .caption file beside each image, or a list for the whole folder.

Lists are `metadata.jsonl`, the format of diffusers, and `results.csv` of Flickr30k.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sd.utils.errors import UserError
from sd.utils.files import MAX_TEXT_FILE, encodable

CAPTION_SUFFIXES = (".txt", ".caption")  # of the file beside an image; kohya's scripts use the latter
CAPTION_KEYS = ("text", "prompt", "caption")  # in metadata.jsonl; programs use different names
FLICKR_HEADER = ["image_name", "comment_number", "comment"]
FLICKR_IMAGES = "flickr30k_images"  # the folder of the images, beside results.csv


def read_sidecar_caption(image: Path) -> list[str]:
    """Return the text of the image's .txt, or else of its .caption, as one line; [] where both are empty or missing."""
    for path in map(image.with_suffix, CAPTION_SUFFIXES):
        text = " ".join(read_text(path).split()) if path.is_file() else ""
        if text:
            return [text]
    return []


def read_caption_lists(folder: Path, report=print) -> dict[Path, list[str]]:
    """Return every image that `metadata.jsonl` or `results.csv` in `folder` names, with its captions, none or several.

    The images need not exist. `report` is called with a sentence for each skipped line. Raises UserError where a list
    is not in its format.
    """
    captions: dict[Path, list[str]] = {}
    if (folder / "metadata.jsonl").is_file():
        for image, several in read_metadata(folder / "metadata.jsonl"):
            captions.setdefault(image, []).extend(several)
    places = [folder, folder.parent] if folder.name == FLICKR_IMAGES else [folder]
    for path in [place / "results.csv" for place in places if (place / "results.csv").is_file()][:1]:
        for image, caption in read_flickr(path, report):
            captions.setdefault(image, []).append(caption)
    return captions


def read_metadata(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield image and captions of each line, such as {"file_name": "1.png", "text": "a dog"}.

    The text may be a list, from which each step chooses one, or null for none.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found = next((entry[key] for key in CAPTION_KEYS if entry.get(key) is not None), [])
            texts = [text for text in (found if isinstance(found, list) else [found]) if text is not None]
            captions = [encodable(" ".join(text.split())) for text in texts]
            yield path.parent / entry["file_name"], [caption for caption in captions if caption]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            wanted = '{"file_name": "1.png", "text": "a dog"}'
            raise UserError(f"{path}, line {number}: invalid; the format is {wanted}.") from error


def read_flickr(path: Path, report=print) -> Iterator[tuple[Path, str]]:
    """Yield image and caption of each line `1000092795.jpg| 0| Two young guys ...`: five lines for each image in
    Flickr30k.

    A line without its three fields (the public file has one) is skipped and reported.
    """
    header, *lines = read_text(path).split("\n")
    if [field.strip() for field in header.split("|")] != FLICKR_HEADER:
        raise UserError(f"{path}: its first line must be {'| '.join(FLICKR_HEADER)!r}, as in Flickr30k.")
    unpacked = path.parent / FLICKR_IMAGES
    folder_of_images = unpacked if unpacked.is_dir() else path.parent
    good = 0
    for number, line in enumerate(lines, 2):
        fields = [field.strip() for field in line.split("|", 2)]
        if len(fields) == 3 and all(fields):
            good += 1
            yield folder_of_images / fields[0], fields[2]
        elif line.strip():
            report(f"{path.name}, line {number}: skipped, because one of the fields name| number| caption is missing.")
    if not good:
        raise UserError(f"{path}: no line has the three fields name| number| caption, as in Flickr30k.")


def read_text(path: Path) -> str:
    """Return the text of a file. Raises UserError where it is not UTF-8, with or without a byte order mark."""
    try:
        if path.stat().st_size > MAX_TEXT_FILE:
            raise UserError(f"{path} is too large for captions: {MAX_TEXT_FILE >> 20} MB are allowed.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
