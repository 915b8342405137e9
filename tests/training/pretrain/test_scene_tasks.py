"""The six tasks: fixed held-out prompts, a detector that finds objects, and correct scores."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from scene_data import make_cutouts

from sd.training.pretrain.scenes import evaluation
from sd.training.pretrain.scenes.attention import AttentionShare
from sd.training.pretrain.scenes.colors import COLORS
from sd.training.pretrain.scenes.detector import STRIDE, Detection, Detector, detection_loss, load_detector, targets
from sd.training.pretrain.scenes.evaluation import append_scores, table
from sd.training.pretrain.scenes.grammar import Grammar
from sd.training.pretrain.scenes.render import render_batch
from sd.training.pretrain.scenes.tasks import TASKS, is_right, mean_score, sample_task_scenes, task_scenes, wilson_score
from sd.training.pretrain.scenes.wording import Content
from sd.utils.errors import UserError

DATA = ROOT / "data" / "emoji"
prepared = pytest.mark.skipif(not (DATA / "cutouts.jsonl").exists(), reason="the cut-outs are not prepared")


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    return make_cutouts(tmp_path_factory.mktemp("cutouts"))


def found(*objects):
    """Detections from (name, color, x, y)."""
    return [Detection(*each, score=1.0) for each in objects]


def test_an_image_is_right_where_the_objects_are_what_the_prompt_says():
    cat, dog, far = ("cat", "red", 20, 60), ("dog", "blue", 100, 60), ("cat", "red", 100, 110)

    def right(kind, names, seen, **content):
        return is_right(Content(kind, "noto emoji", names, **content), found(*seen))

    assert right("single", ("cat",), [cat])
    assert not right("single", ("cat",), [dog])
    assert right("pair", ("cat", "dog"), [dog, cat], colors=(None, None))
    assert not right("pair", ("cat", "dog"), [cat, far], colors=(None, None))
    assert right("counted", ("cat",), [cat, far], count=2)
    assert not right("counted", ("cat",), [cat, far], count=3)
    assert not right("counted", ("cat",), [cat, far, cat], count=2)
    assert right("recolored", ("cat",), [cat], colors=("red",))
    assert not right("recolored", ("cat",), [cat], colors=("blue",))
    assert right("placed", ("cat", "dog"), [cat, dog], colors=(None, None), relation="left")
    assert not right("placed", ("cat", "dog"), [cat, dog], colors=(None, None), relation="right")
    assert not right("placed", ("cat", "dog"), [cat, dog], colors=(None, None), relation="above")
    assert right("colored_pair", ("cat", "dog"), [cat, dog], colors=("red", "blue"))
    assert not right("colored_pair", ("cat", "dog"), [cat, dog], colors=("blue", "red"))


class Reader:
    """Stands for a detector: finds the names that stand for the mean gray of an image, in steps of 0.5."""

    def __init__(self, *names):
        self.names = names

    def detect(self, images):
        return [found((self.names[round(2 * image.mean().item() + 2)], None, 60, 60)) for image in images]


def test_two_objects_are_right_in_their_own_halves_only():
    reader, names = Reader("fish", "cat", "dog"), [("cat", "dog")] * 3
    halves = [(-0.5, 0), (0, -0.5), (-0.5, -1)]  # a cat and a dog; exchanged; a cat and a fish
    images = torch.stack([torch.cat([torch.full((3, 128, 128), gray) for gray in pair], dim=-1) for pair in halves])
    assert evaluation.in_halves(names, images, reader) == [True, False, False]


def test_regions_are_scored_beside_a_plain_prompt_and_rendered_objects(cutouts, tmp_path, monkeypatch):
    asked = []

    def pipe(prompts, seed, **settings):
        asked.extend(prompts)
        assert (settings["width"], settings["height"]) == (256, 128)
        return SimpleNamespace(images=[Image.new("RGB", (256, 128), "white")] * len(prompts))

    def detect(images):
        """Sees the first scene's objects in the rendered image of it, and in the first generated one."""
        rendered = [torch.equal(image, one) for image in images for one in halves]
        return (
            [found(*[(name, None, 60, 60) for name in names])] + [[]] * (len(images) - 1)
            if any(rendered)
            else [found((names[0], None, 60, 60))] * len(images)
        )

    scenes = sample_task_scenes(Grammar(cutouts, held_out=True, shares={"pair": 1}), "pair", 2)
    monkeypatch.setattr(evaluation, "task_scenes", lambda *_: scenes)
    monkeypatch.setattr(evaluation, "detector_cutouts", lambda _: cutouts)
    names = scenes[0].content.names
    halves = evaluation.render_halves(scenes, cutouts)[0].split(128, dim=-1)
    detector = Detector(width=16)
    monkeypatch.setattr(detector, "detect", detect)
    scores = evaluation.evaluate_regions(tmp_path, detector, pipe, 2, {}, sheets=tmp_path)
    first, second = scenes[0].caption.split(" and ")
    assert (asked[0], asked[2]) == (f"{first} ADDCOL {second}", f"{first} left of {second}")
    assert {who: score.value for who, score in scores.items()} == {"rendered": 0.5, "regions": 0, "plain prompt": 0}
    assert (tmp_path / "plain-prompt.png").exists()


def test_each_object_of_a_pair_is_rendered_alone_in_its_half(cutouts):
    scenes = sample_task_scenes(Grammar(cutouts, held_out=True, shares={"pair": 1}), "pair", 2)
    images = evaluation.render_halves(scenes, cutouts)
    assert images.shape == (2, 3, 128, 256)
    for half in images.split(128, dim=-1):
        border = torch.cat([half[..., 0, :], half[..., -1, :], half[..., 0], half[..., -1]], dim=-1)
        assert (border == 1).all()  # nothing reaches over the middle
        assert all((image < 0.9).any() for image in half)


def test_intervals_are_wilsons():
    half, none = wilson_score([True, False] * 5), wilson_score([False] * 10)
    assert (half.value, half.count) == (0.5, 10)
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # the published example's four digits
    assert (none.low, none.high) == pytest.approx((0, 0.2775), abs=1e-4)
    mean = mean_score([half, half])
    assert mean.value == 0.5
    assert mean.high - mean.low == pytest.approx((half.high - half.low) / 2**0.5)  # two independent tasks
    assert "0.50 [0.24, 0.76]" in table({"real": {"counting": half}})


def test_a_curve_gets_one_line_for_each_evaluation(tmp_path):
    scores = {"generated": {"counting": wilson_score([True, False])}}
    for images in (1000, 2000):
        append_scores(tmp_path / "curve.jsonl", {"images": images}, scores, AttentionShare(0.6, 0.2, 3))
    first, second = map(json.loads, (tmp_path / "curve.jsonl").read_text().splitlines())
    assert (first["images"], second["images"]) == (1000, 2000)
    assert second["generated"] == {"counting": 0.5}
    assert second["attention"] == {"inside": 0.6, "area": 0.2}


@pytest.mark.parametrize("kind", ["pair", "counted", "recolored", "placed", "colored_pair"])
def test_prompts_are_fixed_held_out_and_each_another(cutouts, kind):
    grammar = Grammar(cutouts, held_out=True, shares={kind: 1})
    scenes = sample_task_scenes(grammar, kind, 3)
    assert scenes == sample_task_scenes(grammar, kind, 3)
    assert len({scene.caption for scene in scenes}) == len(scenes) > 0
    for scene in scenes:
        assert scene.content.is_held_out
        assert scene.content.background.kind == "white"
        assert "emoji" not in scene.caption


def test_centers_are_marked_in_their_cells_with_their_names_and_colors(cutouts):
    detector, scene = Detector(width=16), Grammar(cutouts, shares={"colored_pair": 1}).scene(1)
    heat, cells, labels = targets([scene], detector, cutouts, 16)
    assert (heat == 1).sum() == 2
    for (_, y, x), (name, color), placed, said in zip(
        cells.tolist(), labels.tolist(), scene.objects, scene.content.colors
    ):
        assert abs(STRIDE * (x + 0.5) - placed.center[0]) <= STRIDE / 2
        assert abs(STRIDE * (y + 0.5) - placed.center[1]) <= STRIDE / 2
        assert heat[0, y, x] == 1
        assert (detector.names[name], detector.colors[color]) == (placed.name, said)


def test_the_detector_overfits_scenes_and_finds_their_objects(cutouts):
    torch.manual_seed(0)
    detector, grammar = Detector(width=32), Grammar(cutouts, shares={"counted": 1, "colored_pair": 1, "placed": 1})
    scenes = [grammar.scene(seed) for seed in range(6)]
    images = render_batch(scenes, cutouts)
    wanted = targets(scenes, detector, cutouts, 16)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        detection_loss(detector, images, *wanted).backward()
        optimizer.step()
    verdicts = [is_right(scene.content, each) for scene, each in zip(scenes, detector.eval().detect(images))]
    assert sum(verdicts) >= 5


def test_nothing_is_found_on_white_by_an_untrained_detector():
    assert Detector(width=16).detect(torch.ones(2, 3, 128, 128)) == [[], []]


def test_without_a_detector_one_sentence_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"train_scenes\.py detector"):
        load_detector(tmp_path)


@prepared
@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_hundred_prompts(task):
    scenes = task_scenes(task, DATA, 100)
    assert len(scenes) == 100
    if task != "single object":
        assert all(scene.content.is_held_out for scene in scenes)
    if task in ("colors", "color attribution"):
        assert {color for scene in scenes for color in scene.content.colors} <= set(COLORS)
