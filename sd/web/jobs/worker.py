"""A worker in a process of its own: a crash (out of memory, a driver, a library) ends one job and not the server, and
the server's threads never wait for the computation.
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
from typing import TYPE_CHECKING, Any

from sd.web.jobs.job import GENERATE, LOOK, TRAIN, UPSCALE, Cancelled, Failure, Job, JobFailed, explain_failure
from sd.web.jobs.queue import Run, Tell

if TYPE_CHECKING:
    from sd.web.jobs.generate import ImageGenerator


class JobRunner:
    """A `Run` for jobs of every kind, on one device, which share the generator's loaded checkpoint."""

    def __init__(self, generator: "ImageGenerator"):
        from sd.web.jobs.finetune import FineTuner  # with PyTorch, which the server's side of a worker does without
        from sd.web.jobs.look import TraceRecorder
        from sd.web.jobs.upscale import UpscaleRunner

        self.runs: dict[str, Run] = {
            GENERATE: generator,
            LOOK: TraceRecorder(generator),
            TRAIN: FineTuner(generator),
            UPSCALE: UpscaleRunner(generator),
        }

    def __call__(self, job: Job, tell: Tell) -> dict:
        return self.runs[job.kind](job, tell)


class WorkerProcess:
    """A `Run` that runs the jobs with make(*args), itself a `Run`, in another process.

    The process starts at once, and again after it has died.
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
        theirs.close()  # so that the pipe ends when the process dies

    def free_memory(self) -> None:
        """End the process unless it runs a job, which releases all of its memory, the GPU's too."""
        if self.busy.acquire(blocking=False):
            try:
                self.process.terminate()
                self.process.join()
                self.pipe.close()
            finally:
                self.busy.release()

    def __call__(self, job: Job, tell: Tell) -> dict:
        with self.busy:
            return self.run_job(job, tell)

    def run_job(self, job: Job, tell: Tell) -> dict:
        if not self.process.is_alive():
            self.start()
        try:
            self.pipe.send(job)
            return self.receive_result(tell)
        except (EOFError, OSError) as error:
            self.process.join()
            raise JobFailed(f"the worker {describe_exit(self.process.exitcode)} in the middle of this job.") from error

    def receive_result(self, tell: Tell) -> dict:
        """Pass the worker's events to `tell`, and to the worker how to stop, until the job has ended."""
        while True:
            what, *values = self.pipe.recv()
            if what == "result":
                return values[0]
            if what == "cancelled":
                raise Cancelled
            if what == "failed":
                raise Failure(*values).to_exception()
            try:
                tell(values[0])
            except Cancelled as how:
                self.pipe.send(type(how))
            else:
                self.pipe.send(None)


def describe_exit(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, as systems do when memory runs out,"
    if code == -getattr(signal, "SIGBUS", 0):  # a page of a mapped file that is not there any more
        return "ended because a model's file changed while it was in use (replace such files by renaming)"
    return f"crashed (exit code {code})"


def serve(pipe: Connection, make: Callable[..., Run], *args: object) -> None:
    """Run one job after another until the server is gone; the body of the worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # the kernel kills this process before the server

    def tell(event: dict) -> None:
        pipe.send(["event", event])
        if how := pipe.recv():
            raise how

    with suppress(EOFError, ConnectionError):
        run = make(*args)
        while True:
            job = pipe.recv()
            try:
                answer: list[Any] = ["result", run(job, tell)]
            except (EOFError, ConnectionError):
                return
            except Cancelled:
                answer = ["cancelled"]
            except BaseException as failure:
                answer = ["failed", *explain_failure(failure)]
                if not any(answer[2:]):
                    print(f"job {job.id} failed:\n{traceback.format_exc()}", file=sys.stderr)
            pipe.send(answer)
