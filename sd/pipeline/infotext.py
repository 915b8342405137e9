"""Infotext: the settings of an image as text inside it, in the format of AUTOMATIC1111's webui:

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 42, Size: 512x512, Model: v1-5-pruned-emaonly, Version: ...

The prompts may have several lines; the settings are the last line, below which dynamic-prompts adds its templates. A
PNG has the text in its `parameters` chunk, a JPEG or WEBP in the EXIF field UserComment. The formats of other programs
are converted to this one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from sd.pipeline.metadata.comfyui import Unreadable
from sd.pipeline.metadata.embedded_text import embedded_texts
from sd.pipeline.metadata.foreign_metadata import Foreign, read_foreign
from sd.utils.errors import UserError
from sd.utils.images import INFOTEXT_KEY, open_image

NEGATIVE = "Negative prompt:"
# The webui's order; any other label comes between the two, in the order given.
FIRST = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Face restoration", "Size"),
    *("Model hash", "Model", "VAE hash", "VAE", "Variation seed", "Variation seed strength", "Seed resize from"),
    *("Denoising strength", "Conditional mask weight", "Clip skip", "ENSD", "Token merging ratio"),
    *("Token merging ratio hr", "Init image hash", "RNG", "NGMS", "Tiling"),
)
LAST = ("Version", "User")
DEFAULTS = {"Clip skip": "1", "RNG": "GPU"}  # not written; assumed where they are missing

# `Label: value` up to the next comma, or a value in JSON's quotes. The length of a label is limited, so that a hostile
# text takes linear time.
FIELD = re.compile(r'(\w[\w \-/]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
LONGEST_TEXT = 200_000  # letters of infotext: two prompts and their templates have 40,000 at most
FEWEST_FIELDS = 3  # a last line with fewer is a part of the prompt
JSON_LABELS = ("Hashes", "Civitai resources", "Civitai metadata")
JSON_FIELD = re.compile(rf"(?:^|, ?)(?:{'|'.join(JSON_LABELS)}): (?=[\[{{])")
TEMPLATES = ("Template", "Negative Template")
PLACES = (INFOTEXT_KEY, "usercomment")  # in any case of letters; other places are searched last
SIZE = re.compile(r"(\d+)x(\d+)")


def write_infotext(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """Returns infotext. settings: values by the webui's labels, in any order; those that are None are left out."""
    given = {label: format_value(value) for label, value in settings.items() if value is not None}
    given = {label: value for label, value in given.items() if DEFAULTS.get(label) != value}
    middle = [label for label in given if label not in FIRST + LAST]
    labels = [label for label in (*FIRST, *middle, *LAST) if label in given]
    fields = (label if label == given[label] else f"{label}: {quote(given[label])}" for label in labels)
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{', '.join(fields)}".strip()


def with_setting(text: str, label: str, value: str) -> str:
    """Returns the result of `write_infotext` with one more setting at its end."""
    return f"{text}, {label}: {quote(value)}"


def parse_infotext(text: str) -> dict[str, str]:
    """Returns the settings in a text by the webui's labels, and "Prompt" and "Negative prompt"; all values are text.

    A value such as 512x768 is split: "Size: 512x768" gives "Size-1" and "Size-2". Never raises: a text without
    settings is all prompt. The negative prompt begins at the first line that begins with its label.
    """
    lines = text.replace("\r\n", "\n").strip().split("\n")
    place = settings_line(lines) if len(text) <= LONGEST_TEXT else None
    fields, below = ([], []) if place is None else (split_fields(lines[place]), lines[place + 1 :])
    lines = lines[:place]
    prompt_lines = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    settings = {
        "Prompt": "\n".join(lines[:prompt_lines]).strip(),
        "Negative prompt": "\n".join(lines[prompt_lines:]).removeprefix(NEGATIVE).strip(),
    }
    for label, quoted in fields:
        value = unquote(quoted.strip())
        if size := SIZE.fullmatch(value):
            settings[f"{label}-1"], settings[f"{label}-2"] = size.groups()
        else:
            settings[label] = value
    return DEFAULTS | settings | templates(below)


def settings_line(lines: list[str]) -> int | None:
    """Returns the index of the last line with "Steps" among its fields, else of the very last line if it has fields."""
    for i in reversed(range(len(lines))):
        fields = split_fields(lines[i])
        if len(fields) >= FEWEST_FIELDS and (i == len(lines) - 1 or "Steps" in dict(fields)):
            return i
    return None


def split_fields(line: str) -> list[tuple[str, str]]:
    """Returns labels and raw values, without the lists and objects that some extensions write without quotes."""
    for _ in JSON_LABELS:
        if match := JSON_FIELD.search(line):
            try:
                _, end = json.JSONDecoder().raw_decode(line, match.end())
            except (ValueError, RecursionError):
                end = match.end()
            line = line[: match.start()] + line[end:]
    return FIELD.findall(line)


def templates(lines: list[str]) -> dict[str, str]:
    """Returns the templates that dynamic-prompts adds below the settings; other lines continue the one above them."""
    found: dict[str, str] = {}
    label = None
    for line in lines:
        begun = next((name for name in TEMPLATES if line.startswith(f"{name}:")), None)
        if begun is not None:
            label, found[begun] = begun, line.removeprefix(f"{begun}:").strip()
        elif label is not None:
            found[label] += f"\n{line}"
    return found


def read_infotext(source: str | Path | BinaryIO) -> str:
    """Returns the infotext in an image's file, of any program. Raises UserError if there is none."""
    image = open_image(source)
    name = source if isinstance(source, (str, Path)) else getattr(source, "name", "the image")
    texts = embedded_texts(image)
    usual = [text for place in PLACES for key, text in texts.items() if key.lower() == place]
    if text := next(filter(holds_settings, usual), None):
        return text
    problem = None
    try:
        if foreign := read_foreign(texts, image.size):
            return foreign_infotext(foreign)
    except Unreadable as found:
        problem = found
    if text := next(filter(holds_settings, texts.values()), None):
        return text
    if problem is not None:
        raise UserError(f"{name} holds {problem}: open it in ComfyUI and give its settings as flags.") from problem
    if usual:
        return usual[0]
    raise UserError(
        f"{name} holds no settings: programs keep them in the images that they save, and messengers and editors "
        "often remove them."
    )


def holds_settings(text: str) -> bool:
    return (
        len(text) <= LONGEST_TEXT
        and not text.startswith("{")
        and settings_line(text.replace("\r\n", "\n").strip().split("\n")) is not None
    )


def foreign_infotext(found: Foreign) -> str:
    """Returns the settings of another program as infotext."""
    blanks = {"Steps": "unknown", "Sampler": "unknown"}
    given = {label: value for label, value in found.settings.items() if value is not None}
    version = {"Version": found.tool} if found.tool else {}
    return write_infotext(found.prompt, found.negative_prompt, blanks | given | version)


def format_value(value: object) -> str:
    """Returns a value as text; the webui writes 7.0 as 7."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def unquote(value: str) -> str:
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass  # a file name in quotes, which another program wrote
    return value
