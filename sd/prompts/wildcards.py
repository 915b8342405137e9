"""Wildcards: random choices in a prompt, in the syntax of the webui's dynamic-prompts:

    __animal__       one line of animal.txt; __mine/hats__ is the file mine/hats.txt
    {red|dark blue}  one of these

The files are those of `sd/data/wildcards` and the user's own, of `data/wildcards` beside `weights/`, which count first.
Both may be nested, and may occur in the lines of the files. The rest of the grammar, such as {2$$a|b|c}, weights,
variables and __wild*cards__, is read by its own library, `dynamicprompts`, where that is installed.
"""

import functools
import logging
import random
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sd.checkpoints.discovery import OWN_DATA
from sd.prompts.weighting import MAX_CHARACTERS
from sd.utils.errors import UserError
from sd.utils.files import DATA

WILDCARDS = DATA / "wildcards"
OWN_WILDCARDS = OWN_DATA / "wildcards"
WILDCARD = re.compile(r"__([\w/.-]+?)__")
BRACES = re.compile(r"\{([^{}]*)\}")  # the innermost ones
COMMENT = re.compile(r"^[ \t]*#[ \t][^\n]*\n?", re.MULTILINE)
# The syntax that only the library reads: how many ({2$$, {1-2$$), weights ({2::a|b}), ways to choose ({@a|b}),
# variables (${a=b}), wraps (%{...$$...}), and names with *, ?, [..], a way to choose or variables in them. A name has a
# bound, because underscores are letters too: without it a prompt of underscores takes seconds.
LIBRARY_SYNTAX = re.compile(
    r"\{\s*(?:[~!@]\s*)?(\d+|\d*-\d*)\s*\$\$|[{|]\s*(?:\d+(?:\.\d+)?|\.\d+)\s*::|\{\s*[~!@][^{}]*\||\$\{\s*[\w-]+\s*[?=:}]|%\{[^{}]*\$\$"
    r"|__[~!@][\w/.*-]{1,200}?__|__[\w/.-]{0,200}[*?\[][\w/.*?\[\]-]{0,200}__"
    r"|__[\w/.-]{1,200}\([^()\n=]*=[^()\n]*\)__"
)
ORDERED = re.compile(r"(\{\s*|__)[@!](?=[^\s{}|]|\d)")
MAX_ROUNDS = 20  # how deep files may refer to files
ENDLESS = "the wildcards in {!r} never end: shorten it, or correct the file that names itself."


def expand_wildcards(prompt: str, seed: int, folder: Path = WILDCARDS) -> str:
    """Returns the prompt with every choice made by `seed`; equal seeds choose the same on every machine.

    Raises UserError for a name without a file, with the names that exist, for files that refer to themselves, and for
    syntax that cannot be read. Comment lines, "# ...", are removed from a prompt of several lines.
    """
    chance = random.Random(seed)
    prompt = COMMENT.sub("", prompt) if "\n" in prompt else prompt

    def one_of(options: list[str]) -> str:
        return options[int(chance.random() * len(options))]  # Python promises never to change random()

    lines = functools.cache(lambda name: read_lines(name, folder))
    original = prompt
    for _ in range(MAX_ROUNDS):
        if LIBRARY_SYNTAX.search(prompt):
            return expand_by_library(original, seed, folder)
        prompt = choose_variants(prompt, one_of)
        if not WILDCARD.search(prompt):
            return prompt
        prompt = WILDCARD.sub(lambda match: one_of(lines(match[1])), prompt)
        if len(prompt) > MAX_CHARACTERS:
            break
    raise UserError(ENDLESS.format(original[:60]))


def expand_by_library(prompt: str, seed: int, folder: Path) -> str:
    """Expands by `dynamicprompts`, with the files as read here. Raises UserError where it is missing or cannot read it.

    Its ordered choices, {@a|b} and {!a|b}, run over many prompts; here each image chooses by its own seed.
    """
    try:
        from dynamicprompts.generators import RandomPromptGenerator
        from dynamicprompts.wildcards import WildcardManager
    except ImportError as error:
        raise UserError(
            f"{prompt[:60]!r} needs dynamic-prompts: install it by pip install -r requirements-prompts.txt."
        ) from error
    logging.getLogger("dynamicprompts").setLevel(logging.ERROR)  # its warnings are errors here
    manager = WildcardManager(root_map={"": [readable_files(folder)]})
    manager.dedup_wildcards = manager.sort_wildcards = False  # a repeated line is twice as likely
    try:
        made = RandomPromptGenerator(manager, seed=seed).generate(ORDERED.sub(r"\1~", prompt))
    except RecursionError as error:
        raise UserError(ENDLESS.format(prompt[:60])) from error
    except Exception as error:  # its parser's errors, and those for undefined variables
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{prompt[:60]!r} is not valid dynamic-prompts syntax: {reason[:200]}.") from error
    made = made[0] if made else ""
    if missing := re.search(r"__([^\s_][^\n]*?)__", made):
        read_lines(missing[1], folder)
        raise UserError(f"__{missing[1]}__ never ends: correct the file that names itself.")
    return made


def readable_files(folder: Path) -> dict[str, list[str]]:
    """Returns the lines of every file that can be read."""
    lines = {}
    for name in wildcard_files(folder):
        with suppress(UserError):  # reported where its name is used
            lines[name] = read_lines(name, folder)
    return lines


def choose_variants(prompt: str, one_of: Callable[[list[str]], str]) -> str:
    """Replaces braces from the inside out; those without a | stay as they are."""
    while True:
        before = prompt
        prompt = BRACES.sub(lambda match: one_of(match[1].split("|")) if "|" in match[1] else match[0], prompt)
        if prompt == before:
            return prompt


def wildcard_files(folder: Path = WILDCARDS) -> dict[str, Path]:
    """Returns every file by the name that prompts use. Only these are ever read: a name is not a path."""
    folders = [folder, OWN_WILDCARDS] if folder == WILDCARDS else [folder]
    return {
        path.relative_to(one).with_suffix("").as_posix(): path for one in folders for path in sorted(one.rglob("*.txt"))
    }


def read_lines(name: str, folder: Path = WILDCARDS) -> list[str]:
    """Returns the choices of one file, without empty lines and those that begin with #. Never empty."""
    files = wildcard_files(folder)
    if name not in files:
        raise UserError(
            f"unknown wildcard __{name}__; choose from {', '.join(files) or 'none, as there are no files'}."
        )
    try:
        lines = [line.strip() for line in files[name].read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the wildcard file {files[name]}: save it as UTF-8 text.") from error
    choices = [line for line in lines if line and not line.startswith("#")]
    if not choices:
        raise UserError(f"the wildcard file {files[name]} is empty: write one choice per line.")
    return choices
