"""The queue, with a job that only counts: its life, cancelling, failing, and what is left after kill -9."""

import asyncio
import json
import subprocess
import sys
import threading

import fake_jobs
import pytest
from fake_jobs import count, job_events

import sd.web.jobs.job
from sd.web.jobs.job import Busy, Missing, load_job
from sd.web.jobs.queue import Jobs


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "jobs", count)
    yield jobs
    jobs.close()


def wait(jobs, job, state=None):
    """The job once it has ended, or once it is in `state`."""
    for event in job_events(jobs, job.id):
        if event["state"] == state:
            break
    return jobs.get(job.id)


def long_one(jobs, **more):
    """A job that is surely running, and takes for ever."""
    job = jobs.submit("count", {"steps": 10_000, "seconds": 0.01} | more)
    return wait(jobs, job, "running")


def test_a_job_from_beginning_to_end(jobs):
    job = jobs.submit("count", {"steps": 4}, {"image": b"bytes"})
    seen = list(job_events(jobs, job.id))
    assert seen[-1]["state"] == "done"
    assert seen[-1]["progress"] == 1
    assert seen[-1]["result"] == {"files": ["made.txt"], "skipped": 0}
    assert job.created <= job.started <= job.ended
    assert (job.folder / "image").read_bytes() == b"bytes"
    assert jobs.live == {}, "what has ended is on the disk, not in memory"
    assert jobs.watchers == {}


def test_its_file_says_the_same_as_the_job(jobs):
    job = jobs.submit("count", {"steps": 2})
    ended = wait(jobs, job)
    assert ended is not job, "read from the disk"
    assert ended.public() == job.public() == json.loads((job.folder / "job.json").read_text())


def test_progress_and_time_left(jobs):
    job = jobs.submit("count", {"steps": 5, "seconds": 0.05})
    events = [event for event in job_events(jobs, job.id) if event["state"] == "running" and event["event"]]
    progress = [event["progress"] for event in events]
    assert progress == sorted(progress)
    assert set(progress) <= {0.2, 0.4, 0.6, 0.8, 1.0}
    last = [event for event in events if event["progress"] == 0.8]
    # One step of at least 0.05 s is left; how slow the machine is nobody knows, so there is no upper bound to test.
    assert all(event["eta"] >= 0.045 for event in last)


def test_jobs_wait_for_their_turn(jobs):
    first = long_one(jobs)
    others = [jobs.submit("count", {}) for _ in range(3)]
    assert [jobs.ahead(job) for job in [first, *others]] == [0, 0, 1, 2]
    assert jobs.current() is first
    assert [job.id for job in jobs.list()] == sorted((job.id for job in [first, *others]), reverse=True)
    jobs.cancel(first.id)
    ended = [wait(jobs, job) for job in others]
    assert [job.state for job in ended] == ["done"] * 3
    assert ended[0].ended <= ended[1].started
    assert ended[1].ended <= ended[2].started


def test_a_full_queue_says_busy(tmp_path):
    jobs = Jobs(tmp_path, count, limit=2)
    first = long_one(jobs)
    waiting = [jobs.submit("count", {}) for _ in range(2)]
    with pytest.raises(Busy, match="2 jobs are waiting"):
        jobs.submit("count", {})
    assert len(list(tmp_path.iterdir())) == 3
    jobs.cancel(first.id)
    assert [wait(jobs, job).state for job in waiting] == ["done", "done"]
    jobs.close()


def test_cancelling_stops_at_the_end_of_the_step(jobs):
    job = long_one(jobs)
    before = job.event.get("step", 0)
    jobs.cancel(job.id)
    reached = job.event.get("step", 0)
    ended = wait(jobs, job)
    assert ended.state == "cancelled"
    assert before <= ended.event["step"] <= reached + 1
    assert not (job.folder / "made.txt").exists()


def test_what_a_cancelled_job_saved_is_its_result(jobs):
    job = long_one(jobs, keep=True)
    jobs.cancel(job.id)
    ended = wait(jobs, job)
    assert ended.state == "cancelled"
    assert ended.result["step"] == ended.event["step"]


def test_cancelling_what_waits_and_what_has_ended(jobs):
    first, second = long_one(jobs), jobs.submit("count", {})
    assert jobs.cancel(second.id).state == "cancelled"
    assert jobs.cancel(second.id).state == "cancelled"
    jobs.cancel(first.id)
    assert wait(jobs, first).state == "cancelled"
    assert wait(jobs, jobs.submit("count", {})).state == "done", "nothing of it is left for the next"


def test_skipping_goes_on(jobs):
    job = jobs.submit("count", {"steps": 100, "seconds": 0.01})
    wait(jobs, job, "running")
    jobs.skip(job.id)
    ended = wait(jobs, job)
    assert (ended.state, ended.result["skipped"]) == ("done", 1)


@pytest.mark.parametrize(
    ("do", "error", "user_error"),
    [
        ("user error", "the apple is blue: paint it red.", True),
        ("memory", "there was not enough memory: choose a smaller size or fewer images at once.", True),
        ("break", "the job failed by a mistake in this program: Odd: no such luck", False),
    ],
)
def test_a_failure_fails_that_job_only(jobs, do, error, user_error):
    bad, good = jobs.submit("count", {"do": do}), jobs.submit("count", {})
    failed = wait(jobs, bad)
    assert (failed.state, failed.error, failed.user_error) == ("failed", error, user_error)
    assert wait(jobs, good).state == "done"


def test_several_workers_share_the_queue(tmp_path):
    met = threading.Barrier(2, timeout=20)

    def meet(job, tell):
        met.wait()  # only if two run at once does this end
        return {}

    jobs = Jobs(tmp_path, [meet, meet])
    assert [wait(jobs, job).state for job in [jobs.submit("meet", {}) for _ in range(4)]] == ["done"] * 4
    jobs.close()


def test_coroutines_see_the_same(jobs):
    async def watch(job):
        return [event async for event in jobs.changes(job.id)]

    job = jobs.submit("count", {"steps": 3, "seconds": 0.01})
    assert asyncio.run(watch(job))[-1] == jobs.get(job.id).public()


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../jobs", "/etc", "20260101-000000-000000-000g", "20260101-000000-000000-0000\0"]
)
def test_only_an_id_is_looked_up(jobs, id):
    with pytest.raises(Missing):
        jobs.get(id)


def test_only_its_own_files_are_handed_out(jobs):
    job = wait(jobs, jobs.submit("count", {}, {"image": b"secret"}))
    assert job.file("made.txt").read_text() == "3"
    for name in ("job.json", "image", "../made.txt", "made.txt/", "", ".", "preview.png"):
        with pytest.raises(Missing):
            job.file(name)


def test_a_file_is_written_whole_or_not_at_all(jobs, monkeypatch):
    job = wait(jobs, jobs.submit("count", {}))
    monkeypatch.setattr(sd.web.jobs.job.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.save()
    assert load_job(job.folder).state == "done"


def test_a_full_disk_costs_no_worker(jobs, monkeypatch):
    monkeypatch.setattr(sd.web.jobs.job.Job, "save", full_disk)
    job = sd.web.jobs.job.Job(sd.web.jobs.job.new_id(), "count", {}, jobs.folder / "x")
    with jobs.changed:
        jobs.live[job.id] = job
        jobs.waiting.append(job)
        jobs.changed.notify_all()
    assert wait(jobs, job).state == "failed"
    monkeypatch.undo()
    assert wait(jobs, jobs.submit("count", {})).state == "done"


def full_disk(job):
    raise OSError(28, "No space left on device")


def test_closing_marks_what_was_not_finished(tmp_path):
    jobs = Jobs(tmp_path, count)
    running, waiting = long_one(jobs), jobs.submit("count", {})
    jobs.close()
    states = {job.id: job.state for job in Jobs(tmp_path, count).list()}
    assert states == {running.id: "interrupted", waiting.id: "interrupted"}
    with pytest.raises(Busy):
        jobs.submit("count", {})


def test_after_kill_9_results_are_there_and_the_rest_is_marked(tmp_path, capsys):
    program = fake_jobs.__file__
    with subprocess.Popen([sys.executable, program, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.kill()
    jobs = Jobs(tmp_path, count)
    waiting, running, done = jobs.list()
    assert [job.state for job in (done, running, waiting)] == ["done", "interrupted", "interrupted"]
    assert done.file("made.txt").read_text() == "3"
    assert "ask for it again" in running.error
    said = "note: 2 jobs were not finished when the server ended: finished images are kept.\n"
    assert capsys.readouterr().err == said
    assert wait(jobs, jobs.submit("count", {})).state == "done"
    jobs.close()


def test_what_is_no_job_is_passed_over(tmp_path, capsys):
    (tmp_path / "20260101-000000-000000-0000").mkdir()  # killed before its first line
    (tmp_path / "20260101-000000-000000-0001").mkdir()
    (tmp_path / "20260101-000000-000000-0001" / "job.json").write_text('{"half')
    (tmp_path / "notes.txt").write_text("mine")
    jobs = Jobs(tmp_path, count)
    assert jobs.list() == []
    assert capsys.readouterr().err == ""
    jobs.close()
