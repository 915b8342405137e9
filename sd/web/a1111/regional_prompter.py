"""The webui's Regional Prompter in `alwayson_scripts`: its arguments become the words and options of regions here.

Its arguments are a list: whether it is on, debug, the mode ("Matrix"), the way of dividing, two for other modes, the
ratios, the share of the base, whether there is a base, a common part, a common negative part, and further ones.
"""

import re
from typing import Any

from sd.pipeline.settings import GenerationSettings
from sd.prompts.regions import has_regions
from sd.utils.errors import UserError
from sd.web.a1111.fields import REGIONAL_PROMPTER, is_value_off

BREAK = re.compile(r"\s*\bBREAK\b\s*")
COLUMNS, ROWS = ("columns", "colums", "horizontal"), ("rows", "vertical")  # its names, an old typing error among them
MODE, DIVISION, RATIOS, BASE_RATIOS, USE_BASE, USE_COMMON = 2, 3, 6, 7, 8, 9  # places in the list


def with_regional_prompter(settings: GenerationSettings, body: Any) -> GenerationSettings:
    """Returns the settings with the regions that a body asks for. Raises UserError for a mode that is not here."""
    args = arguments_of(body)
    if not args or is_value_off(args[0]):
        return settings
    args = [*args, *[None] * (USE_COMMON + 1 - len(args))]
    if str(args[MODE] or "Matrix").lower() != "matrix":
        raise UserError(
            f"the mode {str(args[MODE])[:50]!r} of the Regional Prompter is not supported here: use Matrix, or "
            "region_masks in POST /jobs."
        )
    prompt = settings.prompt
    if not has_regions(prompt):
        prompt = words_for_breaks(prompt, division_of(args[DIVISION]), bool(args[USE_BASE]), bool(args[USE_COMMON]))
    return settings.replace(
        prompt=prompt,
        region_ratios=str(args[RATIOS] or "").strip(),
        region_base=base_share(args[BASE_RATIOS], settings.region_base),
    )


def arguments_of(body: Any) -> list:
    for name, script in body.alwayson_scripts.items():
        if name.lower() == REGIONAL_PROMPTER:
            args = script.get("args") if isinstance(script, dict) else script
            return args if isinstance(args, list) else []
    return []


def division_of(value: Any) -> str:
    """Returns the word that stands between regions."""
    name = str(value or "Columns").lower()
    if name in COLUMNS:
        return "ADDCOL"
    if name in ROWS:
        return "ADDROW"
    raise UserError(f"the division {str(value)[:50]!r} of the Regional Prompter is not supported here: use Columns.")


def words_for_breaks(prompt: str, division: str, use_base: bool, use_common: bool) -> str:
    """Returns a prompt whose parts BREAK divides with the words of regions in its place.

    >>> words_for_breaks("a garden BREAK a cat BREAK a dog", "ADDCOL", True, False)
    'a garden ADDBASE a cat ADDCOL a dog'
    """
    first, *rest = BREAK.split(prompt)
    leading = ["ADDBASE"] * use_base + ["ADDCOMM"] * use_common
    words = [*leading[: len(rest)], *[division] * max(0, len(rest) - len(leading))]
    return " ".join([first, *(f"{word} {text}" for word, text in zip(words, rest))])


def base_share(text: Any, default: float) -> float:
    """Returns the share of the base. Raises UserError where it is another one for each region, or no number."""
    given = {one.strip() for one in str(text or "").split(",") if one.strip()}
    if not given:
        return default
    try:
        (share,) = map(float, given)
    except ValueError:
        raise UserError(
            f"the base ratio {str(text)[:50]!r} of the Regional Prompter is not supported here: use one number."
        ) from None
    return share
