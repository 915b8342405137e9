"""`GenerationSettings` to infotext and back, by the labels in the table of options."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd.pipeline.infotext import parse_infotext, write_infotext
from sd.pipeline.metadata.controlnet_text import units_to_labels
from sd.pipeline.metadata.infotext_fields import DDIM_SAMPLERS, INVERTED, ONLY_MASKED, read_fields
from sd.pipeline.metadata.infotext_reading import PAGE, PYTHON, Interface, Reading
from sd.pipeline.options import Option
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.settings import HIRES_UPSCALERS, OPTIONS, SCHEDULE_LABELS, VERSION, GenerationSettings
from sd.utils.errors import UserError

MINIMUM = {"Steps", "Sampler", "Seed", "CFG scale"}  # a text with none of these labels holds no settings


def to_infotext(
    settings: GenerationSettings,
    index: int,
    model: str,
    model_hash: str,
    from_image: bool,
    more: Mapping[str, object] | None = None,
) -> str:
    """Returns the webui's text for image `index` of `settings`. more: further labels with their values."""
    written = special_labels(settings, index, from_image) | {"Model hash": model_hash or None, "Model": model or None}
    for row in OPTIONS:
        if row.infotext is not None and is_written(row, settings):
            written[row.infotext.label] = written_value(row, getattr(settings, row.name))
    return write_infotext(settings.prompt, settings.negative_prompt, written | {"Version": VERSION} | dict(more or {}))


def written_value(row: Option, value: Any) -> object:
    """Return the value of an option as infotext has it."""
    if row.infotext is not None and row.infotext.number:
        return format(value, row.infotext.number)
    return row.choices[value] if row.choices else row.type(value)


def is_written(row: Option, settings: GenerationSettings) -> bool:
    """Return whether infotext contains the value of an option unchanged."""
    if row.infotext is None or row.infotext.written == "specially":
        return False
    if row.infotext.part_of and not is_changed(row.infotext.part_of, settings):
        return False
    return row.infotext.written == "always" or is_changed(row.name, settings)


def is_changed(name: str, settings: GenerationSettings) -> bool:
    return getattr(settings, name) != GenerationSettings.__dataclass_fields__[name].default


def special_labels(settings: GenerationSettings, index: int, from_image: bool) -> dict[str, object]:
    """Returns the labels whose value is not the field's own; None for those that are left out."""
    varied, hires = is_changed("variation_strength", settings), is_changed("hires_scale", settings)
    return {
        "Sampler": ALL_SAMPLERS[settings.sampler].label,
        "Schedule type": SCHEDULE_LABELS[settings.schedule],
        "Seed": settings.seeds()[index],
        "Size": f"{settings.width}x{settings.height}",
        "Variation seed": settings.variation_seeds()[index] if varied else None,
        "Denoising strength": settings.hires_strength if hires else settings.strength if from_image else None,
        "Hires upscaler": upscaler_label(settings.hires_upscaler) if hires else None,
        "Eta DDIM" if settings.sampler in DDIM_SAMPLERS else "Eta": settings.eta,
        "Mask mode": INVERTED if settings.invert_mask else None,
        "Inpaint area": ONLY_MASKED if settings.only_masked else None,
    } | units_to_labels(settings.control)


def upscaler_label(name: str) -> str:
    """Returns the label of an upscaler of the second pass; of a file its name without folder and ending."""
    return HIRES_UPSCALERS.get(name) or Path(name.replace("\\", "/")).stem


def from_infotext(text: str) -> GenerationSettings:
    """Returns the settings in an image's text. Everything that is not honored is a Python warning.

    Raises UserError where there are none, or where one of them cannot be used, such as an unknown sampler.
    """
    reading = read_settings(text)
    from_image = reading.problems.pop("image", None)
    if reading.problems:
        raise UserError(f"the settings cannot be used as they are: {' '.join(reading.problems.values())}")
    for note in (*reading.notes.values(), *([from_image] if from_image else [])):
        warnings.warn(f"{note[:1].upper()}{note[1:]}", stacklevel=2)
    return GenerationSettings(**reading.values)


def read_settings(text: str, interface: Interface = PYTHON) -> Reading:
    """Returns what an image's text holds, checked field by field; a value that cannot be used is one of its problems.

    interface: where its sentences are shown. Raises UserError where the text holds no settings at all.
    """
    found = parse_infotext(text)
    if not found.keys() & MINIMUM:
        raise UserError("the text holds no settings: give that of an image as this program or the webui saved it.")
    reading = read_fields(found, interface)
    for name in list(reading.values):
        try:
            GenerationSettings(**{name: reading.values[name]})
        except UserError as problem:
            reading.problems[name] = str(problem)
            del reading.values[name]
    try:
        GenerationSettings(**reading.values)
    except UserError as problem:  # two that exclude each other, such as a size and a second pass
        reading.problems["hires_scale"] = str(problem)
        for name in ("hires_scale", "guidance_start", "guidance_end"):
            reading.values.pop(name, None)
    return reading


def form_values(text: str) -> tuple[dict[str, object], list[str]]:
    """Returns, for the page, the settings in a text by their fields, and a sentence on everything that is not in them.

    Raises UserError where the text holds no settings at all, and for nothing else.
    """
    reading = read_settings(text, PAGE)
    problems = [f"{problem[:1].upper()}{problem[1:]}" for problem in reading.problems.values()]
    return reading.values, problems + list(reading.notes.values())
