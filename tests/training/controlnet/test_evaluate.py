"""Scoring a ControlNet on scenes: fixed held-out scenes, the columns of the table, and the sheet."""

import pytest
import torch
from PIL import Image
from scene_data import make_cutouts

from sd.control.controlnet_files import save_controlnet
from sd.training.controlnet import evaluate
from sd.training.controlnet.evaluate import DECODED, WITH, WITHOUT, control_table, evaluate_control, held_out_scenes
from sd.training.controlnet.recipe import control_recipe
from sd.training.controlnet.train import new_controlnet
from sd.training.pretrain.scenes.detector import Detection
from sd.training.pretrain.scenes.grammar import Grammar
from sd.training.pretrain.scenes.render import render_batch


class Names:
    """A detector that names the first object of every scene, and one object more."""

    def __init__(self, scenes):
        self.names = [scene.content.names[0] for scene in scenes]

    def detect(self, images):
        assert len(images) == len(self.names)
        return [[Detection(name, None, 0, 0, 1.0), Detection("bee", None, 0, 0, 1.0)] for name in self.names]


def test_scenes_are_scored_from_all_three_sources(pipe, tmp_path):
    cutouts = make_cutouts(tmp_path)
    scenes = [Grammar(cutouts, shares={kind: 1}).scene(1) for kind in ("single", "pair")]
    save_controlnet(tmp_path / "x.safetensors", new_controlnet(pipe, control_recipe(pipe)).half(), {})
    real = render_batch(scenes, cutouts)
    pipe.vae.encode = lambda images: (images, images)  # a VAE that loses nothing
    pipe.vae.decode = lambda latents: latents if latents.shape[1] == 3 else torch.zeros(len(latents), 3, 128, 128)
    sheet = tmp_path / "sheet.png"
    scores = evaluate_control(
        pipe, str(tmp_path / "x.safetensors"), scenes, cutouts, Names(scenes), {"steps": 1}, sheet=sheet
    )
    assert scores.f1 == {WITHOUT: [0.0, 0.0], WITH: [0.0, 0.0], DECODED: [1.0, 1.0]}  # gray images have no edges
    assert scores.named[WITH] == [True, False]  # of a pair both have to be found
    assert Image.open(sheet).width == 6 * (real.shape[-1] + 8)
    table = control_table(scores)
    assert "0.50 [0.09, 0.91]" in table  # Wilson's interval for 1 of 2
    assert "named 1.00" in table


def test_held_out_scenes_are_equal_parts_of_the_tasks(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(evaluate, "task_scenes", lambda task, data, count: asked.append(task) or [task] * count)
    scenes = held_out_scenes(tmp_path, 100)
    assert sorted(scenes.count(task) for task in asked) == [16, 16, 17, 17, 17, 17]


def test_a_missing_detector_is_one_sentence(run):
    code, _, err = run("evaluate_controlnet.py", "--control", "x", "--detector", "none")
    assert (code, "train_scenes.py detector" in err) == (2, True), err


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_scenes_are_refused(run, count):
    code, _, err = run("evaluate_controlnet.py", "--control", "x", "--count", count)
    assert (code, "--count must be 2 scenes or more, for an interval, not" in err) == (2, True), err
