"""One row per generation option: the names and the bounds of a field of `GenerationSettings`, for every interface.

`option(default, help, ...)` stands as the default of a dataclass field. The field's name, type and default and the row
together make the check of its value, its command-line flag, its label in infotext (written and read), its widget on the
page and its name in the HTTP APIs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from sd.prompts.weighting import MAX_CHARACTERS
from sd.utils.errors import SettingError, UserError
from sd.utils.files import is_encodable

T = TypeVar("T")
NOT_IN_WEBUI = {"a1111": "AUTOMATIC1111's API has no such field"}
GROUPS = (
    "prompt",
    "sampling",
    "img2img",
    "control",
    "adapters",
    "performance",
    "output",
)  # of the command line, in this order


@dataclass(frozen=True)
class Widget:
    """The control of an option on the page. Options of one section are in the order of the table, two per row.

    kind: "text", "slider", "number", "checkbox" or "dropdown" (of the option's choices). low, high, step: of a slider,
    where they differ from the option's bounds. info: the small print. default: None for the option's own.
    """

    kind: str
    label: str
    section: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    info: str | None = None
    placeholder: str | None = None
    default: Any = None


@dataclass(frozen=True)
class Infotext:
    """The label of an option in infotext.

    written: "always", "changed" (where the value differs from the default), or "specially", by a function of
    `settings_infotext` and `infotext_fields`. part_of: the option that has to differ from its default as well.
    number: the format of a number that is not written as its type is.
    """

    label: str
    written: str = "changed"
    part_of: str = ""
    number: str = ""


@dataclass(frozen=True)
class Option:
    """One row of the table. `name`, `type` and `default` are the dataclass field's.

    low, high: bounds of a number. choices: the values of a text with their labels for people, where it has a list.
    noun: a text in a message, such as "noise source". optional: None means `default_help`.
    flags: of the command line, the first one documented. mode: "text" or "image" for an option of txt2img.py or of
    img2img.py and inpaint.py alone. a1111: the field of AUTOMATIC1111's API; a1111_default: its default there.
    missing: why one of the places has no such option, by the place ("flags", "infotext", "widget", "a1111").
    """

    name: str
    type: type
    default: Any
    help: str
    group: str
    low: float | None = None
    high: float | None = None
    choices: Mapping[str, str] | None = None
    noun: str = ""
    optional: bool = False
    default_help: str = ""
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    mode: str = ""
    infotext: Infotext | None = None
    widget: Widget | None = None
    a1111: str = ""
    a1111_default: Any = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def check(self, value: object) -> None:
        """Raises UserError for a value of another type, or out of bounds."""
        noun = self.noun or self.name.replace("_", " ")
        if self.optional and value is None:
            return
        if self.type is bool and not isinstance(value, bool):
            raise SettingError(self.name, f"must be True or False, not {value!r}")
        if self.type is str:
            check_text(noun, value)
        if self.low is None and self.type is int and (isinstance(value, bool) or not isinstance(value, int)):
            raise SettingError(self.name, f"must be a whole number, not {value!r}")
        if self.low is not None and self.high is not None:
            if self.type is int:
                check_whole(self.name, value, int(self.low), int(self.high))
            else:
                check_number(self.name, value, self.low, self.high)
        if self.choices is not None and value not in self.choices:
            raise UserError(f"unknown {noun} {value!r}; choose from {', '.join(map(str, self.choices))}.")


def option(default: T, help: str, group: str, **row: Any) -> T:
    """Returns a dataclass field with a row of the table; typed as its value, so that the field's annotation holds."""
    return field(default=default, metadata={"row": {"help": help, "group": group} | row})


def options_of(settings: type) -> tuple[Option, ...]:
    """Returns the table of a dataclass whose fields were created by `option`."""
    return tuple(
        Option(one.name, plain_type(one.type), one.default, optional=one.default is None, **one.metadata["row"])
        for one in fields(settings)
    )


def plain_type(annotation: Any) -> type:
    """Returns a type without None: `int` for `int` and for `int | None`."""
    if isinstance(annotation, type):
        return annotation
    return next(one for one in annotation.__args__ if one is not type(None))


def check_text(name: str, value: object) -> None:
    """Raises UserError where a value is no text, is longer than any prompt may be, or cannot be stored.

    Every text that a user gives passes here, from whatever interface. A lone surrogate, half of an emoji, cannot be
    encoded in any file or answer, and a NUL ends a text for many programs that read it later.
    """
    if not isinstance(value, str):
        raise UserError(f"the {name} is {value!r}: give a text.")
    if len(value) > MAX_CHARACTERS:
        raise UserError(f"the {name} has {len(value)} characters: shorten it to at most {MAX_CHARACTERS}.")
    if "\0" in value:
        raise UserError(f"the {name} holds a NUL character: leave it out.")
    if not is_encodable(value):
        raise UserError(
            f"the {name} holds half of a character (a lone surrogate) or bytes that are not UTF-8: type it again."
        )


def check_whole(name: str, value: object, lowest: int, highest: int) -> None:
    """Raises SettingError where a value is no whole number from `lowest` to `highest`."""
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise SettingError(name, f"must be a whole number from {lowest} to {highest}, not {value!r}")


def check_number(name: str, value: object, lowest: float, highest: float) -> None:
    """Raises SettingError where a value is no finite number from `lowest` to `highest`."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or not lowest <= value <= highest:
        raise SettingError(name, f"must be a number from {lowest:g} to {highest:g}, not {value!r}")
