"""A job that teaches: what is refused, what it tells, and that it leaves the model as it was."""

import pytest
import torch
from PIL import Image
from reference_models import randomize
from web_client import png

from sd.clip import CLIPTextModel
from sd.evaluation.clip_score import Scorer
from sd.evaluation.clip_vision import CLIP, CLIPVisionModel
from sd.pipeline.stable_diffusion import BUNDLED
from sd.training.finetune import finetune as personalize
from sd.utils.errors import UserError
from sd.web.jobs import finetune as teaching
from sd.web.jobs.finetune import POINTS, Lesson, Teacher, ask_to_teach, smooth
from sd.web.jobs.generate import Drawer
from sd.web.jobs.job import Cancelled
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs

PICTURES = [png(Image.new("RGB", (64, 64), (30 * i, 80, 160))) for i in range(5)]
QUICK = dict(batch=2, saves=1, preview_steps=1, prompts=("a {}",))


@pytest.fixture
def models(tmp_path):
    models = Models(*(tmp_path / name for name in ("weights", "loras", "embeddings")))
    for path in models.folders.values():
        path.mkdir()
    return models


@pytest.fixture
def lesson_of(tmp_path, models):
    """From a lesson to its job, which nobody does yet."""
    jobs = Jobs(tmp_path / "jobs", lambda job, tell: {})
    yield lambda **changes: ask_to_teach(jobs, models, Lesson(**{"name": "my-dog", "pictures": PICTURES} | changes))
    jobs.close()


@pytest.fixture
def teacher(pipe, models, monkeypatch):
    text = CLIPTextModel(width=64, layers=1, heads=1)
    vision = CLIPVisionModel(image_size=32, patch_size=16, width=64, layers=1, heads=1)
    scorer = Scorer(randomize(CLIP(text, vision, 32), seed=4), "a tiny CLIP")
    monkeypatch.setattr(personalize, "load_clip", lambda: scorer)
    real = teaching.recipe_for
    monkeypatch.setattr(teaching, "recipe_for", lambda *names, **given: real(*names, **given | QUICK))
    pipe.path = BUNDLED  # as if it had been loaded from there, so that it stays
    return Teacher(Drawer(models, pipe=pipe))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "../../x"}, "give it a name"),
        ({"name": "x\0y"}, "give it a name"),
        ({"name": ""}, "give it a name"),
        ({"name": "a" * 41}, "give it a name"),
        ({"pictures": PICTURES[:1]}, "1 image was given"),
        ({"pictures": PICTURES * 7}, "35 images were given"),
        ({"method": "dreambooth"}, "choose a LoRA or an embedding"),
        ({"kind": "sound"}, "choose a LoRA or an embedding"),
        ({"steps": 10**6}, "number of training steps"),
        ({"steps": 2.5}, "number of training steps"),
        ({"class_word": "{0.__class__}"}, "in a word or two"),
        ({"checkpoint": "nowhere"}, "no checkpoint named nowhere"),
    ],
)
def test_what_cannot_be_taught_is_refused(lesson_of, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        lesson_of(**wrong)


def test_nothing_is_taught_over_what_is_there(lesson_of, models):
    (models.folders["LoRA"] / "my-dog.safetensors").touch()
    with pytest.raises(UserError, match="already"):
        lesson_of(method="lora")
    lesson_of(method="ti")


@pytest.mark.parametrize(("method", "kind"), teaching.METHODS.items())
def test_from_pictures_to_a_file_that_prompts_can_name(method, kind, lesson_of, teacher, models, pipe):
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    told = []
    job = lesson_of(method=method, class_word="dog", steps=3)
    result = teacher(job, told.append)
    assert [event["step"] for event in told] == [1, 2, 3]
    assert len(told[-1]["losses"]) == 3
    assert told[-1]["held_out"][-1][0] == 3
    assert Image.open(job.folder / told[-1]["preview"]).width == 64
    assert Image.open(job.folder / result["sheet"]).width > 64
    assert result["step"] == 3
    assert "step 3 has the highest CLIP-I" in result["rule"]
    assert "my-dog" in result["say"]
    assert list(models.names(kind)) == ["my-dog"]
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_it_stops_after_the_step_at_which_it_is_told_to(lesson_of, teacher, models):
    steps = []

    def tell(event):
        steps.append(event["step"])
        raise Cancelled

    with pytest.raises(Cancelled):
        teacher(lesson_of(steps=5), tell)
    assert steps == [1]
    assert list(models.names("LoRA")) == []


def test_curves_are_means_of_few_places():
    assert smooth([0.5]) == [(1, 0.5)]
    points = smooth([float(i) for i in range(1000)])
    assert len(points) <= POINTS
    assert points[0] == (13, 6.0)
    assert points[-1][0] == 1000
