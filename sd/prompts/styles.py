"""Styles by name, from tables as AUTOMATIC1111's webui keeps them: name, prompt, negative_prompt.

`{prompt}` in a style's prompt is what the person asks for; a style without it stands behind, after a comma.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from sd.checkpoints.discovery import OWN_DATA
from sd.utils.errors import UserError
from sd.utils.files import DATA

FOR_EMOJI = "emoji "  # begins the names of those that are for the bundled model


class Style(NamedTuple):
    name: str
    prompt: str
    negative_prompt: str

    def apply(self, prompt: str, negative_prompt: str = "") -> tuple[str, str]:
        """(prompt, negative prompt) in this style."""
        return merge(self.prompt, prompt), merge(self.negative_prompt, negative_prompt)


def merge(style: str, text: str) -> str:
    if "{prompt}" in style:
        return style.replace("{prompt}", text)
    return ", ".join(part for part in (text.strip(), style.strip()) if part)


def read_styles(folder: Path = DATA) -> dict[str, Style]:
    """All styles of styles.csv, of any styles-*.csv beside it and of those in `data/` beside `weights/`, by name.

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
    """Raises UserError for an unknown name, which names those that there are."""
    styles = read_styles(folder)
    if name not in styles:
        raise UserError(f"there is no style {name!r}: there are {', '.join(styles) or 'none'}.")
    return styles[name]


def styles_for(emoji: bool, folder: Path = DATA) -> list[Style]:
    """Those that change a prompt, for the bundled model (`emoji`) or for all others."""
    return [
        style for style in read_styles(folder).values() if style.prompt and style.name.startswith(FOR_EMOJI) == emoji
    ]
