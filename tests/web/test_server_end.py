"""How the server ends: without a traceback, in seconds, and at once when it is told twice."""

import http.client
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from fake_jobs import job_events, make_counter
from web.test_server import APP, ENDLESS, SMALL, Running

from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import WorkerProcess

SECONDS = 45  # to end in, on a machine that does other things as well: 7 by itself; without the bounds, never


@contextmanager
def server(outdir, *flags):
    """With what it prints at its end in `process.communicate()`."""
    command = [sys.executable, str(APP), "--port", "0", "--outdir", str(outdir), *flags]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def open_page(running) -> http.client.HTTPConnection:
    """A connection that a page keeps open: events of a job without an end."""
    job = running.ask("POST", "/jobs", ENDLESS)[1]
    running.job(job["id"], "running")
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.request("GET", f"/jobs/{job['id']}/events")
    connection.getresponse().read(10)
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_traceback_while_a_page_is_open(tmp_path, how):
    with server(tmp_path) as running:
        page = open_page(running)
        began = time.monotonic()
        running.process.send_signal(how)
        printed, errors = running.process.communicate(timeout=60)
        assert time.monotonic() - began < SECONDS
        assert errors == ""
        assert printed == "ending; Ctrl-C again ends at once.\n"
        page.close()
    assert [job.state for job in Jobs(tmp_path / "jobs", lambda job, tell: {}).list()] == ["interrupted"]


@pytest.mark.slow
def test_the_second_ctrl_c_ends_it_at_once(tmp_path):
    with server(tmp_path) as running:
        page = open_page(running)
        running.process.send_signal(signal.SIGINT)
        assert running.process.stdout.readline().startswith("ending")
        running.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        errors = running.process.communicate(timeout=60)[1]
        assert time.monotonic() - began < 5  # not the seconds that the first one takes
        assert errors == ""
        page.close()


@pytest.mark.slow
def test_it_listens_on_another_loopback_address_and_knows_it(tmp_path):
    with server(tmp_path, "--listen", "127.0.0.2") as running:
        connection = http.client.HTTPConnection("127.0.0.2", running.port)
        connection.request("POST", "/jobs", json.dumps(SMALL), {"Origin": f"http://127.0.0.2:{running.port}"})
        assert connection.getresponse().status == 202
        connection.close()


def test_a_worker_that_is_idle_gives_its_memory_back_and_comes_again(tmp_path):
    worker = WorkerProcess(make_counter)
    first = worker.process.pid
    jobs = Jobs(tmp_path, worker)
    for _ in range(2):
        job = jobs.submit("count", {"steps": 2, "seconds": 0.01})
        assert list(job_events(jobs, job.id))[-1]["state"] == "done"
        jobs.free_memory()
        assert not worker.process.is_alive()
    assert worker.process.pid != first
    jobs.close()


def test_a_worker_at_a_job_stays(tmp_path):
    worker = WorkerProcess(make_counter)
    jobs = Jobs(tmp_path, worker)
    job = jobs.submit("count", {"steps": 10_000, "seconds": 0.01})
    for event in job_events(jobs, job.id):
        if event["event"]:
            break
    jobs.free_memory()
    assert worker.process.is_alive()
    jobs.cancel(job.id)
    assert list(job_events(jobs, job.id))[-1]["state"] == "cancelled"
    jobs.close()
