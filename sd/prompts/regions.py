"""Prompts for parts of an image, in the words of the webui's Regional Prompter.

    a cat ADDCOL a dog                     a cat on the left, a dog on the right
    a blue sky ADDROW a cat ADDCOL a dog   a row for the sky, and below it a row of two columns
    a garden ADDCOMM a cat ADDCOL a dog    "a garden, " stands before the prompt of each region
    a garden ADDBASE a cat ADDCOL a dog    "a garden" is the prompt of the whole image, at a share of its own

Ratios are the widths of columns, as in `1,2`, or the heights of rows, as in `1;2`. With rows of several columns each
row has its height and then the widths of its columns: `1;2,1,3` is for the second line above. No ratios: all are equal.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from sd.utils.errors import UserError

WORD = re.compile(r"\s*\b(ADDBASE|ADDCOMM|ADDCOL|ADDROW)\b\s*")
SMALL_WORD = re.compile(r"\b(addbase|addcomm|addcol|addrow)\b", re.IGNORECASE)  # in any letters
LEADING = ("ADDBASE", "ADDCOMM")  # each ends a text that stands before the regions
HIGHEST = 10_000.0  # of a ratio, which may be a number of pixels

Span = tuple[float, float]  # from, to: shares of a side


@dataclass(frozen=True)
class RegionalPrompt:
    """A prompt in parts. base: of the whole image, or None. regions: of the regions, row by row from the top left.

    columns: how many regions each row has.
    """

    base: str | None
    regions: tuple[str, ...]
    columns: tuple[int, ...]

    @property
    def texts(self) -> list[str]:
        """Returns all prompts: the base, if there is one, and those of the regions."""
        return ([] if self.base is None else [self.base]) + list(self.regions)


def has_regions(prompt: str) -> bool:
    """Returns whether a prompt has a word of this syntax."""
    return WORD.search(prompt) is not None


def parse_regions(prompt: str) -> RegionalPrompt:
    """Returns the parts of a prompt; one without any word of this syntax is one region.

    Raises UserError for ADDBASE or ADDCOMM after a region has begun, or given twice.

    >>> parse_regions("a garden ADDCOMM a cat ADDCOL a dog")
    RegionalPrompt(base=None, regions=('a garden, a cat', 'a garden, a dog'), columns=(2,))
    """
    if not has_regions(prompt):
        return RegionalPrompt(None, (prompt,), (1,))
    text, *rest = WORD.split(prompt)
    leading: dict[str, str] = {}
    regions, columns = [], [1]
    for word, following in zip(rest[::2], rest[1::2]):
        if word in LEADING:
            if regions or columns != [1] or word in leading:
                raise UserError(f"{word} stands once in a prompt, before the first ADDCOL or ADDROW: move it there.")
            leading[word] = text
        else:
            regions.append(text)
            columns = [*columns, 1] if word == "ADDROW" else [*columns[:-1], columns[-1] + 1]
        text = following
    common = leading.get("ADDCOMM", "").strip()
    every = [", ".join(part for part in (common, one.strip()) if part) for one in (*regions, text)]
    base = leading.get("ADDBASE")
    return RegionalPrompt(None if base is None else base.strip(), tuple(every), tuple(columns))


def map_regions(prompt: str, change: Callable[[str], str]) -> str:
    """Returns a prompt with a change made to each of its texts; that before ADDCOMM is part of the others, and stays.

    >>> map_regions("a garden ADDCOMM a cat ADDCOL a dog", lambda text: f"{text}, oil painting")
    'a garden ADDCOMM a cat, oil painting ADDCOL a dog, oil painting'
    """
    pieces = WORD.split(prompt)  # texts and the words between them
    for i in range(0, len(pieces), 2):
        if pieces[i + 1 : i + 2] != ["ADDCOMM"]:
            pieces[i] = change(pieces[i])
    return " ".join(pieces)


def parse_ratios(text: str) -> list[list[float]]:
    """Returns the numbers of each row; [] for an empty text. Raises UserError for what is no positive number."""
    if not text.strip():
        return []
    return [[parse_ratio(one, text) for one in row.split(",")] for row in text.strip().strip(";").split(";")]


def parse_ratio(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value <= HIGHEST:
        raise UserError(
            f"the region ratios are {text[:50]!r}: use numbers over 0 and up to {HIGHEST:g}, such as 1,2 for columns "
            "or 1;2 for rows."
        )
    return value


def divide(columns: tuple[int, ...], ratios: str = "") -> list[tuple[Span, Span]]:
    """Returns (top and bottom, left and right) of each region in shares of the image's height and width.

    columns: see `RegionalPrompt`. Raises UserError where the ratios are not as many as the rows and columns.

    >>> divide((1, 2))
    [((0.0, 0.5), (0.0, 1.0)), ((0.5, 1.0), (0.0, 0.5)), ((0.5, 1.0), (0.5, 1.0))]
    """
    heights, widths = split_ratios(columns, parse_ratios(ratios), ratios)
    return [
        (down, across) for down, row in zip(cumulative_shares(heights), widths) for across in cumulative_shares(row)
    ]


def split_ratios(
    columns: tuple[int, ...], given: list[list[float]], text: str
) -> tuple[list[float], list[list[float]]]:
    """Returns the height of each row and the widths of its columns."""
    equal = [[1.0] * count for count in columns]
    if not given:
        return [1.0] * len(columns), equal
    if len(columns) == 1 and len(given) == 1 and len(given[0]) == columns[0]:
        return [1.0], given
    if len(given) == 1 and max(columns) == 1 and len(given[0]) == len(columns):
        return given[0], equal  # rows alone, with commas
    fits = len(given) == len(columns) and all(len(row) in (1, 1 + n) for row, n in zip(given, columns))
    if len(columns) == 1 or not fits:
        raise UserError(
            f"the region ratios {text[:50]!r} do not fit the prompt's {describe_rows(columns)}: give a number for each "
            "column, as in 1,2, or for each row its height and the widths of its columns, as in 1;2,1,3."
        )
    return [row[0] for row in given], [row[1:] or one for row, one in zip(given, equal)]


def describe_rows(columns: tuple[int, ...]) -> str:
    if len(columns) == 1:
        return f"{columns[0]} column{'s' * (columns[0] > 1)}"
    return f"{len(columns)} rows of {', '.join(map(str, columns))} columns"


def cumulative_shares(sizes: list[float]) -> list[Span]:
    """Returns where each part begins and ends, of parts of these relative sizes; the last one ends at exactly 1."""
    total, ends = sum(sizes), [0.0]
    for size in sizes:
        ends.append(ends[-1] + size / total)
    ends[-1] = 1.0
    return list(pairwise(ends))
