"""A fine-tuning job: what is refused, what it tells, and that it leaves the model as it was."""

import pytest
import torch
from PIL import Image
from reference_models import randomize
from web_client import png

from sd.checkpoints.discovery import BUNDLED_ADDITIONS, BUNDLED_TURBO
from sd.clip import CLIPTextModel
from sd.evaluation.clip_score import Scorer
from sd.pipeline.stable_diffusion import BUNDLED
from sd.training.finetune import finetune as personalize
from sd.utils.errors import UserError
from sd.vision.clip_vision import CLIP, CLIPVisionModel
from sd.web.jobs import finetune as finetune_jobs
from sd.web.jobs.finetune import CURVE_POINTS, FineTuner, FineTuneRequest, smooth_losses, submit_finetune
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.job import Cancelled
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.ui.train_tab import training_result

IMAGES = [png(Image.new("RGB", (64, 64), (30 * i, 80, 160))) for i in range(5)]
QUICK = dict(batch=2, saves=1, preview_steps=1, prompts=("a {}",))


@pytest.fixture
def models(tmp_path):
    models = Models(*(tmp_path / name for name in ("weights", "loras", "embeddings")))
    for path in models.folders.values():
        path.mkdir()
    return models


@pytest.fixture
def submit(tmp_path, models):
    """Submits a request; no worker runs its job."""
    jobs = Jobs(tmp_path / "jobs", lambda job, tell: {})
    yield lambda **changes: submit_finetune(
        jobs, models, FineTuneRequest(**{"name": "my-dog", "images": IMAGES} | changes)
    )
    jobs.close()


@pytest.fixture
def finetuner(pipe, models, monkeypatch):
    text = CLIPTextModel(width=64, layers=1, heads=1)
    vision = CLIPVisionModel(image_size=32, patch_size=16, width=64, layers=1, heads=1)
    scorer = Scorer(randomize(CLIP(text, vision, 32), seed=4), "a tiny CLIP")
    monkeypatch.setattr(personalize, "load_clip", lambda: scorer)
    real = finetune_jobs.recipe_for
    monkeypatch.setattr(finetune_jobs, "recipe_for", lambda *names, **given: real(*names, **given | QUICK))
    pipe.path = BUNDLED  # as if it had been loaded from there, so that it stays
    return FineTuner(ImageGenerator(models, pipe=pipe))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "../../x"}, "invalid name"),
        ({"name": "x\0y"}, "invalid name"),
        ({"name": ""}, "invalid name"),
        ({"name": "a" * 41}, "invalid name"),
        ({"images": IMAGES[:1]}, "1 image was given"),
        ({"images": IMAGES * 7}, "35 images were given"),
        ({"method": "dreambooth"}, "unknown method or kind"),
        ({"kind": "sound"}, "unknown method or kind"),
        ({"steps": 10**6}, "steps must be a whole number from 1 to"),
        ({"steps": 2.5}, "steps must be a whole number from 1 to"),
        ({"class_word": "{0.__class__}"}, "a word or two"),
        ({"checkpoint": "nowhere"}, "no checkpoint named nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused(submit, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        submit(**wrong)


def test_nothing_is_trained_over_what_is_there(submit, models):
    (models.folders["LoRA"] / "my-dog.safetensors").touch()
    with pytest.raises(UserError, match="already"):
        submit(method="lora")
    submit(method="ti")


@pytest.mark.parametrize(("method", "kind"), finetune_jobs.METHODS.items())
def test_from_images_to_a_file_that_prompts_can_name(method, kind, submit, finetuner, models, pipe):
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    told = []
    job = submit(method=method, class_word="dog", steps=3)
    result = finetuner(job, told.append)
    assert [event["step"] for event in told] == [1, 2, 3]
    assert len(told[-1]["losses"]) == 3
    assert told[-1]["held_out"][-1][0] == 3
    assert Image.open(job.folder / told[-1]["preview"]).width == 64
    assert Image.open(job.folder / result["sheet"]).width > 64
    assert result["step"] == 3
    assert "step 3 has the highest CLIP-I" in result["rule"]
    assert "my-dog" in result["say"]
    own = [name for name, path in models.names(kind).items() if path not in BUNDLED_ADDITIONS.values()]
    assert own == ["my-dog"]
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_result_has_the_notes_of_the_training(submit, finetuner, tmp_path):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    job = submit(images=[*IMAGES, (tmp_path / "a.gif").read_bytes()], steps=1)
    result = finetuner(job, lambda event: None)
    assert result["notes"] == ["only the first frame or page is used of photo-05.png"]
    job.state, job.result = "done", result
    assert "Note: only the first frame or page is used of photo-05.png." in training_result(job)


def test_it_stops_after_the_step_at_which_it_is_told_to(submit, finetuner, models):
    steps = []

    def tell(event):
        steps.append(event["step"])
        raise Cancelled

    with pytest.raises(Cancelled):
        finetuner(submit(steps=5), tell)
    assert steps == [1]
    assert list(models.names("LoRA")) == [BUNDLED_TURBO.stem]


def test_curves_are_means_of_few_places():
    assert smooth_losses([0.5]) == [(1, 0.5)]
    points = smooth_losses([float(i) for i in range(1000)])
    assert len(points) <= CURVE_POINTS
    assert points[0] == (13, 6.0)
    assert points[-1][0] == 1000
