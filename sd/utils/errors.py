"""UserError, for problems that the user can fix, and the exit codes of the scripts.

Everything that a user can get wrong raises a `UserError`. Its message is one sentence: what is wrong, how to fix it.
The scripts print it and exit with code 2; they do the same if the system denies a file or has no memory left. Any other
exception is a bug of the program and keeps its traceback.
"""

import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # line breaks, and what a terminal would obey
LONGEST = 2000  # letters of a message


class UserError(ValueError):
    """An error caused by user input. The message is one sentence: what is wrong and how to fix it.

    Names and values out of strangers' files may be in it: control characters are escaped, and of a message of over
    LONGEST letters the middle is left out.
    """

    def __init__(self, message: str = ""):
        text = CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], str(message))
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}")


class SettingError(UserError):
    """A setting has a value that cannot be used. setting: its name. rule: what follows it, "must be ..., not ..."."""

    def __init__(self, setting: str, rule: str):
        super().__init__(f"{setting} {rule}.")
        self.setting, self.rule = setting, rule

    def __reduce__(self) -> tuple:
        return type(self), (self.setting, self.rule)  # as it is sent between processes

    def renamed(self, names: Mapping[str, str]) -> "SettingError":
        """Return it with the name that the setting has elsewhere, if it is in `names`."""
        return type(self)(names.get(self.setting, self.setting), self.rule)


class DiskError(UserError):
    """A file could not be written: the disk is full, read-only or gone. reason: the system's error."""

    def __init__(self, message: str, reason: OSError):
        super().__init__(message)
        self.is_full = reason.errno in (errno.ENOSPC, errno.EDQUOT)


NO_MEMORY = "there was not enough memory: choose a smaller size or fewer images at once."
NO_UTF8 = "the locale has no UTF-8, so {!r} cannot be written there: set LC_ALL=C.UTF-8, or use plain letters."
flag_names: dict[str, str] = {}  # of the settings, in the script that runs
STOPPED, NO_READER = 130, 141  # exit codes, as shells report SIGINT and SIGPIPE
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
    """Return whether an error means that memory ran out: Python's, a GPU's, or PyTorch's on a CPU.

    The last is a plain RuntimeError, which only its text tells from others.
    """
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def os_error_message(error: OSError) -> str:
    """Return one sentence for an error of the operating system: the file, the reason, and a remedy."""
    what = "a file" if error.filename is None else os.fsdecode(error.filename)
    remedy = REMEDIES.get(error.errno, "check the path and the disk")
    return f"{what} cannot be read or written: {error.strerror or error}; {remedy}."


def plain_errors(main):
    """Wrap a script's `main`, so that a user's error is one sentence on stderr with exit code 2, and Ctrl-C code 130.

    If nothing reads the output any more (`| head -1`), the script ends without a message.
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
                exit_process(STOPPED, "stopped.")
            except Exception as error:
                if is_without_reader(error):
                    exit_process(NO_READER)
                if isinstance(error, SettingError):
                    error = error.renamed(flag_names)
                if isinstance(error, UserError):
                    exit_process(2, f"error: {error}")
                if isinstance(error, UnicodeEncodeError) and error.encoding != "utf-8":  # of a path
                    exit_process(2, f"error: {NO_UTF8.format(error.object[:200])}")
                if isinstance(error, (MemoryError, RuntimeError, OSError)) and is_out_of_memory(error):
                    exit_process(2, f"error: {NO_MEMORY}")
                if isinstance(error, OSError):
                    exit_process(2, f"error: {os_error_message(error)}")
                raise

    return wrapped


@contextmanager
def plain_imports() -> Iterator[None]:
    """Make Ctrl-C end a script without a traceback while it imports PyTorch and the rest, which takes seconds."""
    try:
        yield
    except KeyboardInterrupt:
        exit_process(STOPPED, "stopped.")


def name_settings(flags: Mapping[str, str]) -> None:
    """Let `plain_errors` name settings as the command line does. flags: by the settings' names."""
    flag_names.clear()
    flag_names.update(flags)


def is_without_reader(error: BaseException | None) -> bool:
    """Return whether an error is a broken pipe, or was raised from one."""
    return error is not None and (isinstance(error, BrokenPipeError) or is_without_reader(error.__cause__))


def exit_process(code: int, words: str = "") -> None:
    """Exit with a code, after a message on stderr if there is one."""
    if words:
        with suppress(OSError):
            print(words, file=sys.stderr)
    try:
        flush_output()
    except OSError:  # Python would try again at exit, and print a traceback
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def flush_output() -> None:
    """Write out what stdout still buffers."""
    if sys.stdout is not None:  # closed, as by `>&-`
        sys.stdout.flush()


def print_any_text() -> None:
    """Let stdout and stderr print characters that the terminal cannot encode as escape codes, rather than raise."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def hurried_by_a_second_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt, so that open files are finished, and let a second one kill."""
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
