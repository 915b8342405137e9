"""The settings of a picture as text inside it, in the form that AUTOMATIC1111's webui writes and everybody reads:

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 42, Size: 512x512, Model: v1-5-pruned-emaonly, Version: ...

The prompts may hold several lines, the settings are the last one. A PNG carries the text in its `parameters` chunk, a
JPEG or WEBP in the EXIF field UserComment.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from sd.errors import UserError
from sd.image import INFOTEXT_KEY, open_image

NEGATIVE = "Negative prompt:"
# In the webui's order; what is not here stands between the two, in the order given.
FIRST = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Face restoration", "Size"),
    *("Model hash", "Model", "VAE hash", "VAE", "Variation seed", "Variation seed strength", "Seed resize from"),
    *("Denoising strength", "Conditional mask weight", "Clip skip", "ENSD", "Token merging ratio"),
    *("Token merging ratio hr", "Init image hash", "RNG", "NGMS", "Tiling"),
)
LAST = ("Version", "User")
DEFAULTS = {"Clip skip": "1", "RNG": "GPU"}  # not written; read where they are missing

# `Label: value` up to the next comma, or a value in quotes as JSON writes them. Labels end somewhere, so that a hostile
# text takes linear time.
FIELD = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_FIELDS = 3  # a last line with fewer is a part of the prompt
SIZE = re.compile(r"(\d+)x(\d+)")


def write_infotext(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """settings: the webui's labels with their values, in any order; those that are None are left out."""
    given = {label: show(value) for label, value in settings.items() if value is not None}
    given = {label: value for label, value in given.items() if DEFAULTS.get(label) != value}
    middle = [label for label in given if label not in FIRST + LAST]
    labels = [label for label in (*FIRST, *middle, *LAST) if label in given]
    fields = (label if label == given[label] else f"{label}: {quote(given[label])}" for label in labels)
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{', '.join(fields)}".strip()


def with_setting(text: str, label: str, value: str) -> str:
    """A text that `write_infotext` made, with one more setting at its end."""
    return f"{text}, {label}: {quote(value)}"


def parse_infotext(text: str) -> dict[str, str]:
    """The settings in a text, by the webui's labels, beside "Prompt" and "Negative prompt"; all values are text.

    A value such as 512x768 is split: "Size: 512x768" gives "Size-1" and "Size-2". Never raises: a text without
    settings is all prompt. The negative prompt begins at the first line that begins with its label.
    """
    *lines, last = text.strip().split("\n")
    fields = FIELD.findall(last)
    if len(fields) < FEWEST_FIELDS:
        lines, fields = [*lines, last], []
    prompt_lines = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    settings = {
        "Prompt": "\n".join(lines[:prompt_lines]).strip(),
        "Negative prompt": "\n".join(lines[prompt_lines:]).removeprefix(NEGATIVE).strip(),
    }
    for label, quoted in fields:
        value = unquote(quoted)
        if size := SIZE.fullmatch(value):
            settings[f"{label}-1"], settings[f"{label}-2"] = size.groups()
        else:
            settings[label] = value
    return DEFAULTS | settings


def read_infotext(source: str | Path | BinaryIO) -> str:
    """The text in a picture's file. Raises UserError if it is no picture or holds no settings."""
    image = open_image(source)
    text = image.info.get(INFOTEXT_KEY)
    if text is None:
        text = decode_comment(user_comment(image))
    if not text:
        raise UserError(
            f"{source} holds no settings: they are kept in pictures as this program or the webui saved them."
        )
    return text


def show(value: object) -> str:
    """7.0 is 7 to the webui."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def unquote(value: str) -> str:
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass  # somebody's file name in quotes, not ours
    return value


def user_comment(image: Image.Image) -> bytes:
    try:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except Exception:  # Pillow raises nearly anything on a broken EXIF block
        return b""
    return comment if isinstance(comment, bytes) else str(comment).encode()


def decode_comment(comment: bytes) -> str:
    """EXIF 2.3, section 4.6.5, UserComment: eight bytes that name the encoding, then the text."""
    encoding, text = comment[:8], comment[8:]
    if encoding == b"UNICODE\0":
        # UTF-16 of either byte order. Most of our letters are ASCII, whose high byte is 0.
        high_first = text[::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if high_first else "utf-16-le", errors="replace").strip("\0\ufeff")
    return text.decode("utf-8", errors="replace").strip("\0")
