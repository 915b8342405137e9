"""A disk that is full, read-only or gone; and what is on it is listed, whatever ended the job."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from conftest import fresh_copy
from fake_jobs import count, job_events, make_counter, make_dying
from PIL import Image
from web_client import Web

from sd.utils.errors import DiskError
from sd.utils.files import save_png
from sd.web.jobs.job import load_job
from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import WorkerProcess

REQUEST = {"prompt": "a", "steps": 1, "width": 64, "height": 64, "num_images": 3, "seed": 5}
INFOTEXT = "a red apple\nSteps: 1, Sampler: Euler, CFG scale: 7, Seed: 42, Size: 64x64"


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "jobs", count)
    yield jobs
    jobs.close()


@pytest.fixture
def web(tmp_path, made_once):
    web = Web(tmp_path, fresh_copy(made_once[4]))
    yield web
    web.jobs.close()


def ended(jobs, job):
    list(job_events(jobs, job.id))
    return jobs.get(job.id)


def fail_at(monkeypatch, name: str, call: int, number: int = errno.ENOSPC) -> None:
    """From that call on, Path's method of that name fails as on a full disk."""
    real, calls = getattr(Path, name), iter(range(10**6))

    def fail(path, *args, **kwargs):
        if next(calls) < call:
            return real(path, *args, **kwargs)
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, name, fail)


@pytest.mark.parametrize(
    ("name", "call"), [("mkdir", 0), ("write_bytes", 0), ("write_bytes", 1), ("write_text", 0), ("replace", 0)]
)
def test_a_job_that_cannot_be_stored_leaves_nothing_and_the_next_one_works(jobs, monkeypatch, name, call):
    fail_at(monkeypatch, name, call)
    with pytest.raises(DiskError, match=r"\(No space left on device\): make room on that disk") as caught:
        jobs.submit("count", {}, {"image": b"bytes", "mask": b"bytes"})
    assert caught.value.is_full
    assert str(jobs.folder) not in str(caught.value)
    monkeypatch.undo()
    assert list(jobs.folder.iterdir()) == []
    assert ended(jobs, jobs.submit("count", {}, {"image": b"bytes"})).state == "done"


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EROFS, 503)])
def test_a_request_is_answered_in_one_sentence(web, monkeypatch, number, status):
    for path in ("/jobs", "/sdapi/v1/txt2img"):
        with monkeypatch.context() as patch:
            fail_at(patch, "write_text", 0, number)
            answer = web.client.post(path, json=REQUEST if path == "/jobs" else {"prompt": "a", "steps": 1})
        assert answer.status_code == status
        assert answer.json()["detail"].startswith("the server could not read or write one of its files (")
    assert web.ended(web.client.post("/jobs", json=REQUEST).json())["state"] == "done"


def full_after_one_image(monkeypatch):
    def save(image, folder, *args, **kwargs):
        if list(Path(folder).glob("*.png")):
            error = OSError(errno.ENOSPC, "No space left on device")
            raise DiskError("cannot save in outputs (No space left on device): choose another folder.", error)
        return save_png(image, folder, *args, **kwargs)

    monkeypatch.setattr("sd.web.jobs.generate.save_png", save)


def test_the_images_before_the_disk_was_full_are_listed(web, monkeypatch):
    full_after_one_image(monkeypatch)
    job = web.ended(web.client.post("/jobs", json=REQUEST).json())
    assert (job["state"], job["disk_error"], job["mendable"]) == ("failed", True, False)
    assert job["error"] == "cannot save in outputs (No space left on device): choose another folder."
    assert job["result"]["files"] == job["result"]["images"] == ["00000.png"]
    assert job["result"]["seeds"] == [5]
    assert web.client.get(f"/jobs/{job['id']}/files/00000.png").status_code == 200
    answer = web.client.post("/sdapi/v1/txt2img", json={"prompt": "a", "steps": 1, "batch_size": 2})
    assert answer.status_code == 507
    monkeypatch.undo()
    assert web.ended(web.client.post("/jobs", json=REQUEST).json())["state"] == "done"


def test_an_end_that_cannot_be_written_is_written_once_there_is_room(jobs, monkeypatch):
    first = jobs.submit("count", {"steps": 100, "seconds": 0.01})
    fail_at(monkeypatch, "write_text", 0)
    assert ended(jobs, first).state in ("done", "failed")
    assert first.id in jobs.live
    monkeypatch.undo()
    assert ended(jobs, jobs.submit("count", {})).state == "done"
    assert first.id not in jobs.live
    assert load_job(first.folder).has_ended


def test_a_job_whose_folder_is_deleted_while_it_runs_costs_that_job_only(jobs):
    job = jobs.submit("count", {"steps": 20, "seconds": 0.05})
    next(event for event in job_events(jobs, job.id) if event["event"])  # it runs, and writes nothing for a second
    shutil.rmtree(job.folder)
    found = ended(jobs, job)
    assert (found.state, found.disk_error) == ("failed", True)
    assert "No such file or directory" in found.error
    assert jobs.live == {}
    shutil.rmtree(jobs.folder)
    assert jobs.list() == []
    assert ended(jobs, jobs.submit("count", {})).state == "done"


def test_what_a_killed_worker_had_recorded_is_listed(tmp_path):
    jobs = Jobs(tmp_path / "jobs", WorkerProcess(make_counter))
    job = ended(jobs, jobs.submit("count", {"record": True, "do": "kill"}))
    jobs.close()
    assert job.state == "failed"
    assert job.file("made.txt").read_text() == "recorded"


def test_an_image_that_a_killed_worker_had_saved_and_not_recorded_is_listed(tmp_path):
    jobs = Jobs(tmp_path / "jobs", WorkerProcess(make_dying))
    job = ended(jobs, jobs.submit("draw", {}))
    jobs.close()
    assert (job.state, job.result["images"], job.result["seeds"]) == ("failed", ["00000.png"], [42])
    assert "was killed" in job.error
    assert sorted(path.name for path in job.folder.iterdir()) == ["00000.png", "job.json"]


def test_images_that_a_killed_server_had_not_recorded_are_listed(tmp_path):
    jobs = Jobs(tmp_path, count)
    job = jobs.submit("count", {"steps": 10_000, "seconds": 0.01})
    next(event for event in job_events(jobs, job.id) if event["progress"])  # its file is written
    image = Image.new("RGB", (64, 64))
    save_png(image, job.folder, INFOTEXT)
    image.save(job.folder / "preview.png")
    (job.folder / "00001.png").write_bytes((job.folder / "00000.png").read_bytes()[:60])
    (job.folder / ".1a2b3c4d.png.4194305.part").write_bytes(b"")  # of a process whose number no system gives
    assert load_job(job.folder).state == "running"  # as a kill leaves it
    again = Jobs(tmp_path, lambda job, tell: {})
    found = again.get(job.id)
    assert (found.state, found.error[:24]) == ("interrupted", "the server was stopped b")
    assert found.result == {"files": ["00000.png"], "images": ["00000.png"], "infotexts": [INFOTEXT], "seeds": [42]}
    assert found.file("00000.png").is_file()
    assert not list(found.folder.glob(".*"))
    again.close()
    jobs.close()


def test_an_image_can_be_deleted_on_a_full_disk(jobs, monkeypatch):
    job = ended(jobs, jobs.submit("count", {}))
    save_png(Image.new("RGB", (8, 8)), job.folder)
    job.result |= {"files": ["00000.png"], "images": ["00000.png"]}
    job.save()
    fail_at(monkeypatch, "write_text", 0)
    with pytest.raises(OSError, match="No space"):
        jobs.delete_image(job.id, "00000.png")
    assert not (job.folder / "00000.png").exists()
