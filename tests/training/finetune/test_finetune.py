"""Fine-tuning from a folder of images to a file that prompts can use, with every kind of interruption."""

import json
import os
import shutil
import signal
import socket
from dataclasses import replace

import pytest
import safetensors
import torch
from conftest import fresh_copy
from many_processes import ended, forked, together
from PIL import Image
from reference_models import randomize

from sd.adapters.embedding_files import read_embeddings
from sd.checkpoints import weight_files
from sd.checkpoints.checkpoint import read_checkpoint
from sd.checkpoints.discovery import Models
from sd.checkpoints.predictions import PREDICTIONS, prediction_of, with_prediction
from sd.clip import CLIPTextModel
from sd.evaluation.clip_score import Scorer
from sd.optimization.registry import TRAINABLE
from sd.training.finetune import finetune as personalize
from sd.training.finetune.advice import Scores, best_step, format_table
from sd.training.finetune.methods import METHODS, freeze
from sd.training.finetune.recipes import recipe_for
from sd.utils.errors import UserError
from sd.vision.clip_vision import CLIP, CLIPVisionModel

pytestmark = pytest.mark.usefixtures("one_thread")

WORD = "zebrafish-7"
QUICK = dict(steps=4, batch=2, saves=2, preview_steps=1, prompts=("a {}", "{} at night"), class_images=2, lr=1e-2)
QUICK |= dict(rank=4, targets=("cross",))


@pytest.fixture(scope="module")
def scorer():
    text = CLIPTextModel(width=64, layers=1, heads=1)
    vision = CLIPVisionModel(image_size=32, patch_size=16, width=64, layers=1, heads=1)
    return Scorer(randomize(CLIP(text, vision, 32), seed=4), "a tiny CLIP")


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path, scorer):
    for name in ("RUNS", "WEIGHTS", "LORAS", "EMBEDDINGS"):
        monkeypatch.setattr(personalize, name, tmp_path / name.lower())
    monkeypatch.setattr(personalize, "load_clip", lambda: scorer)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # or the metadata of two runs differs in their time


def finetune(*args, **given):
    """Each run in a test stands for somebody's first: what another one has delivered is out of the way."""
    for folder in (personalize.WEIGHTS, personalize.LORAS, personalize.EMBEDDINGS):
        shutil.rmtree(folder, ignore_errors=True)
    return personalize.finetune(*args, **given)


@pytest.fixture
def images(tmp_path):
    """Five images, one of them wide."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(6)
    for k in range(5):
        small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        size = (96, 64) if k == 2 else (72, 64)
        Image.fromarray(small.numpy()).resize(size, Image.Resampling.BICUBIC).save(folder / f"{k}.jpg")
    return folder


def quick(method, pipe, **given):
    return recipe_for(method, pipe, WORD, **QUICK | given)


def contents(run):
    """The last state and the last saved file, both as bits."""
    state = torch.load(run / "state.pt")
    flat = {f"model.{key}": tensor for key, tensor in state["model"].items()}
    for k, slots in state["optimizer"]["state"].items():
        flat |= {f"optimizer.{k}.{key}": tensor for key, tensor in slots.items()}
    return state["step"], flat, (run / "steps" / "000004.safetensors").read_bytes()


def same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][key], other[1][key]) for key in one[1])
    assert one[2] == other[2]


@pytest.mark.parametrize("method", METHODS)
def test_finetuning_writes_a_file_a_sheet_and_scores(method, pipe, images, tmp_path, capsys):
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    events = []
    run = tmp_path / "run"
    result = finetune(method, images, WORD, pipe, quick(method, pipe), events.append, run)

    folder = {"ti": "embeddings", "lora": "loras", "dreambooth": "weights"}[method]
    assert result.path == tmp_path / folder / f"{WORD}.safetensors"
    assert result.path.read_bytes() == (run / "steps" / f"{result.best_step:06}.safetensors").read_bytes()
    assert result.best_step in (2, 4)
    assert Image.open(result.sheet).width > 2 * 64
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    assert [event["preview"] is not None for event in events] == [False, True, False, True]
    assert all(event["held_out"] > 0 for event in events[1::2])
    scores = json.loads((run / "scores.json").read_text())
    assert [one["step"] for one in scores["steps"]] == [0, 2, 4]

    said = capsys.readouterr().out
    assert "effective learning rate 0.01 (cosine)" in said
    assert "4 training images, 1 held out" in said
    assert "scores by a tiny CLIP:" in said
    assert f"{result.path}  step {result.best_step}" in said
    lines = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[0]) >= {"loss", "held_out", "lr"} | {"ti": {"norms"}, "lora": {"change"}}.get(method, set())

    assert not any(p.requires_grad for p in pipe.unet.parameters())
    unchanged = all(torch.equal(tensor, before[key]) for key, tensor in pipe.unet.state_dict().items())
    assert unchanged == (method != "dreambooth")
    assert pipe.adapters.names() == []
    if method != "dreambooth":
        assert (run / "state.pt").stat().st_size < 200_000  # the base alone has 2 MB
        (pipe.load_lora if method == "lora" else pipe.load_embedding)(result.path)
        pipe.unload()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_in_the_same_bits(method, pipe, images, tmp_path):
    given = {"class_word": "dog", "ema": 0.9} if method == "dreambooth" else {}
    recipe = quick(method, pipe, save_minutes=0, **given)
    finetune(method, images, WORD, fresh_copy(pipe), recipe, run=tmp_path / "whole")

    def die_at_3(event):
        if event["step"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        finetune(method, images, WORD, fresh_copy(pipe), recipe, die_at_3, tmp_path / "killed")

    assert ended(forked(work)) == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "state.pt")["step"] == 2
    finetune(method, images, WORD, fresh_copy(pipe), recipe, run=tmp_path / "killed")
    same(contents(tmp_path / "whole"), contents(tmp_path / "killed"))


def test_a_kill_in_the_middle_of_a_save_loses_only_that_one(pipe, images, tmp_path, monkeypatch):
    recipe = quick("lora", pipe, save_minutes=0)
    finetune("lora", images, WORD, pipe, recipe, run=tmp_path / "whole")
    saves = []

    def die_half_way(content, path):
        saves.append(1)
        write(content, path)
        if len(saves) == 3:
            os.truncate(path, 100)
            os.kill(os.getpid(), signal.SIGKILL)

    write = weight_files.write_torch

    def work():
        monkeypatch.setattr("sd.training.train_state.write_torch", die_half_way)
        finetune("lora", images, WORD, pipe, recipe, run=tmp_path / "killed")

    assert ended(forked(work)) == -signal.SIGKILL
    finetune("lora", images, WORD, pipe, recipe, run=tmp_path / "killed")
    same(contents(tmp_path / "whole"), contents(tmp_path / "killed"))


def test_an_interrupt_from_an_event_saves_and_stops_and_the_rest_follows(pipe, images, tmp_path):
    recipe = quick("lora", pipe)
    finetune("lora", images, WORD, pipe, recipe, run=tmp_path / "whole")

    def stop(event):
        if event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune("lora", images, WORD, pipe, recipe, stop, tmp_path / "parts")
    assert torch.load(tmp_path / "parts" / "state.pt")["step"] == 3
    assert pipe.adapters.names() == []
    events = []
    finetune("lora", images, WORD, pipe, recipe, events.append, tmp_path / "parts")
    assert [event["step"] for event in events] == [4]
    same(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    again = finetune("lora", images, WORD, pipe, recipe, events.append, tmp_path / "parts")  # all is done already
    assert len(events) == 1
    assert again.path.exists()


def test_two_processes_equal_one_with_twice_the_batch(pipe, images, tmp_path):
    finetune("lora", images, WORD, pipe, quick("lora", pipe, batch=2), run=tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work():
        finetune("lora", images, WORD, pipe, quick("lora", pipe, batch=1), run=tmp_path / "two")

    assert together(work, 2, port) == [0, 0]
    one, two = (contents(tmp_path / name)[1] for name in ("one", "two"))
    for key in (key for key in one if key.startswith("model.")):
        # fp32 sums of gradients in another order, through four warming steps of Adam: 5e-3 in all.
        assert torch.allclose(one[key], two[key], atol=2e-4), key
    moved = max(one[key].abs().max() for key in one if key.endswith("lora_up"))
    assert moved > 1e-3, moved


def test_half_a_batch_twice_is_a_batch(pipe, images, tmp_path):
    finetune("ti", images, WORD, pipe, quick("ti", pipe, batch=2), run=tmp_path / "one")
    finetune("ti", images, WORD, pipe, quick("ti", pipe, batch=1, accumulate=2), run=tmp_path / "two")
    one, two = (contents(tmp_path / name)[1] for name in ("one", "two"))
    assert torch.allclose(one["model.0"], two["model.0"], atol=2e-4)  # as above


def test_the_scaled_learning_rate_is_printed(pipe, images, tmp_path, capsys):
    finetune("ti", images, WORD, pipe, quick("ti", pipe, accumulate=3, scale_lr=True, lr=1e-3), run=tmp_path / "run")
    assert "effective learning rate 0.006 = 0.001 x 6 images per step" in capsys.readouterr().out


def test_class_images_are_generated_once_and_kept(pipe, images, tmp_path):
    given = {"class_word": "dog"}
    finetune("dreambooth", images, WORD, fresh_copy(pipe), quick("dreambooth", pipe, **given), run=tmp_path / "a")
    generated = sorted((tmp_path / "runs" / "class").glob("*/*.png"))
    assert [path.name for path in generated] == ["00000.png", "00001.png"]
    times = [path.stat().st_mtime_ns for path in generated]
    generated[1].unlink()  # as if it had been stopped there
    finetune("dreambooth", images, WORD, fresh_copy(pipe), quick("dreambooth", pipe, **given), run=tmp_path / "b")
    assert generated[0].stat().st_mtime_ns == times[0]
    assert generated[1].exists()
    same(contents(tmp_path / "a"), contents(tmp_path / "b"))


@pytest.mark.parametrize("file_format", ["kohya", "diffusers", "peft"])
def test_every_lora_format_is_delivered_and_loads(file_format, pipe, images, tmp_path):
    recipe = quick("lora", pipe, steps=1, saves=1, file_format=file_format, checkpointing=True)
    result = finetune("lora", images, WORD, pipe, recipe, run=tmp_path / "run")
    assert result.path.is_dir() == (file_format == "peft")
    assert "100 %" in str(pipe.load_lora(result.path)) or pipe.adapters.names()


def test_an_embedding_for_the_webui(pipe, images, tmp_path):
    output = tmp_path / "there" / f"{WORD}.pt"
    result = finetune("ti", images, WORD, pipe, quick("ti", pipe, vectors=2), run=tmp_path / "run", output=output)
    found = read_embeddings(output, 64)
    assert result.path == output
    assert found.format == "the webui's"
    assert found.vectors[WORD].shape == (2, 64)


def test_bad_input_is_one_sentence_and_changes_nothing(pipe, images, tmp_path):
    def mistake(match, method="lora", folder=images, name=WORD, run="run", **given):
        with pytest.raises(UserError, match=match):
            finetune(method, folder, name, pipe, quick(method, pipe, **given), run=tmp_path / run, say=lambda _: None)
        assert pipe.adapters.names() == []
        assert type(pipe.unet.middle_block[1]).__name__ == "SpatialTransformer"

    (tmp_path / "empty").mkdir()
    mistake("no images in", folder=tmp_path / "empty")
    mistake("folder not found", folder=tmp_path / "nowhere")
    mistake("invalid name", name="../there")
    mistake("already in the vocabulary", method="ti", word="dog", run="word")
    mistake("contain no token", method="ti", init=" ", run="init")
    for match, given in (
        ("unknown kind 'pet': use object or style", {"kind": "pet"}),
        ("unknown target 'to_q'", {"targets": ("to_q",)}),
        ("^rank must be a whole number from 1 to 1024, not 0.$", {"rank": 0}),
        ("unknown setting 'learning'", {"learning": 1}),
        ("^lr must be a number from 0 to 10, not nan.$", {"lr": float("nan")}),
        ("use kohya or diffusers or peft", {"file_format": "webui"}),
    ):
        mistake(match, **given)
    mistake("unknown method 'hypernet'", method="hypernet")
    assert not (tmp_path / "init" / "run.json").exists()  # a mistake that is mended may go on there
    (tmp_path / "file").write_text("")
    mistake("cannot write into .*Not a directory.*: give another --run-dir", run="file/run")

    finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1), run=tmp_path / "begun", say=lambda _: None)
    mistake("was started with another rank", run="begun", rank=2)
    mistake("was started with another name", run="begun", name="other")


@pytest.mark.parametrize(
    ("method", "fact"), [("ti", "cosine 1.0000 to its initial word"), ("lora", "the change is 0 of")]
)
def test_a_negligible_change_is_reported(method, fact, pipe, images, tmp_path, capsys):
    finetune(method, images, WORD, pipe, quick(method, pipe, lr=0.0, steps=1), run=tmp_path / "run")
    about = "a vector has " * (method == "ti") + fact
    assert f"warning: the training has changed almost nothing: {about}" in capsys.readouterr().out


def test_a_captioned_set_needs_no_word_and_its_captions_are_previewed(pipe, images, tmp_path, capsys):
    with pytest.raises(UserError, match="5 of 5 images have no caption"):
        finetune("lora", images, WORD, pipe, quick("lora", pipe, word="", prompts=None), run=tmp_path / "none")
    for k in range(5):
        (images / f"{k}.txt").write_text(f"a red ball number {k}")
    finetune("lora", images, WORD, pipe, quick("lora", pipe, steps=1, word="", prompts=None), run=tmp_path / "run")
    assert "captions such as 'a red ball number 0'" in capsys.readouterr().out
    prompts = json.loads((tmp_path / "run" / "run.json").read_text())["prompts"]
    assert prompts == [f"a red ball number {k}" for k in range(4)]


def test_a_new_word_stands_alone_and_starts_as_its_class(pipe):
    chosen = recipe_for("ti", pipe, WORD, class_word="dog")
    assert (chosen.init, chosen.phrase) == ("dog", WORD)
    assert recipe_for("ti", pipe, WORD, class_word="dog", init="brown dog").init == "brown dog"
    assert recipe_for("lora", pipe, WORD, class_word="dog").phrase == f"{WORD} dog"


def test_an_unreadable_image_is_named_and_the_others_are_trained_on(pipe, images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    finetune("ti", images, WORD, pipe, quick("ti", pipe, steps=1), run=tmp_path / "run")
    said = capsys.readouterr().out
    assert "5 images" in said
    assert "broken.jpg" in said


def test_with_four_images_none_is_held_out(pipe, images, tmp_path, capsys):
    (images / "4.jpg").unlink()
    finetune("ti", images, WORD, pipe, quick("ti", pipe, steps=1), run=tmp_path / "run")
    assert "4 training images, none held out (too few)" in capsys.readouterr().out


def test_a_step_without_gain_is_reported():
    before = Scores(0, 0.6, 0.4, 0)
    assert "no gain by this CLIP: the images of step 1 are no more similar" in format_table(
        [before, Scores(1, 0.6, 0.4, 0)], "a CLIP"
    )
    assert "no gain" not in format_table([before, Scores(1, 0.61, 0.4, 0)], "a CLIP")


def test_the_best_step_has_the_fewest_copies_then_the_best_scores():
    scores = [Scores(0, 0.9, 0.4, 0), Scores(1, 0.5, 0.4, 0), Scores(2, 0.7, 0.37, 0), Scores(3, 0.9, 0.4, 1)]
    assert best_step(scores).step == 2
    assert "best step" in format_table(scores, "x").splitlines()[4]
    assert best_step([*scores, Scores(4, 0.8, 0.3, 0)]).step == 2  # it has lost a quarter of its fit to the prompts
    assert "generates copies" not in format_table(scores, "x")
    copied = [Scores(0, 0.1, 0.1, 0), Scores(1, 0.5, 0.3, 2)]
    assert "warning: every step generates copies" in format_table(copied, "x")


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_model_of_v_is_trained_as_one_and_its_results_say_so(method, pipe, images, tmp_path):
    pipe.sizes = with_prediction(pipe.sizes, PREDICTIONS["v-zero-snr"])
    losses = []
    said = []
    result = finetune(
        *(method, images, WORD, pipe, quick(method, pipe, steps=2, saves=1), losses.append, tmp_path / "run"),
        say=said.append,
    )
    with safetensors.safe_open(result.path, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["ss_zero_terminal_snr"] == "True"
    if method == "dreambooth":
        assert prediction_of(read_checkpoint(result.path).config) == PREDICTIONS["v-zero-snr"]
    else:
        assert metadata["ss_v_parameterization"] == "True"
    pipe.sizes = with_prediction(pipe.sizes, PREDICTIONS["eps"])
    with pytest.raises(UserError, match="run"):
        finetune(method, images, WORD, pipe, quick(method, pipe, steps=2, saves=1), None, tmp_path / "run")


def test_only_a_frozen_unet_without_checkpointing_is_trained_through_winograds_convolutions(pipe):
    recipe = quick("lora", pipe)
    with personalize.trainable_optimizations(pipe):
        freeze(pipe)
        personalize.optimize_frozen(pipe, replace(recipe, checkpointing=True))
        assert tuple(pipe.optimizations) == TRAINABLE
        pipe.unet.requires_grad_(True)
        personalize.optimize_frozen(pipe, recipe)
        assert tuple(pipe.optimizations) == TRAINABLE
        freeze(pipe)
        personalize.optimize_frozen(pipe, recipe)
        assert tuple(pipe.optimizations) == (*TRAINABLE, "winograd")
    assert pipe.optimizations is None


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [
        ("lora", "My-Dog", 1),
        ("dreambooth", "My-Dog", 1),
        ("ti", "My-Dog", 0),
        ("lora", "my-dog-lora", 1),
        ("lora", "dog-lora", 0),
        ("lora", "my-dogs", 0),
    ],
)
def test_an_embedding_of_the_new_word_is_noted(pipe, tmp_path, method, name, count):
    """A prompt with the word would use the embedding too, which the training did not."""
    models = Models(tmp_path, embeddings=tmp_path / "embeddings")
    recipe = recipe_for(method, pipe, name)
    assert personalize.embedding_notes(method, recipe, models) == []
    (tmp_path / "embeddings").mkdir()
    torch.save({"my-dog": torch.zeros(64)}, tmp_path / "embeddings" / "my-dog.pt")
    models.refresh()
    notes = personalize.embedding_notes(method, recipe, models)
    assert len(notes) == count
    assert all("an embedding named my-dog" in note for note in notes)
