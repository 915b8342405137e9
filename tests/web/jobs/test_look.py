"""The job that records a trace: its files, its notes, and how it ends."""

import json

import pytest
import torch

from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import from_tensor
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.job import Cancelled, Job
from sd.web.jobs.look import TRACE, TraceRecorder, first_image
from sd.web.jobs.model_index import Models


def job_of(tmp_path, **settings):
    values = vars(GenerationSettings(**{"prompt": "a red apple", "steps": 3, "seed": 7, "sampler": "euler"} | settings))
    request = {"settings": values, "checkpoint": "", "batch_size": 2, "resize_mode": "crop", "title": ""}
    return Job("id", "look", request, tmp_path)


@pytest.fixture
def generator(tmp_path, pipe):
    models = Models(*(tmp_path / name for name in ("weights", "loras", "embeddings")))
    pipe.path = models.checkpoint()
    return ImageGenerator(models, pipe=pipe)


def test_its_image_is_that_of_an_ordinary_job(generator, tmp_path):
    made = TraceRecorder(generator)(job_of(tmp_path), lambda event: None)
    assert made["files"] == ["00000.png", TRACE]
    assert made["images"] == ["00000.png"]
    assert made["trace"] == TRACE
    found = json.loads((tmp_path / TRACE).read_text(encoding="utf-8"))
    assert found["title"] == "a red apple"
    assert found["about"] == made["infotexts"][0]
    assert [step["step"] for step in found["steps"]] == [1, 2, 3]
    traced = (tmp_path / "00000.png").read_bytes()
    plain = generator(job_of(tmp_path), lambda event: None)
    assert (tmp_path / plain["images"][0]).read_bytes() == traced


def test_more_than_a_trace_holds_is_left_out_with_a_note():
    settings, notes = first_image(GenerationSettings(num_images=4, hires_scale=1.5))
    assert (settings.num_images, settings.hires_scale) == (1, 1)
    assert len(notes) == 2
    assert first_image(settings) == (settings, [])


def test_it_stops_at_once_and_leaves_the_model_as_it_was(generator, tmp_path):
    def stop(event):
        raise Cancelled

    with pytest.raises(Cancelled):
        TraceRecorder(generator)(job_of(tmp_path), stop)
    assert not [layer for layer in generator.pipe.unet.modules() if "Observed" in type(layer).__name__]
    # A slow machine has written a preview by then, as it does of every job.
    assert {path.name for path in tmp_path.glob("*.png")} <= {"preview.png"}


def test_a_run_without_steps_is_refused(generator, tmp_path, photo):
    photo.save(tmp_path / "image", format="PNG")
    with pytest.raises(UserError, match="no step to look into"):
        TraceRecorder(generator)(job_of(tmp_path, strength=0.0), lambda event: None)


def test_a_cut_out_part_is_shown_as_it_was_decoded(generator, tmp_path, photo):
    """The image is pasted into the whole, which the latent is not of."""
    photo.save(tmp_path / "image", format="PNG")
    mask = torch.zeros(64, 64)
    mask[16:32, 16:32] = 1
    from_tensor((2 * mask - 1).expand(1, 3, -1, -1))[0].save(tmp_path / "mask", format="PNG")
    made = TraceRecorder(generator)(job_of(tmp_path, only_masked=True, strength=0.8), lambda event: None)
    assert made["trace"] == TRACE
