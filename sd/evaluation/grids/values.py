"""The values of an axis as AUTOMATIC1111's webui has them written:

10, 20, 30             a list
"a cat, sleeping", b   quotes keep a comma inside a value; "" inside them is one quote
1-5                    1, 2, 3, 4, 5
1-10 (+2), 10-1 (-3)   with a step: 1, 3, 5, 7, 9 and 10, 7, 4, 1
1-10 [5], 0-1 [5]      so many, evenly: 1, 3, 5, 7, 10 (cut to whole numbers) and 0, 0.25, 0.5, 0.75, 1
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from sd.utils.errors import UserError

MAX_VALUES = 1000  # of one axis
MAX_TEXT = 100_000  # characters of them
NUMBER = r"[+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})"
WHOLE = r"\d{1,9}"
RANGE = re.compile(
    rf"(?P<first>{NUMBER})\s*-\s*(?P<last>{NUMBER})\s*(?:\(\s*(?P<step>{NUMBER})\s*\)|\[\s*(?P<count>{WHOLE})\s*\])?"
)


def split_values(text: str, keep_empty: bool = False) -> list[str]:
    """Returns the values of a list with commas or line breaks between them, without their quotes.

    keep_empty: whether a value may be empty. Raises UserError for a quote that is not closed, and for a text of over
    MAX_TEXT characters.
    """
    if len(text) > MAX_TEXT:
        raise UserError(f"the values have {len(text)} characters: at most {MAX_TEXT} are possible.")
    try:
        rows = list(csv.reader(io.StringIO(text), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UserError(f'the values {text[:60]!r} are no list: write a, b, "c, d" and close each quote.') from error
    values = [value.strip() for row in rows for value in row]
    return values if keep_empty else [value for value in values if value]


def join_values(values: Sequence[str]) -> str:
    """Returns the text that `split_values` splits into these values."""
    file = io.StringIO()
    csv.writer(file, lineterminator="").writerow(values)
    return file.getvalue().replace(",", ", ") if not any("," in value for value in values) else file.getvalue()


def expand_range(text: str, whole: bool) -> list[str]:
    """Returns the numbers of a range as texts, or the text alone where it is no range.

    whole: whether the numbers must be whole ones. Raises UserError for a range that cannot be walked.
    """
    match = RANGE.fullmatch(text.strip())
    if match is None:
        return [text]
    first, last = Fraction(match["first"]), Fraction(match["last"])
    step = Fraction(match["step"]) if match["step"] else Fraction(1 if last >= first else -1)
    if whole and any(number.denominator != 1 for number in (first, last, step)):
        raise UserError(f"the range {text!r} is not of whole numbers: write 1-10 (+2).")
    if match["count"]:
        numbers = even_numbers(first, last, int(match["count"]), text)
    else:
        if step == 0 or (last - first) * step < 0:
            raise UserError(f"the range {text!r} never reaches its end: write 1-10 (+2), or 10-1 (-2).")
        count = check_count(math.floor((last - first) / step) + 1, text)
        numbers = [first + i * step for i in range(count)]
    return [str(int(number)) if whole else format_number(float(number)) for number in numbers]


def even_numbers(first: Fraction, last: Fraction, count: int, text: str) -> list[Fraction]:
    """Returns `count` numbers from the first to the last at equal distances."""
    if check_count(count, text) == 1:
        return [first]
    return [first + (last - first) * Fraction(i, count - 1) for i in range(count)]


def check_count(count: int, text: str) -> int:
    """Returns the number of values. Raises UserError for none and for too many."""
    if not 1 <= count <= MAX_VALUES:
        raise UserError(f"the range {text!r} has {count} values: an axis has from 1 to {MAX_VALUES}.")
    return count


def format_number(number: float) -> str:
    """Returns a number as people write it: 7, 0.25."""
    return f"{number:.12g}"
