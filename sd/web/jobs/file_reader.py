"""Strangers' files are read in a process of their own, so that a file that crashes or hangs costs no server."""

import atexit
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sd.utils.errors import DiskError, UserError

PATIENCE = 60.0  # seconds for one file; the first one waits for the process to start as well


class FileReader:
    """Calls functions of a file in another process, which starts with the first call and again after its death.

    One file is read at a time. The process ends with this one.
    """

    def __init__(self, patience: float = PATIENCE):
        self.patience, self.lock = patience, threading.Lock()
        self.process: Any = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(*args), a function of a module's top level.

        args: the path of a model's file, or the bytes of an image and what else the function takes.
        Raises its UserError, and UserError where it dies or takes too long.
        """
        what, advice = "the image", "send another one"
        if isinstance(args[0], Path):
            what, advice = args[0].name, "move it out of the folder"
        with self.lock:
            if self.process is None or not self.process.is_alive():
                self.start()
            try:
                self.pipe.send((function, args))
                if not self.pipe.poll(self.patience):
                    self.stop()
                    raise UserError(f"{what} takes too long to read: {advice}.")
                error_class, value = self.pipe.recv()
            except (EOFError, OSError) as error:
                self.stop()
                raise UserError(f"{what} ended the process that read it: {advice}.") from error
        if error_class is None:
            return value
        raise error_class(value)

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=read_files, args=[theirs], daemon=True)
        self.process.start()
        theirs.close()
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None
            atexit.unregister(self.stop)


def read_files(pipe: Connection) -> None:
    """Answer one call after another until the server is gone; the body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this process first
    with suppress(EOFError, ConnectionError):
        while True:
            function, args = pipe.recv()
            try:
                answer: tuple[type[UserError] | None, Any] = None, function(*args)
            except DiskError as error:
                answer = UserError, str(error)
            except UserError as error:
                answer = type(error), str(error)
            except Exception as error:  # none is known; the server must not meet it
                traceback.print_exc()
                answer = UserError, f"the file cannot be read ({type(error).__name__})."
            pipe.send(answer)
