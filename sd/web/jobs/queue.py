"""The job queue, shared by one worker for each device.

Finished jobs are read from their folders, so they survive a restart and take no memory.
"""

import asyncio
import shutil
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sd.utils.errors import DiskError, UserError
from sd.web.jobs.job import (
    JOB_ID,
    Busy,
    Cancelled,
    Job,
    JobFailed,
    Missing,
    Skipped,
    disk_sentence,
    explain_failure,
    load_job,
    new_id,
)
from sd.web.jobs.recovery import clean_up

WAITING = 64  # jobs that may wait; the next one is refused as Busy
STOPPED = "the server was stopped before this job was finished: ask for it again."

Tell = Callable[[dict], None]
Run = Callable[[Job, Tell], dict]


class Jobs:
    """A queue of jobs and the threads that run them.

    folder: holds the jobs' folders. limit: how many jobs may wait.
    run: runs one job, called as run(job, tell) in a thread, and returns the job's `result`; a list of them, one for
    each device, shares the queue. It calls `tell` after each step with at least {"step", "steps"} of the whole job, and
    with {"result"} for what is finished; `tell` raises Cancelled, once, to stop it. An exception from `run` fails that
    job only.
    """

    def __init__(self, folder: str | Path, run: Run | Sequence[Run], limit: int = WAITING):
        self.folder, self.limit = Path(folder), limit
        self.changed = threading.Condition()
        self.waiting: list[Job] = []
        self.live: dict[str, Job] = {}  # queued or running
        self.stop_requests: dict[str, type[Cancelled]] = {}  # what stops a running job, by its id
        self.watchers: dict[str, list[Callable[[], object]]] = {}
        self.closing = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark_interrupted()
        self.runs = [run] if callable(run) else list(run)
        self.threads = [threading.Thread(target=self.run_worker, args=[one], daemon=True) for one in self.runs]
        for thread in self.threads:
            thread.start()

    def mark_interrupted(self) -> None:
        """Mark the jobs that an earlier server left unfinished, and print how many they are."""
        left = [job for job in self.saved() if not job.has_ended]
        for job in left:
            clean_up(job)
            self.finish(job, "interrupted", STOPPED)
        if left:
            jobs = "1 job was" if len(left) == 1 else f"{len(left)} jobs were"
            print(f"note: {jobs} not finished when the server ended: finished images are kept.", file=sys.stderr)

    def saved(self) -> Iterator[Job]:
        """Yield the jobs in the folder, newest first; none where the folder cannot be read."""
        try:
            names = sorted((entry.name for entry in self.folder.iterdir()), reverse=True)
        except OSError:
            return
        for name in names:
            try:
                yield self.get(name)
            except Missing:  # not a job's folder, a damaged one, or the server was killed before it wrote job.json
                continue

    def submit(self, kind: str, request: dict, files: dict[str, bytes] | None = None) -> Job:
        """Add a job to the queue. Raises Busy, and DiskError where the disk is full or cannot be written to.

        request: JSON values. files: the job's inputs by name, which are kept in its folder.
        """
        with self.changed:
            if self.closing:
                raise Busy("the server is shutting down: send the request again once it has restarted.")
            if len(self.waiting) >= self.limit:
                raise Busy(f"busy: {len(self.waiting)} jobs are waiting already; try again later.")
            id = new_id()
            job = Job(id, kind, request, self.folder / id)
            create_folder(job, files or {})
            self.live[id] = job
            self.waiting.append(job)
            self.changed.notify_all()
        return job

    def get(self, id: str) -> Job:
        """Return the job of that id. Raises Missing."""
        if job := self.live.get(id):
            return job
        if not JOB_ID.fullmatch(id):
            raise Missing("job not found.")
        return load_job(self.folder / id)

    def list(self, count: int = 100) -> list[Job]:
        """Return the newest jobs, newest first."""
        return [job for job, _ in zip(self.saved(), range(count))]

    def current(self) -> Job | None:
        """Return the job that has been running for the longest time, or None."""
        running = [job for job in self.live.copy().values() if job.state == "running"]
        return min(running, key=lambda job: job.started, default=None)

    def ahead(self, job: Job) -> int:
        """Return how many waiting jobs come before it."""
        with self.changed:
            return self.waiting.index(job) if job in self.waiting else 0

    def cancel(self, id: str, how: type[Cancelled] = Cancelled) -> Job:
        """Remove a job from the queue, or stop it after its current step; an ended job stays as it is."""
        with self.changed:
            job = self.get(id)
            if job in self.waiting:
                self.waiting.remove(job)
                self.finish(job, "cancelled")
            elif job.id in self.live:
                self.stop_requests[id] = how
        return job

    def skip(self, id: str) -> Job:
        """Skip the current image of a running job; a waiting job stays as it is."""
        with self.changed:
            job = self.get(id)
            return job if job in self.waiting else self.cancel(id, Skipped)

    def delete_image(self, id: str, name: str) -> None:
        """Delete an image of an ended job. Raises Missing, and UserError while the job is live."""
        with self.changed:
            job = self.get(id)
            if not job.has_ended:
                raise UserError("this job is not finished: cancel it first, then delete its images.")
            job.delete_image(name)

    def jobs_before(self, job: Job) -> int:
        """Return how many waiting and running jobs come before it: its place in the queue."""
        with self.changed:
            if job not in self.waiting:
                return 0
            return self.waiting.index(job) + sum(one.state == "running" for one in self.live.values())

    @contextmanager
    def watch(self, id: str, notify: Callable[[], object]) -> Iterator[None]:
        """Call `notify`, in any thread, at each change of the job while the context lasts."""
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

    def snapshot(self, id: str) -> tuple[dict, bool]:
        """Return `Job.public` and whether the job has ended. Raises Missing."""
        job = self.get(id)
        ended = job.has_ended  # read first, so that a snapshot with it is the final one
        return job.public(), ended

    async def changes(self, id: str) -> AsyncIterator[dict]:
        """Yield `Job.public` now and after each change until the job has ended. Raises Missing.

        A slow reader misses changes in between, never the last one.
        """
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        with self.watch(id, lambda: loop.call_soon_threadsafe(changed.set)):
            while True:
                changed.clear()
                snapshot, ended = self.snapshot(id)
                yield snapshot
                if ended:
                    return
                await changed.wait()

    def run_worker(self, run: Run) -> None:
        """Run one job after another; the body of a worker's thread."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closing)
                if self.closing:
                    return
                job = self.waiting.pop(0)
                job.state, job.started = "running", time.time()
            self.run_job(run, job)

    def run_job(self, run: Run, job: Job) -> None:
        reporter = ProgressReporter(self, job)
        try:
            job.save()
            self.notify(job)
            job.result = run(job, reporter) or job.result
            state, error = ("cancelled" if reporter.stopped else "done"), ""
        except Cancelled:
            state, error = "cancelled", ""
        except BaseException as failure:  # any failure ends this job only
            state, (error, job.user_error, job.disk_error) = "failed", explain_failure(failure)
            if not (job.user_error or job.disk_error or isinstance(failure, JobFailed)):
                print(f"job {job.id} failed:\n{traceback.format_exc()}", file=sys.stderr)
            clean_up(job)  # after a worker that was killed
        if state == "cancelled" and self.closing:
            state, error = "interrupted", STOPPED
        self.finish(job, state, error)

    def finish(self, job: Job, state: str, error: str = "") -> None:
        with self.changed:
            job.progress = 1.0 if state == "done" else job.progress
            job.error, job.ended, job.eta = error, time.time(), None
            job.state = state  # last, since it is read without the lock
            self.stop_requests.pop(job.id, None)
            self.live.setdefault(job.id, job)
            self.save_ended()
        self.notify(job)

    def save_ended(self) -> None:
        """Write the ends of jobs; where the disk is full they stay in memory until there is room."""
        for job in [one for one in self.live.values() if one.has_ended]:
            try:
                job.folder.mkdir(parents=True, exist_ok=True)  # where it was deleted
                job.save()
                del self.live[job.id]
            except OSError as error:
                print(f"cannot write the end of job {job.id}: {error.strerror}", file=sys.stderr)

    def free_memory(self) -> None:
        """Let every idle worker release its memory until its next job."""
        for run in self.runs:
            if hasattr(run, "free_memory"):
                run.free_memory()

    def close(self, timeout: float = 10.0) -> None:
        """Stop the running jobs after their current step and refuse new ones.

        timeout: seconds to wait for all jobs; those whose step takes longer end as interrupted as well.
        """
        with self.changed:
            self.closing = True
            waiting, self.waiting = self.waiting, []
            for job in waiting:
                self.finish(job, "interrupted", STOPPED)
            self.stop_requests = dict.fromkeys(self.live, Cancelled)
            self.changed.notify_all()
        until = time.monotonic() + timeout
        for thread in self.threads:
            thread.join(max(until - time.monotonic(), 0))
        for job in list(self.live.values()):
            if not job.has_ended:
                self.finish(job, "interrupted", STOPPED)


def create_folder(job: Job, files: dict[str, bytes]) -> None:
    """Write a new job's folder. Raises DiskError, and then leaves nothing."""
    try:
        job.folder.mkdir(parents=True)
        for name, data in files.items():
            (job.folder / name).write_bytes(data)
        job.save()
    except OSError as error:
        shutil.rmtree(job.folder, ignore_errors=True)
        raise DiskError(disk_sentence(error), error) from error


class ProgressReporter:
    """The `tell` of one job: it records progress and finished results, and raises what stops the job.

    An event {"result": ...} is what there is of the result so far, which a kill of the worker or the server must not
    lose; it stops nothing.
    """

    def __init__(self, jobs: Jobs, job: Job):
        self.jobs, self.job = jobs, job
        self.stopped = False
        self.first: tuple[float, float] | None = (
            None  # (time, progress) of the first step, so that loading a model is not counted
        )

    def __call__(self, event: dict) -> None:
        job, now = self.job, time.monotonic()
        if "result" in event:
            self.record(event["result"])
            return
        if steps := event.get("steps"):
            job.progress = min(event.get("step", 0) / steps, 1.0)
            self.first = self.first or (now, job.progress)
            began, before = self.first
            if job.progress > before:
                job.eta = (now - began) / (job.progress - before) * (1 - job.progress)
        job.event = job.event | event
        self.jobs.notify(job)
        with self.jobs.changed:
            how = self.jobs.stop_requests.pop(job.id, None)
        if how is not None:
            self.stopped = self.stopped or how is not Skipped
            raise how

    def record(self, result: dict) -> None:
        self.job.result = result
        with suppress(OSError):  # the end of the job is written as well, and says what is wrong
            self.job.save()
        self.jobs.notify(self.job)
