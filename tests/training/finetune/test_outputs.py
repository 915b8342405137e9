"""Outputs, names, interrupted runs and invalid numbers, as users meet them on their own images."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from training.finetune.test_finetune import WORD, finetune, images, own_folders, quick, scorer  # noqa: F401 - fixtures

from sd.checkpoints.checkpoint import load_models, read_checkpoint
from sd.checkpoints.weight_files import read_weights
from sd.training.finetune import finetune as personalize
from sd.training.finetune import runs
from sd.training.finetune.advice import Scores, best_step, format_table
from sd.training.finetune.args import OptionGroups, add_targets, add_text_lr, format_default, training_parser
from sd.training.finetune.disk_space import RequiredSpace, check_free_space
from sd.training.finetune.recipes import METHODS, NUMBERS, WHOLE, Recipe, recipe_for
from sd.training.finetune.validation import step_files, step_of
from sd.training.train_state import completed_steps
from sd.utils.errors import UserError
from sd.utils.files import remove_orphans

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def based(pipe, tmp_path):
    """The pipe as if it had been read from a file."""
    base = tmp_path / "weights" / "base.safetensors"
    pipe.save_pretrained(base)
    pipe.path = base
    return pipe


@pytest.mark.parametrize("spelling", ["itself", "link", "hard link"])
def test_the_base_model_is_not_overwritten(spelling, based, images, tmp_path):  # noqa: F811
    output = {"itself": based.path, "link": tmp_path / "link.safetensors", "hard link": tmp_path / "h.safetensors"}[
        spelling
    ]
    if spelling == "link":
        output.symlink_to(based.path)
    if spelling == "hard link":
        os.link(based.path, output)
    before = based.path.read_bytes()
    with pytest.raises(UserError, match="is the base model of this training"):
        personalize.finetune("dreambooth", images, "base", based, quick("dreambooth", based), output=output)
    assert based.path.read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_a_foreign_file_is_not_overwritten_but_a_runs_own_is(pipe, images, tmp_path):  # noqa: F811
    output, asked = tmp_path / "mine.safetensors", quick("lora", pipe, steps=1)
    output.write_bytes(b"downloaded")
    with pytest.raises(UserError, match=r"exists already, and this run .* did not write it"):
        finetune("lora", images, WORD, pipe, asked, run=tmp_path / "run", output=output)
    assert output.read_bytes() == b"downloaded"
    output.unlink()
    first = finetune("lora", images, WORD, pipe, asked, run=tmp_path / "run", output=output)
    assert finetune("lora", images, WORD, pipe, asked, run=tmp_path / "run", output=output) == first
    with pytest.raises(UserError, match="did not write it"):
        finetune("lora", images, WORD, pipe, asked, run=tmp_path / "another", output=output)


@pytest.mark.parametrize(
    ("method", "name"), [("lora", "x.pt"), ("lora", "x.ckpt"), ("ti", "x.bin"), ("dreambooth", "x.pt")]
)
def test_a_suffix_of_another_format_is_refused_before_training(method, name, pipe, images, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"is written as \.safetensors"):
        finetune(method, images, WORD, pipe, quick(method, pipe), run=tmp_path / "run", output=tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_has_the_format_of_its_suffix_and_names_its_base(based, images, tmp_path):  # noqa: F811
    def made(name):
        run, output = tmp_path / f"run-{name}", tmp_path / name
        return personalize.finetune(
            "dreambooth", images, "a", based, quick("dreambooth", based, steps=1), run=run, output=output
        )

    ckpt = read_weights(made("m.ckpt").path)
    assert ckpt.kind == "ckpt"
    assert ckpt.content["sd_trained_from"] == "base.safetensors"
    with safe_open(made("m.safetensors").path, "pt") as file:
        assert file.metadata()["sd_trained_from"] == "base.safetensors"
    folder = made("m").path
    assert json.loads((folder / "model_index.json").read_text())["_sd_trained_from"] == "base.safetensors"
    for path in (tmp_path / "m.ckpt", folder):
        assert load_models(path)[2].out[2].weight.isfinite().all()


def test_a_folder_as_output_gets_a_file_into_it(pipe, images, tmp_path):  # noqa: F811
    (tmp_path / "place").mkdir()
    result = finetune(
        "lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "r", output=tmp_path / "place"
    )
    assert result.path == tmp_path / "place" / f"{WORD}.safetensors"
    assert result.path.is_file()


def test_the_step_files_are_named_when_the_result_cannot_be_written(
    pipe,
    images,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sd.training.finetune.outputs.shutil.copyfile", full)
    with pytest.raises(UserError, match=r"No space left.*All trained steps are in .*run/steps"):
        finetune(
            "lora",
            images,
            WORD,
            pipe,
            quick("lora", pipe, steps=1),
            run=tmp_path / "run",
            output=tmp_path / "o.safetensors",
        )


def test_what_a_killed_save_left_is_gone_at_the_next_start(pipe, images, tmp_path):  # noqa: F811
    run, gone = tmp_path / "run", 4_000_000  # no system has a process of this number
    places = [run / f".state.pt.{gone}.part", run / "steps" / f".1.{gone}.part", tmp_path / "loras" / f".x.{gone}.part"]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    alive = run / f".state.pt.{os.getppid()}.part"
    alive.write_bytes(b"being written")
    personalize.finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=run)
    assert not any(path.exists() for path in places)
    assert alive.exists()


def test_a_folder_whose_replacement_was_killed_gets_its_name_back(tmp_path):
    (tmp_path / ".model.4000000.earlier").mkdir()
    assert remove_orphans(tmp_path) == []
    assert (tmp_path / "model").is_dir()


def test_fewer_steps_in_a_run_that_has_made_more(pipe, images, tmp_path, capsys):  # noqa: F811
    finetune("lora", images, WORD, pipe, quick("lora", pipe), run=tmp_path / "run")  # files of steps 2 and 4
    result = finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=3), run=tmp_path / "run")
    assert result.best_step == 2
    assert "has made 4 steps already: nothing is left to train" in capsys.readouterr().out
    with pytest.raises(UserError, match="no file of step 1 or earlier: give --steps 4"):
        finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "run")


@pytest.mark.parametrize("file", ["run.json", "state.pt"])
@pytest.mark.parametrize("damage", [b"", b'{"method": "lo'])
def test_a_damaged_file_of_a_run_is_one_sentence(file, damage, pipe, images, tmp_path):  # noqa: F811
    finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(damage)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "run")


@pytest.mark.parametrize("file", ["scores.json", "log.jsonl", "latents.pt", "held_out.json", "delivered.json"])
def test_a_damaged_file_that_can_be_done_without_costs_nothing(file, pipe, images, tmp_path):  # noqa: F811
    finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(b'{"step": \xff')
    assert finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "run").best_step == 1


def test_another_model_of_the_same_name_or_another_guidance_is_another_run(based, images, tmp_path):  # noqa: F811
    def go(**given):
        asked = quick("lora", based, steps=1, **given)
        return personalize.finetune("lora", images, WORD, based, asked, run=tmp_path / "run")

    go()
    with pytest.raises(UserError, match="started with another guidance scale"):
        go(guidance_scale=2.0)
    based.path = based.path.rename(tmp_path / "moved.safetensors")
    go()  # the same content under another name
    with torch.no_grad():
        based.unet.out[2].bias += 1
    based.path.unlink()
    based.save_pretrained(based.path)
    with pytest.raises(UserError, match=r"started with another base model \(its content differs\)"):
        go()


def test_class_images_of_another_guidance_are_others(pipe, images, tmp_path):  # noqa: F811
    for k, guidance in enumerate((3.0, 4.0)):
        asked = quick("dreambooth", pipe, steps=1, class_word="dog", guidance_scale=guidance)
        finetune("dreambooth", images, WORD, pipe, asked, run=tmp_path / str(k))
    assert len(list((tmp_path / "runs" / "class").iterdir())) == 2


def test_a_file_name_that_is_not_utf8(pipe, images, tmp_path, capsys):  # noqa: F811
    strange = os.fsencode(images) + b"/caf\xe9.jpg"
    shutil.copyfile(images / "0.jpg", strange)
    finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "run", say=print)
    assert "6 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["pictures"][-1] == "caf\\xe9.jpg"


@pytest.mark.parametrize("seed", [20_000_000_000, WHOLE["seed"][1]])
def test_a_large_seed_trains(seed, pipe, images, tmp_path):  # noqa: F811
    finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1, seed=seed), run=tmp_path / "run")
    assert completed_steps(tmp_path / "run") == 1


def wrong_values():
    for name, (lowest, highest) in (WHOLE | NUMBERS).items():
        yield from ((name, lowest - 1), (name, highest * 2 + 1))
        if name in NUMBERS:
            yield from ((name, float("nan")), (name, float("inf")))


@pytest.mark.parametrize(("name", "value"), wrong_values())
def test_a_number_that_means_nothing_is_refused_with_its_range(name, value):
    with pytest.raises(UserError, match=r"must be a (whole )?number from .* to "):
        Recipe(**{name: value})


def options_of(method: str) -> OptionGroups:
    options = training_parser(method, "", "")
    if method == "lora":
        add_targets(options)
    if method == "dreambooth":
        add_text_lr(options)
    return options


@pytest.mark.parametrize("method", METHODS)
def test_every_numeric_option_has_a_range_and_every_option_its_default(method):
    for action in options_of(method).parser._actions:
        if action.type in (int, float):
            assert action.dest in (*WHOLE, *NUMBERS, "max_token_length"), action.dest
        if not action.required and action.dest != "help":
            assert "(default: " in action.help, action.dest
    assert format_default(1000) == "1000"


def test_help_has_both_models_defaults():
    told = " ".join(options_of("lora").parser.format_help().split())
    assert "number of training steps (default: 1000; bundled model: 300)" in told
    assert "rank of the LoRA layers (default: 4; bundled model: 16)" in told


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_the_text_encoder_alone_is_trained(method, pipe, images, tmp_path):  # noqa: F811
    given = {"steps": 2, "lr": 0.0, "text_lr": 1e-2, "targets": None}
    recipe = quick(method, pipe, **given)
    assert "text" in recipe.targets
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    finetune(method, images, WORD, pipe, recipe, run=tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt")["model"]
    assert {key.split(".")[0] for key in state} == {"clip"}
    assert all(torch.equal(tensor, before[key]) for key, tensor in pipe.unet.state_dict().items())
    if method == "lora":
        assert max(tensor.abs().max() for key, tensor in state.items() if key.endswith("lora_up")) > 1e-3


def test_a_rate_for_a_text_encoder_that_is_not_trained_is_refused(pipe):
    with pytest.raises(UserError, match="add text to --targets"):
        recipe_for("lora", pipe, WORD, targets=("cross",), text_lr=1e-4)


def test_too_little_disk_space_is_reported_before_training(tmp_path, monkeypatch):
    said = []
    free = SimpleNamespace(free=5_000_000)
    monkeypatch.setattr("sd.training.finetune.disk_space.shutil.disk_usage", lambda path: free)
    check_free_space(RequiredSpace(3_000_000, 2_000_000, 1_000_000), tmp_path / "run", tmp_path / "o", said.append)
    assert "up to 3 MB in" in said[0]
    with pytest.raises(UserError, match="needs 22 MB more, and 5 MB are free"):
        check_free_space(RequiredSpace(20_000_000, 2_000_000, 2_000_000), tmp_path / "run", tmp_path / "o", said.append)


def test_keep_last_and_clean_delete_files(pipe, images, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    finetune("lora", images, WORD, pipe, quick("lora", pipe, saves=4, keep_last=2), run=run)
    assert [step_of(path) for path in step_files(run)] == [3, 4]
    result = finetune("lora", images, WORD, pipe, quick("lora", pipe, saves=4, keep_last=2, clean=True), run=run)
    assert result.path.exists()
    assert not any((run / name).exists() for name in ("steps", "state.pt", "latents.pt"))
    assert result.sheet.exists()
    with pytest.raises(UserError, match="has ended and was cleaned up; its result is"):
        finetune("lora", images, WORD, pipe, quick("lora", pipe, saves=4), run=run)


def test_the_advice_says_its_rule_and_when_no_step_keeps_to_the_prompt():
    before = Scores(0, 0.3, 0.8, 0)
    kept = [before, Scores(1, 0.5, 0.75, 0), Scores(2, 0.6, 0.3, 0)]
    assert (best_step(kept).step, best_step(kept).keeps_prompts) == (1, True)
    assert "chosen: step 1 has the highest CLIP-I of the steps that follow the prompt" in format_table(kept, "x")
    lost = [before, Scores(1, 0.5, 0.3, 0), Scores(2, 0.6, 0.1, 0)]
    told = format_table(lost, "x")
    assert "best step" not in told
    assert "none of these steps follows the prompt (CLIP-T of at least 0.720); step 2 has the highest CLIP-I" in told
    assert "try fewer --steps or a lower --lr" in told


def test_photos_on_a_model_of_emoji_cause_a_warning():
    photos = [Scores(0, 0.3, 0.8, 0, held_out=0.42), Scores(1, 0.5, 0.8, 0, held_out=0.4)]
    told = format_table(photos, "x")
    assert "was not trained on images like these: its loss on them is 0.42" in told
    assert "best step" not in told
    scores = [Scores(0, 0.3, 0.8, 0, held_out=0.17), Scores(1, 0.5, 0.8, 0, held_out=0.16)]
    assert "not trained on" not in format_table(scores, "x")
    assert "best step" in format_table(scores, "x")


def test_a_gain_within_its_interval_is_none_and_the_held_out_loss_may_disagree():
    before = Scores(0, 0.3, 0.8, 0, 0.0, 0.0, 0.10)
    unsure = Scores(1, 0.31, 0.8, 0, 0.01, 0.02, 0.10)
    assert "no significant gain: CLIP-I rose by 0.010 ± 0.020" in format_table([before, unsure], "x")
    sure = Scores(1, 0.4, 0.8, 0, 0.1, 0.02, 0.12)
    told = format_table([before, sure], "x")
    assert "gain" not in told
    assert "the held-out loss disagrees: it is lowest at step 0 (0.100) and 0.120 at step 1" in told


@pytest.mark.parametrize("method", METHODS)
def test_other_programs_find_their_metadata(method, based, images, tmp_path):  # noqa: F811
    (images / "0.txt").write_text("a red ball, Outdoors")
    output = tmp_path / "made.safetensors"
    asked = quick(method, based, class_word="dog") if method == "lora" else quick(method, based)
    personalize.finetune(method, images, WORD, based, asked, run=tmp_path / "run", output=output)
    with safe_open(output, "pt") as file:
        said = file.metadata()
    assert said["ss_output_name"] == "made"
    assert said["ss_training_started_at"] == "1000000000.0"
    assert said["ss_num_epochs"] == "2"  # 4 steps of 2 in 4 images
    assert said["ss_optimizer"] == "torch.optim.adamw.AdamW(weight_decay=0.0,betas=(0.9, 0.999))" or method != "ti"
    assert json.loads(said["ss_dataset_dirs"]) == {"images": {"n_repeats": 1, "img_count": 5}}
    tags = json.loads(said["ss_tag_frequency"])["images"]
    assert tags["outdoors"] == 1
    buckets = json.loads(said["ss_bucket_info"])["buckets"]
    assert sum(bucket["count"] for bucket in buckets.values()) == 5
    assert said["modelspec.title"] == "made"
    assert said["modelspec.trigger_phrase"] == (f"{WORD} dog" if method == "lora" else WORD)
    assert said["sd_trained_from"] == "base.safetensors"


def test_a_hash_of_a_diffusers_folder_is_of_its_weights(based, tmp_path):
    based.save_pretrained(tmp_path / "folder")
    based.path = tmp_path / "folder"
    first = runs.content_hash(based)
    assert len(first) == 10
    with torch.no_grad():
        based.unet.out[2].bias += 1
    shutil.rmtree(tmp_path / "folder")
    based.save_pretrained(tmp_path / "folder")
    assert runs.content_hash(based) != first
    assert read_checkpoint(tmp_path / "folder").config["image_size"] == 64


STOPPED = """
import os, signal, sys, threading, time
from pathlib import Path
import torch
from torch import nn
from sd.training.loop import TrainConfig, train

class Slow:
    def waits_for(self, step):
        return f"the preview images of step {step}"
    def __call__(self, average, step, loss):
        os.kill(os.getpid(), signal.SIGINT)
        if sys.argv[2] == "twice":
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

model = nn.Linear(2, 1)
loss = lambda model, indices, generator: model(torch.ones(1, 2)).square().mean()
train(model, loss, 4, Path(sys.argv[1]), TrainConfig(3, 1, device="cpu", precision="fp32", ema=0), on_step=Slow())
"""


@pytest.mark.parametrize(("times", "saved"), [("once", True), ("twice", False)])
def test_ctrl_c_in_a_preview_says_what_it_waits_for_and_a_second_one_leaves(times, saved, tmp_path):
    root = Path(__file__).resolve().parents[3]
    program = [sys.executable, "-c", STOPPED, str(tmp_path / "run"), times]
    ended = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    assert "KeyboardInterrupt" in ended.stderr
    assert "stopping: waiting for the preview images of step 1, then saving. The same command resumes" in ended.stderr
    assert ("exiting at once" in ended.stderr) != saved
    assert (tmp_path / "run" / "state.pt").exists() == saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_contact_sheet_shows_the_images_trained_from_and_marks_the_taken_row(pipe, images, tmp_path, monkeypatch):  # noqa: F811
    labels = []
    monkeypatch.setattr(
        "sd.training.finetune.validation.contact_sheet",
        lambda rows, names, columns: labels.extend(zip(names, rows)) or Image.new("RGB", (8, 8)),
    )
    result = finetune("lora", images, WORD, pipe, quick("lora", pipe), run=tmp_path / "run")
    names = [name for name, _ in labels]
    assert names[0] == "training images"
    assert labels[0][1][0].size == (72, 64)
    assert [name.startswith("CHOSEN >>") for name in names[1:]] == [step == result.best_step for step in (0, 2, 4)]


def test_the_choice_has_its_reason_the_result_its_command_and_a_resume_its_step(pipe, images, tmp_path, capsys):  # noqa: F811
    run = tmp_path / "run"
    result = finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=2, saves=1), run=run)
    told = capsys.readouterr().out
    assert f"chosen: {result.rule}." in told
    assert set(result.warnings) == {line[9:] for line in told.splitlines() if line.startswith("warning: ")}
    assert f"use it: python scripts/txt2img.py 'a {WORD}' --lora {WORD}" in told
    note = json.loads((run / "run.json").read_text())
    note["dialect"] = note.pop("file_format")  # as earlier versions wrote it
    (run / "run.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match="started with another file format"):
        finetune("lora", images, WORD, pipe, quick("lora", pipe, file_format="diffusers"), run=run)
    finetune("lora", images, WORD, pipe, quick("lora", pipe), run=run)
    assert "this run has made 2 of 4 steps already: resuming after step 2" in capsys.readouterr().out
