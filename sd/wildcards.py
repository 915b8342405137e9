"""Chances in a prompt, written as the webui's dynamic-prompts writes them:

    __animal__       one line of data/wildcards/animal.txt; __mine/hats__ is the file mine/hats.txt there
    {red|dark blue}  one of these

Both may stand in each other, and in the lines of the files.
"""

import functools
import random
import re
from pathlib import Path

from sd.errors import UserError
from sd.prompt import MAX_CHARACTERS

WILDCARDS = Path(__file__).resolve().parents[1] / "data" / "wildcards"
WILDCARD = re.compile(r"__([\w/.-]+?)__")
BRACES = re.compile(r"\{([^{}]*)\}")  # the innermost ones
MAX_ROUNDS = 20  # how deep files may name files


def expand_wildcards(prompt: str, seed: int, folder: Path = WILDCARDS) -> str:
    """The prompt with every choice made by `seed`: equal seeds choose the same, on every machine.

    Raises UserError for a name without a file, which names those that there are, and for files without an end.
    """
    chance = random.Random(seed)

    def one_of(options: list[str]) -> str:
        return options[int(chance.random() * len(options))]  # random() is what Python promises never to change

    lines = functools.cache(lambda name: read_lines(name, folder))
    asked = prompt
    for _ in range(MAX_ROUNDS):
        prompt = choose_variants(prompt, one_of)
        if not WILDCARD.search(prompt):
            return prompt
        prompt = WILDCARD.sub(lambda match: one_of(lines(match[1])), prompt)
        if len(prompt) > MAX_CHARACTERS:
            break
    raise UserError(f"the wildcards in {asked[:60]!r} come to no end: shorten it, or mend the file that names itself.")


def choose_variants(prompt: str, one_of) -> str:
    """Braces from the inside out; those without a | stay as they are."""
    while True:
        before = prompt
        prompt = BRACES.sub(lambda match: one_of(match[1].split("|")) if "|" in match[1] else match[0], prompt)
        if prompt == before:
            return prompt


def wildcard_files(folder: Path = WILDCARDS) -> dict[str, Path]:
    """Every file by the name that a prompt gives it. Only these are ever read: a name is not a path."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.txt"))}


def read_lines(name: str, folder: Path = WILDCARDS) -> list[str]:
    """The choices of one file; empty lines and those that begin with # are none. Never empty."""
    files = wildcard_files(folder)
    if name not in files:
        raise UserError(f"there is no wildcard __{name}__: there are {', '.join(files) or 'none'}.")
    try:
        lines = [line.strip() for line in files[name].read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the wildcard file {files[name]}: save it as UTF-8 text.") from error
    choices = [line for line in lines if line and not line.startswith("#")]
    if not choices:
        raise UserError(f"the wildcard file {files[name]} is empty: write one choice a line.")
    return choices
