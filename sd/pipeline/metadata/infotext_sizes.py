"""The sizes of both passes in infotext, and the options of the second one."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from sd.checkpoints.discovery import Models
from sd.pipeline.metadata.infotext_reading import OURS, Reading, parse_finite, parse_integer
from sd.pipeline.settings import HIRES_UPSCALERS
from sd.upscalers.upscale import find_upscaler
from sd.utils.errors import UserError

LATENT_UPSCALER = re.compile("latent", re.IGNORECASE)


def read_size(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the first pass's size, cut to multiples of 8 as in the webui."""
    size = read_pair(found, "Size")
    if size is None:
        reading.notes["Size"] = "The file does not say its size: the model's own is used."
        return
    if (first := read_pair(found, "First pass size")) is not None:
        size = first_pass(first, size)
    cut = [max(8, side // 8 * 8) for side in size]
    if cut != size:
        reading.notes["Size"] = f"The size {size[0]}x{size[1]} is not a multiple of 8: {cut[0]}x{cut[1]} is used."
    reading.values["width"], reading.values["height"] = cut


def read_pair(found: Mapping[str, str], label: str) -> list[int] | None:
    """Returns a width and a height in pixels; None where there are none, or impossible ones."""
    sides = [found.get(f"{label}-{i}", "") for i in (1, 2)]
    return [int(side) for side in sides] if all(side.isdecimal() and len(side) < 7 for side in sides) else None


def first_pass(first: list[int], size: list[int]) -> list[int]:
    """Returns the size of the first pass; the first webui wrote 0x0 for 512 * 512 pixels of the last size's shape."""
    if 0 not in first:
        return first
    scale = math.sqrt(512 * 512 / max(1, size[0] * size[1]))
    return [math.ceil(scale * side / 64) * 64 for side in size]


def read_second_pass(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the scale of the second pass, also from a size, its strength, upscaler and steps."""
    values, notes = reading.values, reading.notes
    target = read_pair(found, "Size" if read_pair(found, "First pass size") else "Hires resize")
    if "hires_scale" not in values and "width" in values and target and any(target):
        set_scale(target, reading)
    if values.get("hires_scale", 1) <= 1:
        values.pop("hires_scale", None)
        return
    try:
        values["hires_strength"] = parse_finite(found.get("Denoising strength", "0.7"))
    except ValueError:
        reading.problems["hires_strength"] = (
            f"the file's denoising strength is not a number: set {reading.named('hires_strength')}."
        )
    upscaler = found.get("Hires upscaler", "Latent")
    is_ours = found.get("Version", "").startswith(OURS)
    own = {label: name for name, label in HIRES_UPSCALERS.items()}
    name = own.get(upscaler) or (upscaler if is_ours else model_named(upscaler))
    values["hires_upscaler"] = name or ("latent" if LATENT_UPSCALER.search(upscaler) else "lanczos")
    if name is None:
        used = HIRES_UPSCALERS[values["hires_upscaler"]]
        notes["Hires upscaler"] = f"The upscaler {upscaler!r} of the second pass does not exist here: {used} is used."
    if found.get("Hires steps", "0") != "0":
        try:
            values["hires_steps"] = parse_integer(found["Hires steps"])
        except ValueError:
            notes["Hires steps"] = "The steps of the second pass are not a number: it takes the first pass's number."


def model_named(upscaler: str) -> str | None:
    """Returns the name of the model in weights/upscalers that another program calls so; None where there is none."""
    try:
        return Path(str(find_upscaler(upscaler, Models()))).stem
    except UserError:
        return None


def set_scale(target: list[int], reading: Reading) -> None:
    """Sets the scale from the first size to `target`; a side of 0 keeps the shape."""
    size = [reading.values["width"], reading.values["height"]]
    scale = max(side / own for side, own in zip(target, size))
    if scale > 1:
        if any(int(side * scale) < wanted for wanted, side in zip(target, size)):
            scale *= 1 + 1e-12  # so that cutting to whole pixels loses none
        reading.values["hires_scale"] = scale
        made = [int(side * scale) // 8 * 8 for side in size]
        if any(wanted and wanted // 8 * 8 != side for wanted, side in zip(target, made)):
            reading.notes["Hires resize"] = (
                f"The second pass to {target[0]}x{target[1]} is not of the first pass's shape: here it gives "
                f"{made[0]}x{made[1]}."
            )
