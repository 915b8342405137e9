"""Training on scenes, with tiny networks on plain shapes: each stage runs, resumes and improves."""

import json
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from scene_data import make_cutouts, tiny_clip, tiny_vae

from sd.schedule import SD1_SCHEDULE
from sd.tokenizer import Tokenizer
from sd.training.loop import TrainConfig, save_model
from sd.training.pretrain import pipeline, scene_text, scene_unet, scene_vae
from sd.training.pretrain.export import export
from sd.training.pretrain.scene_latents import SceneLatents, make_latents
from sd.training.pretrain.scene_text import CLIPWithReader, SceneReader, answers, measure_text, read_contents
from sd.training.pretrain.scenes.detector import Detector
from sd.training.pretrain.scenes.grammar import Grammar
from sd.training.pretrain.scenes.stream import SceneStream
from sd.training.pretrain.scenes.wording import Content
from sd.training.pretrain.train_unet import new_unet
from sd.utils.errors import UserError
from sd.vae import LATENT_SCALE

TINY = dict(batch=2, precision="fp32", warmup=1, save_minutes=9.0, ema=0.5)
SHIPPED = ROOT / "weights" / "emoji.safetensors"


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return SceneStream(make_cutouts(tmp_path_factory.mktemp("cutouts")))


def steps(count, **changes):
    return TrainConfig(steps=count, **(TINY | changes))


def test_two_wordings_of_one_fact_have_the_same_answers():
    left = Content("placed", "noto emoji", ("tree", "cat"), (None, None), relation="left")
    right = Content("placed", "noto emoji", ("cat", "tree"), (None, None), relation="right")
    assert answers(left) == answers(right)
    assert (answers(left)["name1"], answers(left)["axis"]) == ("tree", "left")
    other = Content("placed", "noto emoji", ("cat", "tree"), (None, None), relation="left")
    assert answers(other)["name1"] == "cat"
    pair = Content("colored_pair", "noto emoji", ("tree", "cat"), ("red", "blue"))
    assert [answers(pair)[slot] for slot in ("name1", "color1", "name2", "color2")] == ["cat", "blue", "tree", "red"]


def test_the_text_tower_learns_the_contents_of_captions(stream):
    model, tokenizer = CLIPWithReader(tiny_clip()), Tokenizer()
    contents, captions = read_contents(stream.grammar, list(range(64)))
    tokens = scene_text.crop_tokens(tokenizer, captions)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = model.reader.loss(model.clip.text_model(tokens), contents)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    figures = measure_text(model, Grammar(stream.cutouts), tokenizer, count=40)
    assert figures["count"] > 0.8  # three of four captions have one object: chance is below that
    assert set(figures) == {*SceneReader(32).questions, "all"}


def test_clip_trains_and_resumes(stream, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scene_text, "CAPTIONS", 8)
    scene_text.train_scene_text(tiny_clip(), tmp_path, stream, steps(2))
    again = scene_text.train_scene_text(tiny_clip(), tmp_path, stream, steps(3), teacher=tiny_clip())
    kept = load_file(tmp_path / "model.safetensors")
    assert torch.equal(kept["text_model.final_layer_norm.weight"], again.text_model.final_layer_norm.weight)
    lines = (tmp_path / "figures.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["2", "3"]
    assert "twins" in capsys.readouterr().out


def test_the_distance_from_the_original_clip_is_measured_and_can_be_minimized(stream):
    teacher, clip, tokenizer = tiny_clip().requires_grad_(False), tiny_clip(), Tokenizer()
    images, captions = stream.images(torch.arange(2))[0], ["a cat, noto emoji", "a red apple"]
    assert scene_text.distillation_loss(clip, teacher, images, captions, tokenizer).item() == 0
    with torch.no_grad():
        clip.text_model.final_layer_norm.weight *= 1.5
    moved = scene_text.distillation_loss(clip, teacher, images[:0], captions, tokenizer)
    # The states are 1.5 times as long, their bias being 0; texts' vectors have unit length and do not move.
    assert moved.item() == pytest.approx(0.25, rel=1e-4)
    moved.backward()
    assert clip.text_model.final_layer_norm.weight.grad.sum() > 0


def test_a_twin_stands_beside_each_scene(stream):
    scenes = scene_text.twin_scenes(stream, torch.arange(6))
    assert len(scenes) == 12
    assert all(a.caption != b.caption for a, b in zip(scenes[::2], scenes[1::2]))


def test_the_decoder_trains_on_scenes_and_the_latents_stay(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_vae, "MEASURED", 4)
    before, vae = tiny_vae(), tiny_vae()
    scene_vae.train_scene_decoder(vae, tmp_path, stream, steps(2))
    vae.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = stream.images(scene_vae.fixed_sample(4))[0]
    assert torch.equal(scene_vae.encode_images(vae, images), scene_vae.encode_images(before, images))
    assert not torch.equal(vae.decoder.conv_out.weight, before.decoder.conv_out.weight)
    assert (tmp_path / "psnr.tsv").read_text().startswith("2\t")


def test_latents_are_made_once_and_more_can_be_added(stream, tmp_path, monkeypatch):
    monkeypatch.setattr("sd.training.pretrain.scene_latents.SHARD", 3)
    vae = tiny_vae()
    assert make_latents(vae, stream, tmp_path, 3, say=lambda _: None) == 3
    assert make_latents(vae, stream, tmp_path, 6, say=lambda _: None) == 3
    data = SceneLatents(tmp_path)
    images, captions = stream.images(torch.arange(6))
    expected = scene_vae.encode_images(vae, images) * LATENT_SCALE
    torch.testing.assert_close(data.latents.float(), expected, atol=0.02, rtol=0.01)  # bfloat16 keeps 8 bits
    assert [texts[0] for texts in data.captions] == captions
    with pytest.raises(UserError, match="latents"):
        SceneLatents(tmp_path / "none")


def test_a_place_among_latents_is_not_the_number_of_a_scene(stream, tmp_path, monkeypatch):
    monkeypatch.setattr("sd.training.pretrain.scene_latents.SHARD", 3)
    vae = tiny_vae()
    assert make_latents(vae, stream, tmp_path, 4, say=lambda _: None) == 4
    assert make_latents(vae, stream, tmp_path, 9, say=lambda _: None) == 6  # the shard of one scene is made again
    assert SceneLatents(tmp_path).numbers == list(range(9))
    (tmp_path / "00001.pt").unlink()
    (tmp_path / "else.pt").write_bytes(b"something else")
    data = SceneLatents(tmp_path)
    assert data.numbers == [0, 1, 2, 6, 7, 8]
    expected = scene_vae.encode_images(vae, stream.images(torch.tensor(data.numbers))[0]) * LATENT_SCALE
    torch.testing.assert_close(data.latents.float(), expected, atol=0.02, rtol=0.01)  # bfloat16 keeps 8 bits


def test_the_unet_trains_on_scenes_and_its_text_tower_stays(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_unet, "SHEET", ("a cat", "two cats"))
    vae, text = tiny_vae(), tiny_clip().text_model
    make_latents(vae, stream, tmp_path / "latents", 4, say=lambda _: None)
    data = SceneLatents(tmp_path / "latents")
    sizes = {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_levels": [0, 1]}
    before = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    unet, teacher = (new_unet(sizes | {"context_dim": 32, "num_heads": 2}) for _ in range(2))
    run = tmp_path / "unet"
    scene_unet.train_scene_unet(unet, text, vae, run, data, steps(2), teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in text.state_dict().items())
    assert load_file(run / "model.safetensors")["out.2.weight"].abs().sum() > 0
    assert (run / "sheet-00000004.png").exists()


def test_the_target_of_a_single_emoji_is_the_teachers_prediction():
    noise, x0 = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    t, context = torch.tensor([10, 500, 900]), torch.randn(3, 77, 8)
    teacher = lambda x, t, context: x + t.view(-1, 1, 1, 1) + context.mean(dim=(1, 2)).view(-1, 1, 1, 1)  # noqa: E731
    single = torch.tensor([True, False, True])
    x = SD1_SCHEDULE.add_noise(x0, noise, t)
    found = scene_unet.noise_targets(teacher, x0, noise, t, context, single)
    assert torch.equal(found[1], noise[1])
    torch.testing.assert_close(found[::2], teacher(x, t, context)[::2])
    assert torch.equal(scene_unet.noise_targets(teacher, x0, noise, t, context, ~single & single), noise)


def test_states_of_captions_are_computed_once_and_are_those_of_the_text_tower():
    text = tiny_clip().text_model
    calls = []
    text.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    states = scene_unet.TextStates(text)
    found = states(["a cat", "two cats", "a cat", ""])
    again = states(["", "two cats"])
    assert calls == [3]
    expected = text(Tokenizer()(["a cat", "two cats", "a cat", ""]))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.01)  # bfloat16 keeps 8 bits
    assert found.dtype == torch.float32
    assert torch.equal(again, found[[3, 1]])


def test_captions_are_left_out_as_often_as_agreed(stream, tmp_path):
    make_latents(tiny_vae(), stream, tmp_path, 4, say=lambda _: None)
    data = SceneLatents(tmp_path)
    drawn = scene_unet.sample_captions(data, torch.arange(4).repeat(500), torch.Generator().manual_seed(0))
    assert sum(caption == "" for caption in drawn) / 2000 == pytest.approx(0.1, abs=0.02)  # three standard errors
    assert sum(caption in ("noto emoji", "fluent emoji") for caption in drawn) / 2000 == pytest.approx(0.05, abs=0.015)


def test_a_detector_trains_on_from_weights_without_a_state(stream, tmp_path, monkeypatch):
    (tmp_path / "detector").mkdir()
    save_model(Detector(width=16), tmp_path / "detector")
    given = []
    monkeypatch.setattr(pipeline, "Detector", lambda: Detector(width=16))
    monkeypatch.setattr(pipeline, "train_detector", lambda detector, *_: given.append(detector))
    pipeline.run_stage("detector", tmp_path, stream.cutouts.folder, steps(1))
    saved = load_file(tmp_path / "detector" / "model.safetensors")
    for name, tensor in given[0].state_dict().items():
        torch.testing.assert_close(tensor, saved[name].to(tensor), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in given[0].parameters())


def test_an_export_holds_the_weights_of_the_stages_and_the_history_of_the_shipped_ones(tmp_path):
    runs = tmp_path / "runs"
    pipeline.start_from_shipped(ROOT / "weights", runs)
    for part in ("clip", "vae", "unet"):
        pipeline.keep_history(part, runs)
        shutil.copy(runs / "shipped" / part / "model.safetensors", runs / part)
    model, scorer = export(runs, tmp_path, "train_scenes.py")
    assert scorer.exists()
    made, shipped = load_file(model), load_file(SHIPPED)
    assert made.keys() == shipped.keys()
    assert all(torch.equal(tensor, shipped[key]) for key, tensor in made.items())
    with safe_open(model, "pt") as new, safe_open(SHIPPED, "pt") as old:
        made, shipped = (json.loads(file.metadata()["training"]) for file in (new, old))
    for part in ("clip", "vae", "unet"):
        assert made[part]["earlier"].items() >= shipped[part].items()


@pytest.mark.parametrize(("precision", "plain"), [("bf16", True), ("fp32", False)])
def test_attention_is_plain_in_bf16(monkeypatch, precision, plain):
    """Flash attention's backward pass is slow in bf16 on a CPU, and the faster one in fp32."""
    monkeypatch.setattr(pipeline, "best_precision", lambda device: precision)
    settings = pipeline.stage_settings("unet", steps=7)
    assert (settings.precision, settings.math_attention, settings.steps) == (precision, plain, 7)
    assert pipeline.stage_settings("decoder").precision == "fp32"
