"""An argument parser whose errors are those of a script: one sentence, without the usage before it."""

import argparse
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from sd.utils.errors import UserError, name_settings

KINDS = {"int": "a whole number", "float": "a number"}
OTHERWISE = "see --help"


class ArgumentParser(argparse.ArgumentParser):
    """A parser that raises UserError for a wrong command line, and lets `plain_errors` name settings by its flags.

    The help keeps the lines of the description.
    """

    def __init__(self, **given: Any):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | given)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Return what argparse's own does."""
        named = [action for action in self._actions if action.option_strings]
        name_settings({action.dest: action.option_strings[0] for action in reversed(named)})
        return super().parse_known_args(*args, **kwargs)

    def error(self, message: str) -> Any:
        """Raise UserError in place of argparse's message."""
        raise UserError(f"{self.reworded(message)}; {OTHERWISE}.")

    def reworded(self, message: str) -> str:
        """Return argparse's message in this project's words, without a full stop; an unknown one as it is.

        >>> parser = ArgumentParser()
        >>> _ = parser.add_argument("--steps", "--ddim_steps", type=int)
        >>> parser.reworded("argument --steps/--ddim_steps: invalid int value: 'many'")
        "--steps must be a whole number, not 'many'"
        >>> parser.reworded("unrecognized arguments: --stesp 20")
        'unknown flag --stesp: the nearest is --steps'
        """
        for pattern, words in REWORDED.items():
            if match := re.fullmatch(pattern, message, re.DOTALL):
                return words(self, *match.groups())
        return message.rstrip(".")

    def about_unknown(self, argument: str) -> str:
        """Return a sentence on the first argument that no flag takes."""
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}: put a text with spaces in quotes"
        flag = argument.partition("=")[0]
        known = [one for action in self._actions for one in action.option_strings if action.help != argparse.SUPPRESS]
        nearest = get_close_matches(flag, known, n=1)
        return f"unknown flag {flag}" + "".join(f": the nearest is {one}" for one in nearest)


# argparse's messages, and what is said instead; a flag comes with its aliases, "--steps/--ddim_steps".
FLAG = r"argument ([^/\s:]+)[^\s:]*: "
REWORDED: dict[str, Callable[..., str]] = {
    r"unrecognized arguments: (\S+).*": lambda parser, first: parser.about_unknown(first),
    r"the following arguments are required: (.*)": lambda parser, names: f"missing {names}",
    FLAG + r"invalid (int|float) value: (.*)": lambda _, flag, kind, value: (
        f"{flag} must be {KINDS[kind]}, not {value}"
    ),
    FLAG + r"invalid choice: (.*) \(choose from (.*)\)": lambda _, flag, value, choices: (
        f"unknown {flag} {value}: choose from {choices.replace(chr(39), '')}"
    ),
    FLAG + r"expected one argument": lambda _, flag: f"{flag} needs a value",
    FLAG + r"expected (.*) arguments?": lambda _, flag, count: f"{flag} needs {count} values",
    FLAG + r"ignored explicit argument (.*)": lambda _, flag, value: f"{flag} takes no value, and {value} is given",
}
