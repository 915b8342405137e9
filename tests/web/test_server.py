"""The program itself, with the bundled model and its worker in another process."""

import gc
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from web_client import opened

import sd.web.server
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs

APP = Path(__file__).resolve().parents[2] / "scripts" / "app.py"
SMALL = {"prompt": "a red apple", "steps": 2, "seed": 7}
ENDLESS = {"prompt": "a red apple", "steps": 1000, "num_images": 60}


class Running:
    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.port = int(process.stdout.readline().split()[1].rpartition(":")[2])

    def ask(self, method, path, body=None):
        """(status, answer)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content

    def job(self, id, *states):
        """The job once it is in one of these states."""
        while (job := self.ask("GET", f"/jobs/{id}")[1])["state"] not in states:
            time.sleep(0.02)
        return job

    def worker(self) -> int:
        """The process id of its worker."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")  # each lists those that it started
        children = [child for thread in threads for child in thread.read_text().split()]
        return next(int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())


def is_alive(pid: int) -> bool:
    """An ended process whose parent has not asked after it is still listed, as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def server(outdir, *flags):
    command = [sys.executable, str(APP), "--port", "0", "--outdir", str(outdir), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Running(process)
        finally:
            process.terminate()


def test_it_generates_with_nothing_but_the_bundled_model(tmp_path):
    with server(tmp_path) as running:
        status, answer = running.ask("POST", "/sdapi/v1/txt2img", SMALL | {"cfg_scale": 7.5, "sampler_name": "DDPM"})
        assert status == 200, answer
        alone = StableDiffusion.from_pretrained()("a red apple", steps=2, seed=7).images[0]
        assert opened(answer["images"][0]).tobytes() == alone.tobytes()
        answers = []
        endless = {"prompt": "a red apple", "steps": 1000, "batch_size": 60}
        waiting = threading.Thread(target=lambda: answers.append(running.ask("POST", "/sdapi/v1/txt2img", endless)))
        waiting.start()
        while running.ask("GET", "/sdapi/v1/progress")[1]["progress"] == 0:
            time.sleep(0.02)
        running.process.terminate()
        waiting.join()
    assert answers[0][0] == 503
    assert "the server was stopped" in answers[0][1]["detail"]
    jobs = Jobs(tmp_path / "jobs", lambda job, tell: {})
    assert [job.state for job in jobs.list()] == ["interrupted", "done"]


def test_it_does_not_open_itself(tmp_path):
    command = [sys.executable, str(APP), "--listen", "0.0.0.0", "--outdir", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --listen 0.0.0.0 admits other machines")
    assert not (tmp_path / "out").exists()


def test_it_computes_as_it_is_told(tmp_path):
    with server(tmp_path, "--precision", "bf16", "--optimize", "channels-last") as running:
        answer = running.ask("POST", "/sdapi/v1/txt2img", SMALL | {"cfg_scale": 7.5, "sampler_name": "DDPM"})[1]
    pipe = StableDiffusion.from_pretrained(dtype=torch.bfloat16)
    pipe.optimizations = ["channels-last"]
    alone = pipe("a red apple", steps=2, seed=7).images[0]
    assert opened(answer["images"][0]).tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--optimize", "turbo"], "unknown optimization 'turbo'"),
        (["--device", "cpu", "--optimize", "exact,graphs"], "compile is not supported on this device and dtype"),
        (["--device", "toaster"], "there is no device 'toaster': write cpu, cuda, cuda:1 or mps."),
    ],
)
def test_what_it_cannot_compute_with_it_says_before_it_starts(tmp_path, flags, sentence):
    args = sd.web.server.server_parser().parse_args([*flags, "--outdir", str(tmp_path)])
    with pytest.raises(UserError, match=re.escape(sentence)):
        sd.web.server.make_workers(args, Models(tmp_path, tmp_path, tmp_path))


def test_no_search_for_garbage_stops_the_answers(tmp_path, monkeypatch):
    """What is built before the first request is out of the collector's sight: a full collection has little to do."""
    seen = []
    monkeypatch.setattr(sd.web.server, "WorkerProcess", lambda *_: None)
    monkeypatch.setattr(sd.web.server.Server, "run", lambda server, sockets: seen.append(len(gc.get_objects())))
    try:
        sd.web.server.serve(sd.web.server.server_parser().parse_args(["--port", "0", "--outdir", str(tmp_path)]))
    finally:
        gc.unfreeze()
    everything = len(gc.get_objects())
    assert seen[0] < everything / 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the worker in /proc")
def test_kill_9_of_the_worker_and_of_the_server(tmp_path):
    with server(tmp_path) as running:
        done = running.job(running.ask("POST", "/jobs", SMALL)[1]["id"], "done")
        broken = running.ask("POST", "/jobs", ENDLESS)[1]
        running.job(broken["id"], "running")
        os.kill(running.worker(), signal.SIGKILL)
        broken = running.job(broken["id"], "failed")
        assert "was killed, as systems do when memory runs out" in broken["error"]

        after = running.job(running.ask("POST", "/jobs", SMALL)[1]["id"], "done")
        assert after["result"]["seeds"] == [7]
        unfinished = [running.ask("POST", "/jobs", ENDLESS)[1] for _ in range(2)]
        running.job(unfinished[0]["id"], "running")
        worker = running.worker()
        running.process.kill()
    images = {job["id"]: (tmp_path / "jobs" / job["id"] / "00000.png").read_bytes() for job in (done, after)}
    assert len(set(images.values())) == 1, "the same seed, the same image"
    deadline = time.monotonic() + 60
    while is_alive(worker):  # it ends by itself when it finds the server gone, at its next step
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.1)

    with server(tmp_path) as running:
        states = {job["id"]: job["state"] for job in running.ask("GET", "/jobs")[1]}
        expected = {done["id"]: "done", broken["id"]: "failed", after["id"]: "done"}
        assert states == expected | {job["id"]: "interrupted" for job in unfinished}
        for job in (done, after):
            assert running.ask("GET", f"/jobs/{job['id']}")[1] == job
            assert (tmp_path / "jobs" / job["id"] / "00000.png").read_bytes() == images[job["id"]]
        assert running.job(running.ask("POST", "/jobs", SMALL)[1]["id"], "done")
