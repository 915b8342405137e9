"""A real full disk, at every point where something is saved: one sentence, nothing half-written, works with room again.

The disk is a small tmpfs, which needs the rights to mount one; elsewhere these tests are skipped. Each thing is saved
once with room, which tells how much it takes, and then with less and less of that.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.test_download import CONTENT, SHA256, Server
from fake_jobs import count, job_events
from PIL import Image
from safetensors import safe_open
from training.finetune.test_finetune import WORD, images, own_folders, quick, scorer  # noqa: F401 - fixtures

from sd.adapters.embedding_files import save_embedding
from sd.checkpoints.checkpoint import load_models
from sd.checkpoints.download import download_file
from sd.checkpoints.merging import MergeWeights, merge_checkpoints
from sd.checkpoints.weight_files import read_weights, write_weights
from sd.training.finetune import finetune as personalize
from sd.utils.errors import UserError, os_error_message
from sd.utils.files import save_png, write_png
from sd.web.jobs.queue import Jobs

SIZE = 64 << 20  # bytes of the disk
PAGE = 4096
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))


class Disk:
    """A folder on a disk of SIZE bytes."""

    def __init__(self, folder: Path):
        self.folder, self.filler = folder, folder / ".filler"

    def leave(self, size: int) -> None:
        """Fill the disk so that this many bytes are free."""
        self.filler.unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free // PAGE * PAGE
        with open(self.filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - size // PAGE * PAGE)

    def make_room(self) -> None:
        self.filler.unlink(missing_ok=True)

    def used(self) -> int:
        return shutil.disk_usage(self.folder).used

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.folder.rglob("*") if path.is_file() and path != self.filler)
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a disk of its own needs the rights to mount one")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def sentence_of(action, *args) -> str:
    """What a script would print of the error that the action ends with."""
    with pytest.raises((UserError, OSError)) as caught:
        action(*args)
    text = str(caught.value) if isinstance(caught.value, UserError) else os_error_message(caught.value)
    assert "\n" not in text
    assert "No space left on device" in text or "no room" in text, text
    return text


@pytest.fixture(scope="module")
def models(made_once, tmp_path_factory):
    """Two small checkpoints on another disk."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        made_once[4].save_pretrained(folder / f"{name}.safetensors")
    return [folder / "a.safetensors", folder / "b.safetensors"]


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(300, 300, generator=generator) for name in "abc"}


ACTIONS = {
    "a numbered image": lambda folder, pipe, models: save_png(NOISE, folder / "out", "x\nSteps: 1"),
    "an image": lambda folder, pipe, models: write_png(NOISE, folder / "preview.png"),
    "an embedding": lambda folder, pipe, models: save_embedding(folder / "a.pt", "a", torch.ones(20, 768)),
    "an embedding as safetensors": lambda folder, pipe, models: save_embedding(
        folder / "a.safetensors", "a", torch.ones(20, 768)
    ),
    "weights": lambda folder, pipe, models: write_weights(folder / "a.safetensors", "safetensors", tensors(), {}),
    "pickled weights": lambda folder, pipe, models: write_weights(folder / "a.ckpt", "ckpt", tensors(), {}),
    "a checkpoint": lambda folder, pipe, models: pipe.save_pretrained(folder / "a.safetensors"),
    "a diffusers folder": lambda folder, pipe, models: pipe.save_pretrained(folder / "model"),
    "a merge": lambda folder, pipe, models: merge_checkpoints(models, folder / "m.safetensors", MergeWeights(0.5)),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_what_does_not_fit_leaves_nothing_and_fits_later(name, disk, made_once, models):
    def save() -> None:
        ACTIONS[name](disk.folder, made_once[4], models)

    before = disk.used()
    save()
    need, whole = disk.used() - before, disk.files()
    for path in list(disk.folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for share in (0.0, 0.2, 0.6, 0.95):
        disk.leave(int(need * share))
        sentence_of(save)
        assert disk.files() == {}
    disk.make_room()
    save()
    again = disk.files()  # older containers of torch name their parts by where they were in memory
    assert {path: len(data) for path, data in again.items()} == {path: len(data) for path, data in whole.items()}
    if "numbered" not in name:  # of which a second one has another name
        disk.leave(need // 2)
        sentence_of(save)
        assert disk.files() == again  # what was there before is there still
    disk.make_room()
    save()


def test_a_download_goes_on_where_the_disk_was_full(disk):
    server = Server("no length")
    path = disk.folder / "model.safetensors"
    disk.leave(len(CONTENT) // 2)
    sentence_of(download_file, server.url, path, SHA256)
    assert list(disk.files()) == ["model.safetensors.part"]
    disk.make_room()
    download_file(server.url, path, SHA256)
    assert disk.files() == {"model.safetensors": CONTENT}
    assert server.ranges[-1] is not None
    server.shutdown()
    server.server_close()


def test_jobs_are_refused_while_the_disk_is_full_and_accepted_later(disk):
    jobs = Jobs(disk.folder / "jobs", count)
    try:
        for left in (0, PAGE, 2 * PAGE):
            disk.leave(left)
            sentence_of(jobs.submit, "count", {}, {"image": bytes(4 * PAGE)})
            assert disk.files() == {}
        disk.make_room()
        job = jobs.submit("count", {}, {"image": bytes(4 * PAGE)})
        list(job_events(jobs, job.id))
        assert jobs.get(job.id).state == "done"
    finally:
        jobs.close()


def check_run(folder: Path) -> None:
    """Every file of a training run with its final name is whole."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert ".part" not in path.name
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)


def test_a_training_that_filled_the_disk_goes_on_with_room(disk, pipe, images, monkeypatch):  # noqa: F811
    monkeypatch.setattr(personalize, "check_free_space", lambda *_: None)  # which would refuse to start
    recipe = quick("lora", pipe)

    def train(folder: Path) -> None:
        personalize.finetune("lora", images, WORD, pipe, recipe, run=folder / "run", output=folder / "o.safetensors")

    before = disk.used()
    train(disk.folder)
    need, whole = disk.used() - before, (disk.folder / "o.safetensors").read_bytes()
    (disk.folder / "o.safetensors").unlink()
    shutil.rmtree(disk.folder / "run")
    for share in (0.0, 0.3, 0.6, 0.9):
        disk.leave(max(int(need * share) - (disk.used() - before), 0) if share else 0)
        sentence_of(train, disk.folder)
        check_run(disk.folder / "run")
        disk.make_room()
    train(disk.folder)
    assert (disk.folder / "o.safetensors").read_bytes() == whole
    load = read_weights(disk.folder / "o.safetensors").content
    assert len(load) > 10


def test_a_checkpoint_saved_with_room_again_is_whole(disk, pipe):
    disk.leave(1 << 20)
    sentence_of(pipe.save_pretrained, disk.folder / "a.safetensors")
    disk.make_room()
    pipe.save_pretrained(disk.folder / "a.safetensors")
    load_models(disk.folder / "a.safetensors")
