"""A worker in a process of its own: what kills it (the kernel for want of memory, a driver, a fault in a library) ends
one job and not the server, and the server's thread never waits for the drawing's.
"""

import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from sd.utils.errors import UserError
from sd.web.jobs.job import Cancelled, Job, JobFailed, explain
from sd.web.jobs.queue import Run, Tell


class Isolated:
    """A `Run` that lets make(*args), itself a `Run`, do the jobs in another process: started at once, and again
    after it died.
    """

    def __init__(self, make: Callable[..., Run], *args: object):
        self.make, self.args = make, args
        self.busy = threading.Lock()
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA and locks that threads hold
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=[theirs, self.make, *self.args], daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the pipe's end

    def free(self) -> None:
        """Ends the process unless it is at a job, which gives back all of its memory, the GPU's too."""
        if self.busy.acquire(blocking=False):
            try:
                self.process.terminate()
                self.process.join()
                self.pipe.close()
            finally:
                self.busy.release()

    def __call__(self, job: Job, tell: Tell) -> dict:
        with self.busy:
            return self.do(job, tell)

    def do(self, job: Job, tell: Tell) -> dict:
        if not self.process.is_alive():
            self.start()
        try:
            self.pipe.send(job)
            return self.answer(tell)
        except (EOFError, OSError) as error:
            self.process.join()
            raise JobFailed(f"the worker {how_it_ended(self.process.exitcode)} in the middle of this job.") from error

    def answer(self, tell: Tell) -> dict:
        """Passes on what the worker tells, and to the worker what came of it, until the job has ended."""
        while True:
            what, *values = self.pipe.recv()
            if what == "result":
                return values[0]
            if what == "cancelled":
                raise Cancelled
            if what == "failed":
                sentence, mendable = values
                raise UserError(sentence) if mendable else JobFailed(sentence)
            try:
                tell(values[0])
            except Cancelled as how:
                self.pipe.send(type(how))
            else:
                self.pipe.send(None)


def how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, as systems do when memory runs out,"
    return f"crashed (exit code {code})"


def serve(pipe: Connection, make: Callable[..., Run], *args: object) -> None:
    """The worker's process: one job after another until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # if memory runs out, this process and not the server

    def tell(event: dict) -> None:
        pipe.send(["event", event])
        if how := pipe.recv():
            raise how

    with suppress(EOFError, ConnectionError):
        run = make(*args)
        while True:
            job = pipe.recv()
            try:
                answer = ["result", run(job, tell)]
            except (EOFError, ConnectionError):
                return
            except Cancelled:
                answer = ["cancelled"]
            except BaseException as failure:
                answer = ["failed", *explain(failure)]
                if not answer[2]:
                    print(f"job {job.id} failed:\n{traceback.format_exc()}", file=sys.stderr)
            pipe.send(answer)
