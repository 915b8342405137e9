"""A worker in another process: what ends it ends one job."""

import multiprocessing
import re
import sys

import pytest
from fake_jobs import job_events, make_counter

from sd.web.jobs.job import Job
from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import WorkerProcess, serve


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"), WorkerProcess(make_counter))
    yield jobs
    jobs.close()


def ended(jobs, request):
    job = jobs.submit("count", request)
    list(job_events(jobs, job.id))
    return jobs.get(job.id)


def test_it_tells_and_answers(jobs):
    job = jobs.submit("count", {"steps": 5, "seconds": 0.01})
    events = list(job_events(jobs, job.id))
    assert events[-1]["state"] == "done"
    assert events[-1]["event"] == {"step": 5, "steps": 5}
    assert (job.folder / "made.txt").read_text() == "5"


def test_cancelling_reaches_it_within_a_step(jobs):
    job = jobs.submit("count", {"steps": 10_000, "seconds": 0.01})
    for event in job_events(jobs, job.id):
        if event["event"]:
            jobs.cancel(job.id)
            reached = job.event["step"]
            break
    last = list(job_events(jobs, job.id))[-1]
    assert last["state"] == "cancelled"
    assert last["event"]["step"] <= reached + 1


def test_failures_keep_their_sentence(jobs):
    assert (ended(jobs, {"do": "user error"}).error, ended(jobs, {"do": "user error"}).user_error) == (
        "the apple is blue: paint it red.",
        True,
    )
    assert ended(jobs, {"do": "break"}).error == "the job failed by a mistake in this program: Odd: no such luck"


@pytest.mark.parametrize(
    ("do", "how"),
    [
        ("exit", r"crashed \(exit code 3\)"),
        pytest.param(
            "kill", "was killed, as systems do", marks=pytest.mark.skipif(sys.platform == "win32", reason="no signals")
        ),
    ],
)
def test_a_crash_fails_that_job_and_the_next_one_is_done(jobs, do, how):
    bad = jobs.submit("count", {"do": do})
    good = jobs.submit("count", {})
    list(job_events(jobs, bad.id))
    failed = jobs.get(bad.id)
    assert failed.state == "failed"
    assert re.search(how, failed.error)
    assert not failed.user_error
    list(job_events(jobs, good.id))
    assert jobs.get(good.id).state == "done"


def test_it_ends_silently_when_the_server_is_gone(tmp_path, capfd):
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=[theirs, make_counter])
    process.start()
    theirs.close()
    pipe.send(Job("20260101-000000-000000-0000", "count", {}, tmp_path))
    assert pipe.poll(60)  # it has told a step, which nobody reads any more: so does kill -9 of the server leave it
    pipe.close()
    process.join(60)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""
