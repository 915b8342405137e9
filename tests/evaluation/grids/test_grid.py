"""Each cell is what its settings give alone; checkpoints are loaded once; the sheet, and the script as it is run."""

import gc
import json
import os
import weakref

import numpy as np
import pytest
import torch
from conftest import fresh_copy
from PIL import Image
from safetensors.torch import save_file

from sd.checkpoints.discovery import Models
from sd.evaluation.grids import grid as grids
from sd.evaluation.grids.grid import check_models, generate_cells, grid_sheet, plan_grid
from sd.pipeline.infotext import parse_infotext, read_infotext
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError

BASE = GenerationSettings(prompt="a red cat", seed=3, steps=1, sampler="euler", width=64, height=64)


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_cells_are_counted_x_first():
    grid = plan_grid(BASE, ["steps=1, 2, 3", "seed=5, 6", "prompt_sr=red, blue"])
    assert grid.sizes == (3, 2, 2)
    assert [(one.settings.steps, one.settings.seed, one.settings.prompt) for one in grid.points[5:8]] == [
        (3, 6, "a red cat"),
        (1, 5, "a blue cat"),
        (2, 5, "a blue cat"),
    ]
    assert grid.describe(7) == "Steps: 2, Seed: 5, blue"


def test_axes_that_touch_the_same_text_are_applied_in_order():
    grid = plan_grid(BASE, ["lora_strength=0.5, 1", "lora=dog, cat"])
    assert grid.points[2].settings.prompt == "a red cat <lora:cat:0.5>"
    grid = plan_grid(BASE, ["prompt_sr=hot, red", "prompt=a hot dog, hot tea"])
    assert [one.settings.prompt for one in grid.points] == ["a hot dog", "a red dog", "hot tea", "red tea"]
    grid = plan_grid(BASE, ["schedule=karras, exponential", "sampler=euler, dpmpp_2m"])
    assert [one.settings.schedule for one in grid.points] == ["karras", "exponential"] * 2


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([], "needs an axis"),
        (["steps=1"] * 2, "given twice"),
        (["steps=1", "seed=1", "eta=1", "rng=cpu"], "at most three"),
        (["strength=0.5"], "without an image"),
        (["steps=1-100", "seed=1-100"], "the most is 1000"),
        (["steps=1, 0"], "whole number"),
    ],
)
def test_what_is_no_grid_is_refused(axes, said):
    with pytest.raises(UserError, match=said):
        plan_grid(BASE, axes)


def test_several_images_a_cell_and_hires_of_an_image_are_refused():
    with pytest.raises(UserError, match="use the axis seed"):
        plan_grid(BASE.replace(num_images=2), ["steps=1"])
    with pytest.raises(UserError, match="images from text"):
        plan_grid(BASE, ["hires_scale=1, 2"], from_image=True)


def test_each_cell_is_what_its_settings_give_alone(pipe):
    grid = plan_grid(BASE, ["steps=1, 2", "seed=3, 4"])
    told = []
    made = dict(generate_cells(pipe, grid, on_step=lambda i: lambda *step: told.append((i, *step[:2]))))
    assert list(made) == [0, 1, 2, 3]
    for index, point in enumerate(grid.points):
        alone = pipe.generate(point.settings)
        assert same(made[index].images[0], alone.images[0])
        assert made[index].infotexts == alone.infotexts
    assert told == [(0, 1, 1), (1, 1, 2), (1, 2, 2), (2, 1, 1), (3, 1, 2), (3, 2, 2)]
    assert [index for index, _ in generate_cells(pipe, grid, done=[0, 2, 3])] == [1]


def test_an_image_and_a_mask_are_those_of_every_cell(pipe, photo):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    grid = plan_grid(BASE, ["strength=0.5, 1"], from_image=True)
    made = [output.images[0] for _, output in generate_cells(pipe, grid, photo, mask)]
    assert all(same(one.crop((40, 0, 64, 64)), photo.crop((40, 0, 64, 64))) for one in made)
    assert not same(*made)


def test_one_checkpoint_at_a_time_and_each_once(pipe):
    alive, asked = weakref.WeakSet(), []

    def load(ckpt, vae):
        gc.collect()
        assert not alive
        made = fresh_copy(pipe)
        alive.add(made)
        asked.append((ckpt, vae))
        return made

    grid = plan_grid(BASE, ["steps=1, 2", "checkpoint=a, b"])
    assert [index for index, _ in generate_cells(load, grid)] == [0, 1, 2, 3]
    grid = plan_grid(BASE, ["checkpoint=a, b", "seed=1, 2"])
    assert [index for index, _ in generate_cells(load, grid)] == [0, 2, 1, 3]
    assert asked == [("a", None), ("b", None)] * 2


def test_a_lora_that_does_not_fit_costs_no_image(pipe, tmp_path):
    (tmp_path / "loras").mkdir()
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    for name, width in (("good", 64), ("bad", 48)):
        lora = {f"{key}.lora_down.weight": torch.randn(2, width), f"{key}.lora_up.weight": torch.randn(width, 2)}
        save_file(lora, tmp_path / "loras" / f"{name}.safetensors")
    pipe.adapters.models = Models(tmp_path, tmp_path / "loras", tmp_path)
    told = []
    grid = plan_grid(BASE, ["lora=good, bad"])
    with pytest.raises(UserError, match="bad"):
        list(generate_cells(pipe, grid, on_step=lambda i: lambda *step: told.append(i)))
    assert told == []
    made = dict(generate_cells(pipe, plan_grid(BASE, ["lora=none, good", "lora_strength=0, 1"][:1])))
    assert "<lora:good:1>" in made[1].infotexts[0]
    assert pipe.adapters.names() == []
    assert not same(made[0].images[0], made[1].images[0])


@pytest.mark.parametrize(
    ("axis", "said"),
    [("checkpoint=nope", "nope"), ("vae=nope", "nope"), ("lora=nope", "nope"), ("hires_upscaler=nope", "nope")],
)
def test_models_that_are_not_there_are_named_before_any_image(axis, said, tmp_path):
    base = BASE.replace(hires_scale=2.0)
    with pytest.raises(UserError, match=said):
        check_models(plan_grid(base, [axis]), Models(tmp_path, tmp_path, tmp_path))


def test_the_sheet_shows_each_image_at_its_place():
    grid = plan_grid(BASE, ["steps=1, 2, 3", "seed=5, 6", "prompt_sr=red, blue"])
    images = {i: Image.new("RGB", (64, 64), (i * 20, 255 - i * 20, 7)) for i in range(12) if i != 4}
    sheet = np.asarray(grid_sheet(grid, images))
    left, top = {}, {}
    for index, image in images.items():
        there = (sheet == np.asarray(image)[0, 0]).all(axis=2)
        assert there.sum() == 64 * 64, index
        top[index], left[index] = np.argwhere(there)[0]
    for index in images:
        for other in images:
            assert (left[index] < left[other]) == (index % 3 < other % 3)
            assert (top[index] < top[other]) == (index // 3 < other // 3)


def test_a_large_sheet_has_smaller_cells(monkeypatch):
    monkeypatch.setattr(grids, "MAX_SHEET", 4 * 32 * 32)
    grid = plan_grid(BASE, ["steps=1, 2", "seed=5, 6"])
    sheet = grid_sheet(grid, {i: Image.new("RGB", (64, 64)) for i in range(4)})
    assert (np.asarray(sheet) == 0).all(axis=2).sum() < 4 * 64 * 64


def test_the_script_resumes_and_its_images_hold_their_settings(run, tmp_path):
    flags = ["--x", "steps=1, 2", "--y", "prompt s/r=apple, pear", "--width", 64, "--height", 64, "--ckpt", "emoji"]
    code, out, err = run("xyz_grid.py", "a red apple", *flags)
    assert code == 0, err
    folder = tmp_path / "outputs" / "xyz-00000"
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"0000{i}.png" for i in range(4)),
        "grid.json",
        "grid.png",
    ]
    assert out.splitlines()[-1].startswith("outputs/xyz-00000/grid.png  all 4, ")
    assert "00003.png  Steps: 2, pear" in out
    texts = [parse_infotext(read_infotext(folder / f"0000{i}.png")) for i in range(4)]
    assert [(one["Steps"], one["Prompt"]) for one in texts[1:3]] == [("2", "a red apple"), ("1", "a red pear")]
    assert len({one["Seed"] for one in texts}) == 1
    about = parse_infotext(read_infotext(folder / "grid.png"))
    assert (about["Script"], about["X Type"], about["X Values"]) == ("X/Y/Z plot", "Steps", "1, 2")

    before = {path.name: path.read_bytes() for path in folder.glob("0*.png")}
    (folder / "00001.png").unlink()
    (folder / "00002.png").write_bytes(before["00002.png"][:100])
    code, out, err = run("xyz_grid.py", "--resume", folder)
    assert code == 0, err
    assert "00002.png is broken and is generated again" in out
    assert "2 of 4 are there" in out
    assert {path.name: path.read_bytes() for path in folder.glob("0*.png")} == before


def test_a_grid_goes_on_from_another_folder(run, photo, tmp_path, monkeypatch):
    """grid.json has the files of the first run, which were given by relative paths, as absolute ones."""
    (tmp_path / "my files").mkdir()
    (tmp_path / "elsewhere").mkdir()
    photo.save(tmp_path / "my files" / "photo.png")
    flags = ["--x", "strength=0, 0.5", "--init-img", "my files/photo.png", "--steps", 2, "--ckpt", "emoji"]
    code, _, err = run("xyz_grid.py", "a red apple", *flags)
    assert code == 0, err
    folder = tmp_path / "outputs" / "xyz-00000"
    before = (folder / "00001.png").read_bytes()
    (folder / "00001.png").unlink()
    saved = json.loads((folder / "grid.json").read_text())
    assert saved["init_img"] == str(tmp_path / "my files" / "photo.png")
    assert saved["ckpt"] == "emoji", "a name in weights/ stays a name"
    monkeypatch.setattr(monkeypatch, "chdir", lambda _: None)  # `run` would go back to the first folder
    os.chdir(tmp_path / "elsewhere")
    code, _, err = run("xyz_grid.py", "--resume", folder)
    assert code == 0, err
    assert (folder / "00001.png").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--x", "steps=1"], "missing prompt"),
        (["x"], "needs an axis"),
        (["x", "--x", "steps=0"], "steps"),
        (["x", "--x", "steps=1", "--mask", "m.png"], "--init-img"),
        (["x", "--resume", "outputs"], "leave out the prompt"),
        (["--steps", "3", "--resume", "outputs"], "leave out --steps"),
        (["--resume", "outputs"], "file not found"),
        (["x", "--x", "seed=1", "--init-img", "large.png"], "give --width"),
        (["--resume", "damaged"], "is damaged"),
        (["--resume", "other"], "not of this version"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(run, tmp_path, flags, said):
    Image.new("RGB", (1200, 1000)).save(tmp_path / "large.png")
    for name, text in (("damaged", "{"), ("other", json.dumps({"steps": 1, "magic": 2}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "grid.json").write_text(text)
    code, _, err = run("xyz_grid.py", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not (tmp_path / "outputs").exists()
