"""`<lora:name:0.8>` in a prompt, as AUTOMATIC1111's webui has it, and the file that such a name means.

<lora:name>            at strength 1
<lora:name:0.8>        at 0.8 in both networks
<lora:name:0.5:0.8>    at 0.5 in the text encoder and 0.8 in the U-Net
<lora:name:te=0.5:unet=0.8>
"""

import difflib
import math
import re
from pathlib import Path
from typing import NamedTuple

from sd.errors import UserError

TAG = re.compile(r"<lora:([^:<>]+)((?::[^:<>]*)*)>")
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
MAX_STRENGTH = 100


class Tag(NamedTuple):
    name: str
    te: float
    unet: float


def split_tags(prompt: str) -> tuple[str, list[Tag]]:
    """The prompt without its tags, and the tags in order. Raises UserError where a tag's strength is no number."""
    return TAG.sub("", prompt), [read_tag(found) for found in TAG.finditer(prompt)]


def read_tag(found: re.Match) -> Tag:
    values: dict[str, float] = {}
    for place, text in enumerate(found[2].split(":")[1:]):
        key, equals, number = text.rpartition("=")
        key = key.strip() if equals else ("te", "unet", "dyn")[min(place, 2)]
        try:
            values[key] = float(number)
        except ValueError:
            values[key] = math.nan
        if key not in ("te", "unet") or not abs(values[key]) <= MAX_STRENGTH:
            raise UserError(
                f"{found[0]} is not understood: write <lora:name:0.8>, or te and unet: <lora:name:0.5:0.8>."
            )
    te = values.get("te", 1.0)
    return Tag(found[1].strip(), te, values.get("unet", te))


def list_loras(folder: str | Path) -> dict[str, Path]:
    """The files and PEFT folders in `folder` or below, by their names without ending; of equal names the first."""
    found = {}
    for path in sorted(Path(folder).rglob("*"), reverse=True):  # so that of equal names the first stays
        if path.is_file() and path.suffix in SUFFIXES:
            found[path.stem] = path
        elif (path / "adapter_config.json").is_file() or (path / "unet" / "adapter_config.json").is_file():
            found[path.name] = path
    return found


def find_lora(folder: str | Path, name: str) -> Path:
    """The file or PEFT folder of that name in `folder` or below. `name` is never a path, so nothing else is reachable.

    Raises UserError where there is none, naming what is near.
    """
    if re.search(r"[/\\\0]", name) or name in ("", ".", ".."):
        raise UserError(f"{name!r} is not the name of a LoRA: give its file's name without folder and ending.")
    found = list_loras(folder)
    if name not in found:
        near = difflib.get_close_matches(name, found)
        hint = f"; did you mean {' or '.join(near)}?" if near else ", there are none." if not found else "."
        raise UserError(f"there is no LoRA named {name} in {folder}{hint}")
    return found[name]
