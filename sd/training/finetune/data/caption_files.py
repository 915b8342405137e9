"""What people write down about their pictures: a .txt or .caption beside each, or a list.

Lists are `metadata.jsonl`, as diffusers has it, and Flickr30k's `results.csv`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sd.utils.errors import UserError

CAPTION_SUFFIXES = (".txt", ".caption")  # of the file beside an image; kohya's scripts look for the latter
CAPTION_KEYS = ("text", "prompt", "caption")  # of metadata.jsonl, as different programs name it
FLICKR_HEADER = ["image_name", "comment_number", "comment"]
FLICKR_PICTURES = "flickr30k_images"  # the folder that stands beside results.csv where its archive was unpacked


def caption_beside(picture: Path) -> list[str]:
    """The text of `picture`'s .txt, or else of its .caption, as one line, if there is anything in it."""
    for path in map(picture.with_suffix, CAPTION_SUFFIXES):
        text = " ".join(read_text(path).split()) if path.is_file() else ""
        if text:
            return [text]
    return []


def listed_captions(folder: Path, complain=print) -> dict[Path, list[str]]:
    """Every picture that `metadata.jsonl` or `results.csv` in `folder` names, with its captions, none or several.

    The pictures need not be there. `complain` is called with a sentence for each line that was passed over.
    Raises UserError where a list is not written as such a list is.
    """
    captions: dict[Path, list[str]] = {}
    if (folder / "metadata.jsonl").is_file():
        for picture, several in read_metadata(folder / "metadata.jsonl"):
            captions.setdefault(picture, []).extend(several)
    places = [folder, folder.parent] if folder.name == FLICKR_PICTURES else [folder]
    for path in [place / "results.csv" for place in places if (place / "results.csv").is_file()][:1]:
        for picture, caption in read_flickr(path, complain):
            captions.setdefault(picture, []).append(caption)
    return captions


def read_metadata(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Picture and captions of each line, such as {"file_name": "1.png", "text": "a dog"}.

    The text may be a list, of which each step takes one, or null for none.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found = next((entry[key] for key in CAPTION_KEYS if entry.get(key) is not None), [])
            texts = [text for text in (found if isinstance(found, list) else [found]) if text is not None]
            captions = [" ".join(text.split()) for text in texts]
            yield path.parent / entry["file_name"], [caption for caption in captions if caption]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            wanted = '{"file_name": "1.png", "text": "a dog"}'
            raise UserError(f"{path}, line {number}: write it as {wanted}.") from error


def read_flickr(path: Path, complain=print) -> Iterator[tuple[Path, str]]:
    """Picture and caption of each line `1000092795.jpg| 0| Two young guys ...`: five lines a picture in Flickr30k.

    A line without its three fields (the file that goes round has one) is passed over, with a word to `complain`.
    """
    header, *lines = read_text(path).split("\n")
    if [field.strip() for field in header.split("|")] != FLICKR_HEADER:
        raise UserError(f"{path}: its first line must be {'| '.join(FLICKR_HEADER)!r}, as in Flickr30k.")
    unpacked = path.parent / FLICKR_PICTURES
    pictures = unpacked if unpacked.is_dir() else path.parent
    good = 0
    for number, line in enumerate(lines, 2):
        fields = [field.strip() for field in line.split("|", 2)]
        if len(fields) == 3 and all(fields):
            good += 1
            yield pictures / fields[0], fields[2]
        elif line.strip():
            complain(f"{path.name}, line {number}: the fields name| number| caption are not all there.")
    if not good:
        raise UserError(f"{path}: no line has the three fields name| number| caption, as in Flickr30k.")


def read_text(path: Path) -> str:
    """Raises UserError where the file is not UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
