"""ControlNets in a text, as `--control` and the field `control` have them:

    control_v11p_sd15_canny
    canny:0.8                                        at weight 0.8
    canny:0.8:preprocessor=canny:a=50:end=0.6 + tile:mode=control

    reference_only:a=0.8                             without a ControlNet

A unit begins with the name or path of a ControlNet, or with a preprocessor that works without one; ` + ` stands between
units, of which the first reads the first control image, and so on.
"""

import math
import re
from dataclasses import dataclass, fields

from sd.control.preprocessors import PREPROCESSORS, checked, find_preprocessor
from sd.utils.errors import UserError

MODES = {  # the webui's words for them
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
RESIZES = {"crop": "Crop and Resize", "stretch": "Just Resize", "fill": "Resize and Fill"}
MAX_WEIGHT = 2.0
MAX_UNITS = 10
SEPARATOR = " + "
NO_MODEL = "none"  # in place of a name


@dataclass(frozen=True)
class ControlUnit:
    """One ControlNet and how it is used.

    model: its name or path; NO_MODEL with a preprocessor that works without one. weight: 0 to 2. preprocessor, a, b:
    see `preprocessors.PREPROCESSORS`; a and b None for the defaults. start, end: shares of the sampling, 0 to 1. mode:
    of MODES. resize: how the image is fitted, of RESIZES. encoder: the name or path of an IP-Adapter's image encoder,
    "" for the one beside it or the only one.
    Raises UserError for a value that cannot be used.
    """

    model: str
    weight: float = 1.0
    preprocessor: str = "none"
    a: float | None = None
    b: float | None = None
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    resize: str = "crop"
    encoder: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessor", find_preprocessor(self.preprocessor))
        if PREPROCESSORS[self.preprocessor].model_free:
            if self.model.lower() != NO_MODEL:
                raise UserError(
                    f"the preprocessor {self.preprocessor} works without a ControlNet: leave out {self.model!r}."
                )
            object.__setattr__(self, "model", NO_MODEL)
        elif not self.model.strip() or self.model.lower() == NO_MODEL or not is_text_of(self.model):
            raise UserError(f"the ControlNet {self.model!r} is no name: give that of a file in weights/controlnet.")
        if SEPARATOR in self.encoder or ":" in self.encoder:  # what stands between units, and between their values
            raise UserError(f"the image encoder {self.encoder!r} is no name: put it into weights/ and give its name.")
        one = PREPROCESSORS[self.preprocessor]
        checked(one.a, self.a)
        checked(one.b, self.b)
        for name, high in (("weight", MAX_WEIGHT), ("start", 1.0), ("end", 1.0)):
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"the control {name} is {getattr(self, name)}: use a number from 0 to {high:g}.")
        if self.start >= self.end:
            raise UserError(f"the ControlNet ends ({self.end:g}) before it starts ({self.start:g}): use start < end.")
        for name, choices in (("mode", MODES), ("resize", RESIZES)):
            if getattr(self, name) not in choices:
                raise UserError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}.")

    def __str__(self) -> str:
        """Return the text of this unit, without what is at its default."""
        first, *others = fields(self)
        if self.model == NO_MODEL:
            first, others = NAMES["preprocessor"], [one for one in others if one.name != "preprocessor"]
        given = [(one.name, getattr(self, one.name)) for one in others if getattr(self, one.name) != one.default]
        return ":".join([getattr(self, first.name), *(f"{name}={format_value(value)}" for name, value in given)])


NAMES = {one.name: one for one in fields(ControlUnit)}
ALIASES = {"module": "preprocessor", "low": "a", "high": "b"}
MODEL_FREE = [name for name, one in PREPROCESSORS.items() if one.model_free]
ENTRY = re.compile(r"(\w+)=([^:]*)|([-+]?[\d.]+)")


def is_text_of(model: str) -> bool:
    """Returns whether a name or path stands for itself in a text: no unit begins in it, and no entry ends it."""
    return SEPARATOR not in model and not (":" in model and ENTRY.fullmatch(model.rpartition(":")[2].strip()))


def format_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_units(text: str) -> list[ControlUnit]:
    """Returns the units in a text; none in an empty one. Raises UserError for what is no unit."""
    units = [parse_unit(part.strip()) for part in text.split(SEPARATOR) if part.strip()]
    if len(units) > MAX_UNITS:
        raise UserError(f"{len(units)} ControlNets are too many: at most {MAX_UNITS} work together.")
    return units


def format_units(units: list[ControlUnit]) -> str:
    """Returns the text of which `parse_units` makes these units."""
    return SEPARATOR.join(map(str, units))


def check_image_count(units: list[ControlUnit], count: int, has_init_image: bool) -> None:
    """Raises UserError where control images are too many or too few. Without any, the init image serves all units."""
    if count and not units:
        raise UserError("a control image was given without a ControlNet: name one, or leave out the image.")
    if units and not count and not has_init_image:
        raise UserError("a ControlNet needs an image: give a control image, or one to start from.")
    if units and count > 1 and count != len(units):
        raise UserError(
            f"{count} control images are given for {len(units)} ControlNet{'s' * (len(units) > 1)}: give one each, or "
            "one for all."
        )


def parse_unit(text: str) -> ControlUnit:
    """Returns one unit. Its entries stand at the end, so that a path may hold colons."""
    model, *entries = text.split(":")
    found: list[re.Match] = []
    while entries and (match := ENTRY.fullmatch(entries[-1].strip())):
        found.append(match)
        entries.pop()
    model = ":".join([model, *entries])
    given: dict[str, str] = {}
    for match in found:
        name = "weight" if match[3] else ALIASES.get(match[1], match[1])
        if name not in NAMES or name == "model" or name in given:
            names = ", ".join(name for name in NAMES if name != "model")
            raise UserError(f"{text[:100]!r} is no ControlNet: write NAME:0.8, or NAME:key=value with {names}.")
        given[name] = match[3] or match[2]
    if model.strip().lower() in MODEL_FREE:
        given, model = {"preprocessor": model} | given, NO_MODEL
    return ControlUnit(model, **{name: parse_value(name, value) for name, value in given.items()})


def parse_value(name: str, text: str):
    """Returns the value of a field of `ControlUnit`. Raises UserError where it has to be a number and is none."""
    if NAMES[name].type is str:
        return text.strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"the control {name} is {text[:30]!r}: use a number.")
    return value
