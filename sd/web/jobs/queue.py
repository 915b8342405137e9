"""Work that waits for its turn: one queue, and one worker for each device.

What is finished is read from the jobs' folders alone, so it survives the program and takes no memory.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sd.utils.errors import UserError
from sd.utils.files import remove_orphans
from sd.web.jobs.job import JOB_ID, Busy, Cancelled, Job, JobFailed, Missing, Skipped, explain, load_job, new_id

WAITING = 64  # jobs that may wait before the next is told "busy"
STOPPED = "the server was stopped before this job was finished: ask for it again."

Tell = Callable[[dict], None]
Run = Callable[[Job, Tell], dict]


class Jobs:
    """run: does one job, called as run(job, tell) in a thread of its own, and answers the job's `result`; several of
    them, one for each device, share the queue. It calls `tell` after each step with at least {"step", "steps"} over
    the whole job; `tell` raises Cancelled, once, to stop it. What `run` itself raises fails that job only.

    folder: where the jobs' folders lie. limit: how many may wait.
    """

    def __init__(self, folder: str | Path, run: Run | list[Run], limit: int = WAITING):
        self.folder, self.limit = Path(folder), limit
        self.changed = threading.Condition()
        self.waiting: list[Job] = []
        self.live: dict[str, Job] = {}  # queued or running
        self.asked: dict[str, type[Cancelled]] = {}  # what the running ones are to be stopped with
        self.watchers: dict[str, list[Callable[[], None]]] = {}
        self.closing = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark_interrupted()
        self.runs = run if isinstance(run, list) else [run]
        self.threads = [threading.Thread(target=self.work, args=[one], daemon=True) for one in self.runs]
        for thread in self.threads:
            thread.start()

    def mark_interrupted(self) -> None:
        """What an earlier program left unfinished."""
        for job in self.saved():
            if not job.has_ended:
                for folder in [job.folder, *(path for path in job.folder.rglob("*") if path.is_dir())]:
                    remove_orphans(folder)
                self.end(job, "interrupted", STOPPED)

    def saved(self) -> Iterator[Job]:
        """Those in the folder, newest first."""
        for folder in sorted(self.folder.iterdir(), reverse=True):
            try:
                yield self.get(folder.name)
            except Missing:  # not a job's folder, or its program was killed before the first line was written
                continue

    def submit(self, kind: str, request: dict, files: dict[str, bytes] | None = None) -> Job:
        """request: fit for JSON. files: what the job starts from, by name, kept in its folder. Raises Busy."""
        with self.changed:
            if self.closing:
                raise Busy("the server is about to end: ask again when it is back.")
            if len(self.waiting) >= self.limit:
                raise Busy(f"busy: {len(self.waiting)} jobs are waiting already; try again in a while.")
            id = new_id()
            job = Job(id, kind, request, self.folder / id)
            job.folder.mkdir()
            for name, data in (files or {}).items():
                (job.folder / name).write_bytes(data)
            job.save()
            self.live[id] = job
            self.waiting.append(job)
            self.changed.notify_all()
        return job

    def get(self, id: str) -> Job:
        """Raises Missing."""
        if job := self.live.get(id):
            return job
        if not JOB_ID.fullmatch(id):
            raise Missing("there is no such job.")
        return load_job(self.folder / id)

    def list(self, count: int = 100) -> list[Job]:
        """The newest, newest first."""
        return [job for job, _ in zip(self.saved(), range(count))]

    def current(self) -> Job | None:
        """The one that has been running for the longest time, if any is running."""
        running = [job for job in self.live.copy().values() if job.state == "running"]
        return min(running, key=lambda job: job.started, default=None)

    def ahead(self, job: Job) -> int:
        """How many wait before it."""
        with self.changed:
            return self.waiting.index(job) if job in self.waiting else 0

    def cancel(self, id: str, how: type[Cancelled] = Cancelled) -> Job:
        """Takes it from the queue, or stops it at the end of its step; one that has ended stays as it is."""
        with self.changed:
            job = self.get(id)
            if job in self.waiting:
                self.waiting.remove(job)
                self.end(job, "cancelled")
            elif job.id in self.live:
                self.asked[id] = how
        return job

    def skip(self, id: str) -> Job:
        """Leaves the picture that a running job is at and goes on with its next; one that waits stays as it is."""
        with self.changed:
            job = self.get(id)
            return job if job in self.waiting else self.cancel(id, Skipped)

    def forget(self, id: str, name: str) -> None:
        """Deletes one image of a job that has ended. Raises Missing, and UserError while the job goes on."""
        with self.changed:
            job = self.get(id)
            if not job.has_ended:
                raise UserError("this job is not finished: cancel it first, then delete its images.")
            job.forget(name)

    def before(self, job: Job) -> int:
        """How many have to end or to make progress before it has its turn: its place in the queue."""
        with self.changed:
            if job not in self.waiting:
                return 0
            return self.waiting.index(job) + sum(one.state == "running" for one in self.live.values())

    @contextmanager
    def watch(self, id: str, notify: Callable[[], None]) -> Iterator[None]:
        """While it lasts, `notify` is called, in any thread, at each change of the job."""
        with self.changed:
            self.watchers.setdefault(id, []).append(notify)
        try:
            yield
        finally:
            with self.changed:
                self.watchers[id].remove(notify)
                if not self.watchers[id]:
                    del self.watchers[id]

    def notify(self, job: Job) -> None:
        with self.changed:
            watchers = self.watchers.get(job.id, []).copy()
        for notify in watchers:
            notify()

    def now(self, id: str) -> tuple[dict, bool]:
        """(`Job.public`, whether the job has ended)"""
        job = self.get(id)
        ended = job.has_ended  # looked at first, so that what is told with it is the end
        return job.public(), ended

    def events(self, id: str) -> Iterator[dict]:
        """The job, as `Job.public` has it, as it is now and after each change until it has ended.

        Who reads slowly misses what was between, never the last. Raises Missing.
        """
        changed = threading.Event()
        with self.watch(id, changed.set):
            while True:
                changed.clear()
                told, ended = self.now(id)
                yield told
                if ended:
                    return
                changed.wait()

    async def changes(self, id: str) -> AsyncIterator[dict]:
        """As `events`, for coroutines."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        with self.watch(id, lambda: loop.call_soon_threadsafe(changed.set)):
            while True:
                changed.clear()
                told, ended = self.now(id)
                yield told
                if ended:
                    return
                await changed.wait()

    def work(self, run: Run) -> None:
        """A worker's thread: one job after another."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closing)
                if self.closing:
                    return
                job = self.waiting.pop(0)
                job.state, job.started = "running", time.time()
            self.do(run, job)

    def do(self, run: Run, job: Job) -> None:
        telling = Telling(self, job)
        try:
            job.save()
            self.notify(job)
            job.result = run(job, telling)
            state, error = ("cancelled" if telling.stopped else "done"), ""
        except Cancelled:
            state, error = "cancelled", ""
        except BaseException as failure:  # whatever it is, this job has failed and the next one comes
            state, (error, job.mendable) = "failed", explain(failure)
            if not job.mendable and not isinstance(failure, JobFailed):
                print(f"job {job.id} failed:\n{traceback.format_exc()}", file=sys.stderr)
        if state == "cancelled" and self.closing:
            state, error = "interrupted", STOPPED
        self.end(job, state, error)

    def end(self, job: Job, state: str, error: str = "") -> None:
        with self.changed:
            job.progress = 1.0 if state == "done" else job.progress
            job.error, job.ended, job.eta = error, time.time(), None
            job.state = state  # last, since others look at it without the lock
            self.asked.pop(job.id, None)
            try:
                job.save()
                self.live.pop(job.id, None)
            except OSError as full:  # the disk; the job is kept in memory instead
                print(f"cannot write the end of job {job.id}: {full.strerror}", file=sys.stderr)
        self.notify(job)

    def free(self) -> None:
        """Lets every worker that has nothing to do give its memory back until its next job."""
        for run in self.runs:
            if hasattr(run, "free"):
                run.free()

    def close(self, timeout: float = 10.0) -> None:
        """Stops the running jobs at the end of their step and takes no more.

        timeout: seconds to wait for all of them; those whose step takes longer end as interrupted nevertheless.
        """
        with self.changed:
            self.closing = True
            waiting, self.waiting = self.waiting, []
            for job in waiting:
                self.end(job, "interrupted", STOPPED)
            self.asked = dict.fromkeys(self.live, Cancelled)
            self.changed.notify_all()
        until = time.monotonic() + timeout
        for thread in self.threads:
            thread.join(max(until - time.monotonic(), 0))
        for job in list(self.live.values()):
            if not job.has_ended:
                self.end(job, "interrupted", STOPPED)


class Telling:
    """What a job's `run` is given as `tell`."""

    def __init__(self, jobs: Jobs, job: Job):
        self.jobs, self.job = jobs, job
        self.stopped = False
        self.first: tuple[float, float] | None = None  # (when, how far), so that loading a model counts for no step

    def __call__(self, event: dict) -> None:
        job, now = self.job, time.monotonic()
        if steps := event.get("steps"):
            job.progress = min(event.get("step", 0) / steps, 1.0)
            self.first = self.first or (now, job.progress)
            began, before = self.first
            if job.progress > before:
                job.eta = (now - began) / (job.progress - before) * (1 - job.progress)
        job.event = job.event | event
        self.jobs.notify(job)
        with self.jobs.changed:
            how = self.jobs.asked.pop(job.id, None)
        if how is not None:
            self.stopped = self.stopped or how is not Skipped
            raise how
