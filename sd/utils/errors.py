"""Mistakes that a user can mend, and the ends of a program.

Everything a user can get wrong raises a `UserError` whose text is one plain sentence: what is wrong and what to do.
The scripts print that sentence and exit with code 2, and so they do where the system refuses a file or has no memory;
anything else that escapes is a bug of ours, with its traceback.
"""

import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class UserError(ValueError):
    """One sentence for the person at the keyboard: what is wrong, and what to do about it."""


NO_MEMORY = "there was not enough memory: ask for a smaller size or for fewer pictures at once."
STOPPED, NO_READER = 130, 141  # exit codes: as shells give them for SIGINT and SIGPIPE
REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in your quota",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EMFILE: "close some programs, or raise the limit of open files",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, the one of a GPU, and the one of PyTorch on a CPU, which is any RuntimeError but for its text."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def refusal(error: OSError) -> str:
    """What the system refuses, as one sentence."""
    what = "a file" if error.filename is None else os.fsdecode(error.filename)
    remedy = REMEDIES.get(error.errno, "check the path and the disk")
    return f"{what} cannot be read or written: {error.strerror or error}; {remedy}."


def plain_errors(main):
    """Wrap a script's `main`: what a user can mend becomes a sentence on stderr and exit code 2, Ctrl-C exit code 130.

    Where nobody reads the output any more (`| head -1`), it ends without a word.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        print_any_text()
        with hurried_by_a_second_interrupt():
            try:
                try:
                    return main(*args, **kwargs)
                finally:
                    flush_output()
            except KeyboardInterrupt:
                leave(STOPPED, "stopped.")
            except Exception as error:
                if is_without_reader(error):
                    leave(NO_READER)
                if isinstance(error, UserError):
                    leave(2, f"error: {error}")
                if isinstance(error, (MemoryError, RuntimeError, OSError)) and is_out_of_memory(error):
                    leave(2, f"error: {NO_MEMORY}")
                if isinstance(error, OSError):
                    leave(2, f"error: {refusal(error)}")
                raise

    return wrapped


def is_without_reader(error: BaseException | None) -> bool:
    """A broken pipe, or what was made of one on its way."""
    return error is not None and (isinstance(error, BrokenPipeError) or is_without_reader(error.__cause__))


def leave(code: int, words: str = "") -> None:
    if words:
        with suppress(OSError):
            print(words, file=sys.stderr)
    try:
        flush_output()
    except OSError:  # Python would try again as it ends, and complain
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def flush_output() -> None:
    if sys.stdout is not None:  # closed, as by `>&-`
        sys.stdout.flush()


def print_any_text() -> None:
    """A character that the terminal cannot show, such as one of a file name that is not UTF-8, is printed as a code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def hurried_by_a_second_interrupt() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt, so that what is being written is finished; a second one kills."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(*_):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
