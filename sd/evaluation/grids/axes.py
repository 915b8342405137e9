"""The axes of a grid: what may change from cell to cell, and how a value changes a cell.

steps=10-30 (+10)          any option of `GenerationSettings`, by its name, its flag or the webui's label
prompt_sr=red, blue        the first text, which the prompt holds, is replaced by each (the webui's Prompt S/R)
checkpoint=, vae=          by their names or files
lora=dog, cat:0.5, none    LoRAs of weights/loras/, added to the prompt as <lora:NAME:STRENGTH>
lora_strength=0-1 [5]      the strength of all LoRAs in the prompt
size=512x512, 512x768      width and height at once
styles=watercolor, none    the styles of styles.csv
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sd.adapters.lora_tags import LORA, TAG
from sd.evaluation.grids.values import MAX_VALUES, expand_range, join_values, split_values
from sd.pipeline.noise import random_seed
from sd.pipeline.options import Option
from sd.pipeline.sampler_names import ALL_SAMPLERS, ETA_SAMPLERS, find_sampler
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.prompts.styles import find_style
from sd.utils.errors import UserError

NOTHING = "none"
SEEDS = ("seed", "variation_seed")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
REFUSED = {  # options that are no axis, and what to do
    "num_images": "a cell holds one image, so num_images is no axis: use seed, such as seed=1-4.",
    "control": "control is no axis: give it for all cells, or use prompt_sr for the prompt.",
}
SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")
# The webui's labels that are neither ours nor those of infotext, normalized.
WEBUI_LABELS = {
    "varseed": "variation_seed",
    "varstrength": "variation_strength",
    "denoising": "strength",
    "promptsr": "prompt_sr",
    "checkpointname": "checkpoint",
    "rngsource": "rng",
    "style": "styles",
    "model": "checkpoint",
    "ckpt": "checkpoint",
}


@dataclass(frozen=True)
class Point:
    """What one cell of a grid shows. ckpt, vae: by name or file; None for those of the whole grid."""

    settings: GenerationSettings
    ckpt: str | None = None
    vae: str | None = None

    def with_settings(self, **changes: Any) -> "Point":
        return replace(self, settings=self.settings.replace(**changes))


def keep_text(text: str) -> list[str]:
    """Returns a text as the one value that it is."""
    return [text]


@dataclass(frozen=True)
class Kind:
    """What an axis changes. apply(point, value, all values) returns a cell with the value.

    expand: from a text to its values, such as a range. text: whether a value may be empty. choices: the values that
    exist, where there is a list.
    """

    name: str
    label: str
    apply: Callable[[Point, str, tuple[str, ...]], Point]
    expand: Callable[[str], list[str]] = keep_text
    text: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """An axis: the name of its kind and its values as texts; `parse_axis(str(axis))` is the same axis."""

    name: str
    values: tuple[str, ...]

    @property
    def label(self) -> str:
        return KINDS[self.name].label

    def labels(self) -> list[str]:
        """Returns the label of each value."""
        if self.name in ("prompt_sr", "prompt"):
            return [value or "(nothing)" for value in self.values]
        if self.name in ("checkpoint", "vae"):
            return [Path(value).stem for value in self.values]
        return [f"{self.label}: {value}" for value in self.values]

    def apply(self, point: Point, index: int) -> Point:
        """Returns a cell with the value of that index. Raises UserError, which names the axis, for a wrong value."""
        try:
            return KINDS[self.name].apply(point, self.values[index], self.values)
        except UserError as error:
            raise UserError(f"the axis {self.name}: {error}") from error

    def __str__(self) -> str:
        return f"{self.name}={join_values(self.values)}"


def parse_axis(text: str) -> Axis:
    """Returns the axis in NAME=VALUES. Raises UserError for an unknown name and for values that are no list."""
    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(f"the axis {text[:60]!r} has no values: write NAME=VALUES, such as steps=10, 20, 30.")
    return make_axis(name, values)


def make_axis(name: str, values: str) -> Axis:
    """Returns an axis from its name, in any of its forms, and its values as one text. Raises UserError."""
    kind = find_kind(name)
    parts = split_values(values, keep_empty=kind.text and bool(values.strip()))
    try:
        found = [one for part in parts for one in kind.expand(part)]
    except UserError as error:
        raise UserError(f"the axis {kind.name}: {error}") from error
    if not found:
        raise UserError(f"the axis {kind.name} has no values: write {kind.name}=VALUES with commas between them.")
    if len(found) > MAX_VALUES:
        raise UserError(f"the axis {kind.name} has {len(found)} values: at most {MAX_VALUES} are possible.")
    return Axis(kind.name, tuple(found))


def find_kind(name: str) -> Kind:
    """Returns the kind of a name. Raises UserError, with similar names, for an unknown one."""
    key = normalize(name)
    found = NAMES.get(key)
    if found in REFUSED:
        raise UserError(REFUSED[found])
    if found is not None:
        return KINDS[found]
    near = difflib.get_close_matches(key, NAMES, n=1)
    hint = f"did you mean {NAMES[near[0]]}?" if near else "choose an option, such as steps, sampler or seed, or one of "
    more = "" if near else f"{', '.join(sorted(SPECIAL))}."
    raise UserError(f"unknown axis {name.strip()[:60]!r}; {hint}{more}")


def normalize(name: str) -> str:
    """Returns what the variants of a name share: "--cfg-scale", "CFG Scale" and "cfg_scale" are "cfgscale"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Options


def set_option(row: Option, point: Point, text: str, _: tuple[str, ...]) -> Point:
    """Sets an option from a text. Raises UserError for a text that is no value of its type."""
    if row.name == "sampler":
        return set_sampler(point, text)
    if row.name == "schedule":
        return point.with_settings(schedule=find_sampler(point.settings.sampler, text)[1])
    return point.with_settings(**{row.name: value_of(row, text)})


def value_of(row: Option, text: str) -> Any:
    """Returns the value of an option in a text. Raises UserError."""
    if row.type is bool:
        if text.lower() not in TRUE + FALSE:
            raise UserError(f"{text!r} is neither true nor false: use true, false.")
        return text.lower() in TRUE
    if row.choices is not None:
        labels = {normalize(one): value for value, label in row.choices.items() for one in (label, value)}
        return labels.get(normalize(text), text)
    try:
        return row.type(text)
    except ValueError as error:
        kind = "whole number" if row.type is int else "number"
        raise UserError(
            f"{text[:60]!r} is no {kind}: write a list such as 1, 2, or a range such as 1-10 (+2)."
        ) from error


def set_sampler(point: Point, text: str) -> Point:
    """Sets the sampler; the schedule and eta stay only where they were chosen and fit it."""
    now = point.settings
    schedule = "" if now.schedule == ALL_SAMPLERS[now.sampler].schedule else now.schedule
    by_name, _ = find_sampler(text)
    eta = now.eta if by_name in ETA_SAMPLERS else None
    named = find_sampler(text)[1] != ALL_SAMPLERS[by_name].schedule
    return point.with_settings(sampler=text, schedule="" if named else schedule, eta=eta)


def expand_seed(text: str) -> list[str]:
    """Returns the seeds in a text; -1 is a random one."""
    return [str(random_seed()) if one.strip() == "-1" else one for one in expand_range(text, whole=True)]


def option_kind(row: Option) -> Kind:
    label = row.infotext.label if row.infotext else row.name
    label = {"width": "Width", "height": "Height", "hires_strength": "Hires denoising"}.get(row.name, label)
    expand: Callable[[str], list[str]] = keep_text
    if row.name in SEEDS:
        expand = expand_seed
    elif row.type in (int, float):
        expand = partial(expand_range, whole=row.type is int)
    choices = tuple(row.choices or ()) or (tuple(ALL_SAMPLERS) if row.name == "sampler" else ())
    is_text = row.type is str and not choices and row.name != "schedule"
    return Kind(row.name, label, partial(set_option, row), expand, is_text, choices)


# What is no option


def replace_text(point: Point, text: str, values: tuple[str, ...]) -> Point:
    """Replaces the first of the values, in both prompts, by another one."""
    sought, now = values[0], point.settings
    if not sought or sought not in now.prompt + "\n" + now.negative_prompt:
        raise UserError(
            f"{sought[:60]!r} is not in the prompt: the first value is the text that the others replace, in the same "
            "upper and lower case."
        )
    prompt, negative = (one.replace(sought, text) for one in (now.prompt, now.negative_prompt))
    return point.with_settings(prompt=prompt, negative_prompt=negative)


def set_checkpoint(point: Point, text: str, _: tuple[str, ...]) -> Point:
    return replace(point, ckpt=text)


def set_vae(point: Point, text: str, _: tuple[str, ...]) -> Point:
    return replace(point, vae=text)


def add_lora(point: Point, text: str, _: tuple[str, ...]) -> Point:
    """Adds a LoRA to the prompt as a tag, so that the image's infotext names it."""
    if text.lower() == NOTHING:
        return point
    name, colon, strength = text.partition(":")
    return point.with_settings(prompt=f"{point.settings.prompt} <lora:{name}:{strength if colon else 1}>".strip())


def set_lora_strength(point: Point, text: str, _: tuple[str, ...]) -> Point:
    """Sets the strength of each LoRA in the prompt, for both networks; other arguments of a tag stay."""
    try:
        strength = float(text)
    except ValueError as error:
        raise UserError(f"{text[:60]!r} is no strength: use a number, such as 0.8.") from error

    def changed(found: re.Match) -> str:
        if found[1].lower() not in LORA:
            return found[0]
        name, *arguments = found[2].split(":")
        kept = [one for one in arguments if one.strip().lower().startswith(("lbw=", "dyn="))]
        return f"<{found[1]}:{':'.join([name, f'{strength:g}', *kept])}>"

    prompt = TAG.sub(changed, point.settings.prompt)
    if not any(found[1].lower() in LORA for found in TAG.finditer(prompt)):
        raise UserError("the prompt names no LoRA: write <lora:NAME:1> into it, or use the axis lora as well.")
    return point.with_settings(prompt=prompt)


def set_size(point: Point, text: str, _: tuple[str, ...]) -> Point:
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text[:60]!r} is no size: write width x height, such as 512x768.")
    return point.with_settings(width=int(match[1]), height=int(match[2]))


def apply_style(point: Point, text: str, _: tuple[str, ...]) -> Point:
    if text.lower() == NOTHING:
        return point
    prompt, negative = find_style(text).apply(point.settings.prompt, point.settings.negative_prompt)
    return point.with_settings(prompt=prompt, negative_prompt=negative)


SPECIAL = {
    kind.name: kind
    for kind in (
        Kind("prompt_sr", "Prompt S/R", replace_text, text=True),
        Kind("checkpoint", "Checkpoint", set_checkpoint),
        Kind("vae", "VAE", set_vae),
        Kind("lora", "LoRA", add_lora),
        Kind("lora_strength", "LoRA strength", set_lora_strength, partial(expand_range, whole=False)),
        Kind("size", "Size", set_size),
        Kind("styles", "Style", apply_style),
    )
}
KINDS = {row.name: option_kind(row) for row in OPTIONS if row.name not in REFUSED} | SPECIAL
NAMES = {normalize(flag): row.name for row in OPTIONS for flag in row.flags}
NAMES |= {normalize(row.infotext.label): row.name for row in OPTIONS if row.infotext and row.name != "hires_strength"}
NAMES |= WEBUI_LABELS | {normalize(row.name): row.name for row in OPTIONS} | {normalize(one): one for one in SPECIAL}
# Axes are applied in this order, and then those that are not in it: each may change what those before it have set.
ORDER = ("checkpoint", "vae", "sampler", "prompt", "negative_prompt", "prompt_sr", "styles", "lora")
