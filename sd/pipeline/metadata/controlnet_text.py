"""ControlNet units in infotext, as the webui's extension writes them under the labels "ControlNet 0", "ControlNet 1":

    Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8, Resize Mode: Crop and Resize, ...

The extension before 2024 wrote other words: `preprocessor: canny, model: ..., starting/ending: (0, 1), ...`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from sd.checkpoints.discovery import split_hash
from sd.control.preprocessors import PREPROCESSORS
from sd.control.units import MODES, NO_MODEL, RESIZES, ControlUnit, format_units, parse_units

LABEL = re.compile(r"ControlNet (\d+)")
ENTRY = re.compile(r"([\w/ ]+): (\([^)]*\)|[^,]*)")
OLD_LABELS = {"preprocessor": "module", "starting/ending": "guidance", "preprocessor params": "params"}


def units_to_labels(control: str) -> dict[str, str]:
    """Returns the extension's texts of some units, by their labels."""
    return {f"ControlNet {i}": unit_to_text(unit) for i, unit in enumerate(parse_units(control))}


def unit_to_text(unit: ControlUnit) -> str:
    """Returns the extension's text of one unit; a path becomes the name of its file."""
    one = PREPROCESSORS[unit.preprocessor]
    entries: dict[str, object] = {
        "Module": unit.preprocessor,
        "Model": "None" if unit.model == NO_MODEL else name_of(unit.model),
        "Weight": f"{unit.weight:g}",
        "Resize Mode": RESIZES[unit.resize],
    }
    if one.a is not None:
        entries["Threshold A"] = f"{one.a.default if unit.a is None else unit.a:g}"
    if one.b is not None:
        entries["Threshold B"] = f"{one.b.default if unit.b is None else unit.b:g}"
    if unit.encoder:
        entries["Encoder"] = name_of(unit.encoder)
    entries |= {"Guidance Start": f"{unit.start:g}", "Guidance End": f"{unit.end:g}", "Control Mode": MODES[unit.mode]}
    return ", ".join(f"{label}: {value}" for label, value in entries.items())


def name_of(model: str) -> str:
    """Returns the name of a ControlNet without its folder, and without the commas that part the entries."""
    path = Path(model.replace("\\", "/"))
    known = path.suffix.lower() in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
    return (path.stem if known else path.name).replace(",", " ")


def control_from_labels(found: Mapping[str, str]) -> str:
    """Returns the units in an image's text as the option `control` has them; "" where there are none.

    Raises UserError for a unit that cannot be used here, such as one with an unknown preprocessor.
    """
    texts = sorted((int(match[1]), text) for label, text in found.items() if (match := LABEL.fullmatch(label)))
    entries = [{key.strip().lower(): value.strip() for key, value in ENTRY.findall(text)} for _, text in texts]
    return format_units([unit for one in entries if (unit := unit_from_entries(one)) is not None])


def unit_from_entries(given: dict[str, str]) -> ControlUnit | None:
    """Returns one unit; None for one without a model that needs one. Raises UserError."""
    given = {OLD_LABELS.get(label, label): value for label, value in given.items()}
    name = given.get("module", "none")
    one = PREPROCESSORS.get(name.lower())
    model = NO_MODEL if one and one.model_free else split_hash(given.get("model", ""))[0]
    if model.lower() in ("", NO_MODEL) and not (one and one.model_free):
        return None
    start, end = numbers(given.get("guidance", ""), 2)
    _, a, b = numbers(given.get("params", ""), 3)
    a, b = number(given.get("threshold a", ""), a), number(given.get("threshold b", ""), b)
    return ControlUnit(
        model,
        weight=number(given.get("weight", ""), 1.0) or 0.0,
        preprocessor=name,
        a=changed(a, one.a.default if one and one.a else a),
        b=changed(b, one.b.default if one and one.b else b),
        start=number(given.get("guidance start", ""), start) or 0.0,
        end=first_number(number(given.get("guidance end", ""), end), 1.0),
        mode=key_of(MODES, given.get("control mode", ""), "balanced"),
        resize=key_of(RESIZES, given.get("resize mode", ""), "crop"),
        encoder=given.get("encoder", ""),
    )


def number(text: str, default: float | None) -> float | None:
    """Returns the number in a text, or the default where it is none."""
    try:
        return float(text)
    except ValueError:
        return default


def numbers(text: str, count: int) -> list[float | None]:
    """Returns `count` numbers of a text such as "(0, 1)"; None for each that is missing."""
    found = [number(one, None) for one in text.strip("()").split(",")]
    return (found + [None] * count)[:count]


def first_number(value: float | None, default: float) -> float:
    return default if value is None else value


def changed(value: float | None, default: float | None) -> float | None:
    """Returns a number, or None where it is the default, or missing as the extension writes it (-1)."""
    return None if value == default or value == -1 else value


def key_of(names: Mapping[str, str], label: str, default: str) -> str:
    """Returns the key of a label, in any case; the default for an unknown one."""
    return next((key for key, one in names.items() if one.lower() == label.lower()), default)
