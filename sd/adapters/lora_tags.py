"""Tags such as `<lora:name:0.8>` in a prompt, as in AUTOMATIC1111's webui.

<lora:name>            at strength 1
<lora:name:0.8>        at 0.8 in both networks
<lora:name:0.5:0.8>    at 0.5 in the text encoder and 0.8 in the U-Net
<lora:name:te=0.5:unet=0.8>
<lora:name:1:lbw=OUTALL>    with a weight for each block, see `block_weights`

`<lyco:name:1>` is the same. What else has this form is no text for the model either: it is
taken out, and a note says so.
"""

import math
import re
from typing import NamedTuple

from sd.utils.errors import UserError

TAG = re.compile(r"<\s*(\w+)\s*:([^<>]*)>")
BROKEN = re.compile(r"<\s*(?:lora|lyco|hypernet)\b(?!\s*>)[^<>]{0,40}", re.IGNORECASE)
LORA = ("lora", "lyco")
MAX_STRENGTH = 100


class Tag(NamedTuple):
    name: str
    te: float
    unet: float
    lbw: str = ""


class Tags(NamedTuple):
    """A prompt split from its tags. text: the prompt without them. notes: sentences on what is not honored."""

    text: str
    tags: list[Tag]
    notes: list[str]


def split_tags(prompt: str) -> Tags:
    """Splits a prompt from its tags. Raises UserError where one is not closed, or its strength is no number."""
    tags, notes = [], []
    for found in TAG.finditer(prompt):
        if found[1].lower() in LORA:
            tag, unknown = read_tag(found)
            tags.append(tag)
            notes += [f"{found[0]}: {one} is not supported and is ignored." for one in unknown]
        else:
            notes.append(f"{found[0]} is not supported: it is left out of the prompt.")
    text = TAG.sub("", prompt)
    if found := BROKEN.search(text):
        raise UserError(f"the prompt holds {found[0].strip()!r}, a tag that is not whole: write <lora:name:0.8>.")
    return Tags(text, tags, notes)


def read_tag(found: re.Match) -> tuple[Tag, list[str]]:
    """Returns the tag, and its unknown arguments."""
    name, *arguments = found[2].split(":")
    values: dict[str, float] = {}
    unknown, lbw = [], ""
    for place, text in enumerate(arguments):
        key, equals, number = text.partition("=")
        key = key.strip().lower() if equals else ("te", "unet", "dyn")[min(place, 2)]
        if key == "lbw":
            lbw = number.strip()
            continue
        if equals and key not in ("te", "unet"):
            unknown.append(text.strip())
            continue
        try:
            values[key] = float(number if equals else text)
        except ValueError:
            values[key] = math.nan
        if key == "dyn" or not abs(values[key]) <= MAX_STRENGTH:
            values[""] = math.nan
    if "" in values or not name.strip():
        raise UserError(f"{found[0]} is not understood: write <lora:name:0.8>, or te and unet: <lora:name:0.5:0.8>.")
    te = values.get("te", 1.0)
    return Tag(name.strip(), te, values.get("unet", te), lbw), unknown
