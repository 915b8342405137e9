"""The content of infotext as it is read, and the numbers in it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sd.pipeline.options import Option
from sd.pipeline.settings import OPTIONS

OURS = "sd-by-hand"  # what our own Version begins with
ROWS = {row.name: row for row in OPTIONS}


@dataclass(frozen=True)
class Interface:
    """How sentences name what their reader sets: flags to a script's user, labels on the page, arguments in Python.

    option: returns the name of an option. choice: likewise of one of an option's values, from its name and its label.
    prediction: the name of the choice that is no option. from_image: what to do about an image that another image was
    generated from, as the end of a sentence.
    """

    option: Callable[[Option], str]
    choice: Callable[[str, str], str]
    prediction: str
    from_image: str


def flag_of(row: Option) -> str:
    return row.flags[0]


def label_of(row: Option) -> str:
    return f'"{row.widget.label if row.widget else row.name}"'


def argument_of(row: Option) -> str:
    return row.name


SCRIPTS = Interface(flag_of, lambda name, label: name, "--prediction", "use img2img.py or inpaint.py with that image")
PAGE = Interface(label_of, lambda name, label: f'"{label}"', '"Prediction"', 'give that image as "Image to start from"')
PYTHON = Interface(argument_of, lambda name, label: repr(name), "prediction", "give that image as well")


@dataclass
class Reading:
    """The content of infotext. values: by the fields of `GenerationSettings`. interface: for whom sentences are.

    notes: sentences on what is not honored, by label. problems: sentences on what would give another image and needs a
    decision of the user, by field; "image" where it was generated from another image.
    """

    interface: Interface = PYTHON
    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def named(self, option: str) -> str:
        """Return an option of that name as the interface names it."""
        return self.interface.option(ROWS[option])


def parse_integer(text: str) -> int:
    """Parses an integer, also one written as 2.0; exact at any length. Raises ValueError."""
    return int(re.sub(r"\.0*$", "", text.strip()))


def parse_finite(text: str) -> float:
    """Parses a finite number. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def parse_boolean(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")
