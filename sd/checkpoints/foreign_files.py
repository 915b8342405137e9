"""Untrusted files: limits on the cost of reading one, and one kind of error for every defect.

Every reader of such a file, whatever its format, does two things. It runs inside `reading(path)`, or is decorated with
`reads_file`, so that anything that goes wrong is one sentence. And it spends from a `Budget` before it allocates, so
that what a file costs is bounded by its size on disk.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from sd.utils.errors import NO_MEMORY, UserError, is_out_of_memory, os_error_message

COPIES = 4  # what copies of a file's parts may take, unpacked ones included, as a multiple of its size on disk
COPIES_OF_ANY = 1 << 24  # bytes that any file may take besides
MOST_COPIES = 1 << 34  # bytes that no file may exceed: a model with its EMA weights and its optimizer's state
LARGEST_JSON = 1 << 22  # bytes of a configuration
LONGEST_REASON = 200  # letters


class Budget:
    """The memory that reading one file may take beside the mapped file itself, in bytes."""

    def __init__(self, path: Path, size: int):
        self.path, self.left = path, min(COPIES * size + COPIES_OF_ANY, MOST_COPIES)

    def spend(self, size: int) -> None:
        """Subtracts `size` bytes, before they are allocated. Raises UserError where the budget is exceeded."""
        self.left -= size
        if self.left < 0:
            raise UserError(
                f"{self.path} is refused: it would take far more memory than a file of its size may need; download it "
                "again from a source that you trust."
            )


@contextmanager
def convert_errors(path: str | Path) -> Iterator[None]:
    """Turns every error of reading a file into a UserError of one sentence that names the file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise UserError(os_error_message(error)) from error
    except Exception as error:  # a damaged file raises nearly anything
        if is_out_of_memory(error):
            raise UserError(f"{path} cannot be read: {NO_MEMORY}") from error
        reason = next(iter(str(error).splitlines()), "")[:LONGEST_REASON] or type(error).__name__
        raise UserError(f"{path} is damaged or not what it should be ({reason}); download it again.") from error


def reads_file(read: Callable) -> Callable:
    """Decorates a function whose first parameter is the path of a file or folder: it runs inside `convert_errors`."""

    @functools.wraps(read)
    def wrapped(path, *args, **kwargs):
        with convert_errors(path):
            return read(path, *args, **kwargs)

    return wrapped


def read_json_file(path: Path) -> dict:
    """Returns a JSON file's object. Raises UserError where the file is missing, too large, or holds anything else."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):  # reading a pipe waits forever
            raise UserError(f"{path} is not a file: download the whole folder again.")
        if status.st_size > LARGEST_JSON:
            raise UserError(f"{path} is too large for a configuration: download it again.")
        with path.open("rb") as file:
            return parse_json_object(file.read(LARGEST_JSON + 1), path)
    except FileNotFoundError as error:
        raise UserError(f"file not found: {path}; download the whole folder again.") from error
    except OSError as error:
        raise UserError(os_error_message(error)) from error


def parse_json_object(text: str | bytes, path: Path) -> dict:
    """Returns the object in a JSON text; Infinity and NaN, which Python accepts and JSON does not, become None.

    path: the file that it stands in, for the message. Raises UserError where it holds anything else.
    """
    try:
        if len(text) > LARGEST_JSON:
            raise ValueError("too large")
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        found = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} does not contain valid JSON: download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a valid config file: download it again.")
    return found
