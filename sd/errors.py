"""Mistakes that a user can mend.

Everything a user can get wrong raises a `UserError` whose text is one plain sentence: what is wrong and what to do.
The scripts print that sentence and exit with code 2; anything else that escapes is a bug of ours, with its traceback.
"""

import functools
import sys


class UserError(ValueError):
    """One sentence for the person at the keyboard: what is wrong, and what to do about it."""


def plain_errors(main):
    """Wrap a script's `main`: a `UserError` becomes its sentence on stderr and exit code 2, Ctrl-C exit code 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
            sys.exit(130)

    return wrapped
