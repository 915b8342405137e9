"""Styles by name, from tables in the format of AUTOMATIC1111's webui: name, prompt, negative_prompt.

`{prompt}` in a style's prompt is replaced by the user's prompt; a style without it is appended after a comma.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from sd.checkpoints.discovery import OWN_DATA
from sd.prompts.regions import map_regions
from sd.utils.errors import UserError
from sd.utils.files import DATA

FOR_EMOJI = "emoji "  # prefix of the names of styles for the bundled model


class Style(NamedTuple):
    name: str
    prompt: str
    negative_prompt: str

    def apply(self, prompt: str, negative_prompt: str = "") -> tuple[str, str]:
        """Returns (prompt, negative prompt) in this style; each region of the prompt is in it."""
        styled = map_regions(prompt, lambda text: insert_text(self.prompt, text))
        return styled, insert_text(self.negative_prompt, negative_prompt)


def insert_text(style: str, text: str) -> str:
    """Returns a style's text with the user's text in it, or before it."""
    if "{prompt}" in style:
        return style.replace("{prompt}", text)
    return ", ".join(part for part in (text.strip(), style.strip()) if part)


def read_styles(folder: Path = DATA) -> dict[str, Style]:
    """Returns all styles of styles.csv, any styles-*.csv beside it and those in `data/` beside `weights/`, by name.

    Of equal names the last one counts.

    Raises UserError for a table that cannot be read.
    """
    found = {}
    folders = [folder, OWN_DATA] if folder == DATA else [folder]
    for path in [path for one in folders for name in ("styles.csv", "styles-*.csv") for path in sorted(one.glob(name))]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.DictReader(file):
                    style = Style(*(row.get(column) or "" for column in Style._fields))
                    found |= {style.name: style} if style.name else {}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"cannot read the styles in {path}: save it as CSV in UTF-8.") from error
    return found


def find_style(name: str, folder: Path = DATA) -> Style:
    """Returns the style of a name. Raises UserError, which lists the known names, for an unknown one."""
    styles = read_styles(folder)
    if name not in styles:
        raise UserError(f"unknown style {name!r}; choose from {', '.join(styles) or 'none, as there are no styles'}.")
    return styles[name]


def styles_for(emoji: bool, folder: Path = DATA) -> list[Style]:
    """Returns the styles that change a prompt, for the bundled model (`emoji`) or for all others."""
    return [
        style for style in read_styles(folder).values() if style.prompt and style.name.startswith(FOR_EMOJI) == emoji
    ]
