"""The content of infotext as it is read, and the numbers in it."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

OURS = "sd-by-hand"  # what our own Version begins with


@dataclass
class Reading:
    """The content of infotext. values: by the fields of `GenerationSettings`.

    notes: sentences on what is not honored, by label. problems: sentences on what would give another image and needs a
    decision of the user, by field; "image" where it was generated from another image.
    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


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
