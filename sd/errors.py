"""Mistakes that a user can mend.

Everything a user can get wrong raises a `UserError` whose text is one plain sentence: what is wrong and what to do.
The scripts print that sentence and exit with code 2; anything else that escapes is a bug of ours, with its traceback.
"""

import functools
import sys


class UserError(ValueError):
    """One sentence for the person at the keyboard: what is wrong, and what to do about it."""


NO_MEMORY = "there was not enough memory: ask for a smaller size or for fewer pictures at once."


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, the one of a GPU, and the one of PyTorch on a CPU, which is any RuntimeError but for its text."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def plain_errors(main):
    """Wrap a script's `main`: a `UserError` becomes its sentence on stderr and exit code 2, Ctrl-C exit code 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"error: {NO_MEMORY}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped.", file=sys.stderr)
            sys.exit(130)

    return wrapped
