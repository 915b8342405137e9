"""Exact resume, data order and averages of the loop; each part's loss falls, and folding changes nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sd.training.loop import TrainConfig, batch_indices, ema_update, step_seed, train
from sd.training.pretrain import run as pretrain_run
from sd.training.pretrain import train_unet as diffusion
from sd.training.pretrain import train_vae as autoencoder
from sd.training.pretrain.dataset import Emoji, random_crops
from sd.utils.errors import UserError
from sd.vae import LATENT_SCALE, AutoencoderKL

ROOT = Path(__file__).parents[3]
FAST = TrainConfig(steps=6, batch=4, lr=1e-2, warmup=2, precision="fp32", save_minutes=60)


def noisy_line(model, indices, generator):
    """A loss with data and randomness in it: fit y = 3 x with noise."""
    x = indices.float()[:, None] / 10
    return (model(x) - 3 * x - 0.1 * torch.randn(x.shape, generator=generator)).square().mean()


def line():
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def test_each_example_comes_once_an_epoch_and_ranks_share_them():
    epoch = [batch_indices(step, 4, 20, seed=1) for step in range(5)]
    assert sorted(torch.cat(epoch).tolist()) == list(range(20))
    shared = [batch_indices(step, 2, 20, seed=1, rank=rank, world_size=2) for step in range(5) for rank in range(2)]
    assert torch.equal(torch.cat(shared), torch.cat(epoch))
    assert not torch.equal(epoch[0], batch_indices(5, 4, 20, seed=1))  # the next epoch has another order


def test_a_batch_that_crosses_an_epoch_takes_from_both():
    first, second = batch_indices(0, 3, 5, seed=0), batch_indices(1, 3, 5, seed=0)
    assert sorted(torch.cat([first, second])[:5].tolist()) == list(range(5))


def test_seeds_of_steps_and_ranks_differ():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(8)}
    assert len(seeds) == 3 * 50 * 8


def test_learning_rate_warms_up_and_falls_to_its_end():
    settings = TrainConfig(steps=100, batch=1, lr=2.0, warmup=10, final_lr=0.1)
    assert settings.lr_at(0) == pytest.approx(0.2)
    assert settings.lr_at(9) == settings.lr_at(10) == 2.0
    assert settings.lr_at(55) == pytest.approx(2.0 * 0.55)  # half-way down the cosine
    assert settings.lr_at(100) == settings.lr_at(1000) == pytest.approx(0.2)


def test_average_is_the_written_out_one():
    model, average = line(), line()
    with torch.no_grad():
        model.weight.fill_(1.0)
        average.weight.fill_(0.0)
    ema_update(average, model, 0.75)
    assert average.weight.item() == 0.25


def test_a_run_in_two_parts_equals_a_run_in_one(tmp_path):
    whole = train(line(), noisy_line, 10, tmp_path / "whole", FAST)
    # The learning rate depends on the planned length, so the first part is stopped from inside, as by Ctrl-C.
    calls = []

    def stopping(model, indices, generator):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return noisy_line(model, indices, generator)

    with pytest.raises(KeyboardInterrupt):
        train(line(), stopping, 10, tmp_path / "parts", FAST)
    assert torch.load(tmp_path / "parts" / "state.pt", weights_only=True)["step"] == 3
    parts = train(nn.Linear(1, 1), noisy_line, 10, tmp_path / "parts", FAST)
    assert torch.equal(parts.weight, whole.weight)
    assert torch.equal(parts.bias, whole.bias)


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from dataclasses import replace
        from training.pretrain.test_run import FAST, line, noisy_line
        from sd.training.loop import train
        run, kill = Path(sys.argv[1]), sys.argv[2] == "kill"
        steps = []
        def loss(model, indices, generator):
            steps.append(1)
            if kill and len(steps) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return noisy_line(model, indices, generator)
        average = train(line(), loss, 10, run, replace(FAST, save_minutes=0))
        print(average.weight.item().hex(), average.bias.item().hex())
    """)

    def run(name, *arguments):
        command = [sys.executable, "-c", program, str(tmp_path / name), *arguments]
        paths = os.pathsep.join((".", "tests"))
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})

    assert run("killed", "kill").returncode == -signal.SIGKILL
    assert run("killed", "go on").stdout == run("whole", "go on").stdout != ""
    steps = [json.loads(text)["step"] for text in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="not finite at step 0"):
        train(line(), lambda *_: torch.tensor(math.nan, requires_grad=True), 10, tmp_path, FAST)


# --- the parts, at tiny sizes -----------------------------------------------------------------------------------------


class FakeDataset:
    """A fake EmojiDataset: 8 flat colors, named and in two styles."""

    def __init__(self, side=32):
        rows = [(name, style) for name in ("red", "green", "blue", "grey") for style in ("light", "dark")]
        self.emoji = [Emoji("", name, style, [], "train") for name, style in rows]
        hues = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "grey": (1, 1, 1)}
        colors = torch.tensor([hues[name] for name, _ in rows]).float()
        scale = torch.tensor([255.0 if style == "light" else 100.0 for _, style in rows])
        self.pixels = (colors * scale[:, None]).to(torch.uint8)[:, :, None, None].repeat(1, 1, side, side)

    def __len__(self):
        return len(self.emoji)

    def images(self, indices=slice(None)):
        return self.pixels[indices].float() / 127.5 - 1


@pytest.fixture
def tiny(monkeypatch):
    sizes = {
        "unet": {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_levels": [1]},
        "vae": {"channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1},
        "clip": {"width": 64, "layers": 1, "heads": 1},
        "image_size": 32,
    }
    sizes["unet"]["context_dim"] = 64
    monkeypatch.setattr(pretrain_run, "SIZES", sizes)
    monkeypatch.setattr(
        pretrain_run, "VISION", {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "heads": 1}
    )
    monkeypatch.setattr(diffusion, "SHEET", ("a red, light", "a blue"))


def losses(run):
    return [json.loads(text)["loss"] for text in (run / "log.jsonl").read_text().splitlines()]


def test_clip_vae_and_unet_are_trained_in_turn_and_exported(tiny, tmp_path):
    from sd.checkpoints.checkpoint import load_models
    from sd.training.pretrain.export import export

    torch.manual_seed(0)
    steps = {"clip": 40, "vae": 40, "unet": 30}
    for part, count in steps.items():
        settings = TrainConfig(steps=count, batch=8, lr=2e-3, warmup=5, precision="fp32", ema=0.9, save_minutes=60)
        pretrain_run.train_part(part, tmp_path, FakeDataset(), settings)
        values = losses(tmp_path / part)
        assert values[-1] < 0.9 * values[0], part  # it learns; random guessing stays where it was
    assert (tmp_path / "unet" / "sheet-000030.png").exists()

    (tmp_path / "weights").mkdir()
    model, scorer = export(tmp_path, tmp_path / "weights")
    _, _, unet, checkpoint = load_models(model)
    assert checkpoint.config["unet"]["context_dim"] == 64
    assert json.loads(checkpoint.metadata["training"])["vae"]["step"] == 40
    trained = load_file(tmp_path / "unet" / "model.safetensors")
    assert all(torch.equal(tensor, trained[key].half()) for key, tensor in unet.state_dict().items())
    assert "visual_projection.weight" in load_file(scorer)
    assert not any(key.startswith("text_model") for key in load_file(scorer))
    # All have the permissions of any new file, so that other users of the machine can read them.
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (model, scorer, tmp_path / "unet" / "model.safetensors")}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_training_resumes_from_shipped_weights(tiny, tmp_path):
    from sd.checkpoints.checkpoint import read_checkpoint
    from sd.training.pretrain.export import export, unpack

    first, second, weights = tmp_path / "first", tmp_path / "second", tmp_path / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    settings = TrainConfig(steps=40, batch=8, lr=2e-3, warmup=5, precision="fp32", ema=0.9)
    for part in ("clip", "vae", "unet"):
        pretrain_run.train_part(part, first, FakeDataset(), settings if part == "clip" else replace(settings, steps=10))
    export(first, weights)
    unpack(weights, second)
    for part in ("clip", "vae", "unet"):
        before, after = (load_file(runs / part / "model.safetensors") for runs in (first, second))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key].half().float(), after[key]) for key in before)

    # Same data, same order: what has learned starts lower than what has not.
    pretrain_run.train_part("clip", second, FakeDataset(), replace(settings, steps=10))
    assert losses(second / "clip")[0] < 0.9 * losses(first / "clip")[0]

    model, _ = export(second, weights)
    made = json.loads(read_checkpoint(model).metadata["training"])
    assert made["clip"]["step"] == 10
    assert made["clip"]["earlier"]["step"] == 40
    assert "step" not in made["vae"]  # it was not touched
    assert made["vae"]["earlier"]["step"] == 10

    with pytest.raises(UserError, match="already holds a run"):
        unpack(weights, second)


def test_a_decoder_trains_alone_and_replaces_the_old_one(tiny, tmp_path):
    from sd.checkpoints.checkpoint import load_models, read_checkpoint
    from sd.training.pretrain.export import export, newest_folder, unpack

    torch.manual_seed(0)
    settings = TrainConfig(steps=10, batch=8, lr=2e-3, warmup=5, precision="fp32", ema=0.9)
    for part in ("clip", "vae", "unet", "decoder"):
        pretrain_run.train_part(part, tmp_path, FakeDataset(), settings)
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("vae", "decoder"))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}
    (tmp_path / "weights").mkdir()
    model, _ = export(tmp_path, tmp_path / "weights")
    _, vae, _, checkpoint = load_models(model)
    assert torch.equal(vae.decoder.conv_out.weight, after["decoder.conv_out.weight"].half())
    assert json.loads(checkpoint.metadata["training"])["decoder"]["step"] == 10
    unpack(tmp_path / "weights", tmp_path / "again")
    model, _ = export(tmp_path / "again", tmp_path / "weights")
    assert json.loads(read_checkpoint(model).metadata["training"])["decoder"]["earlier"]["step"] == 10

    assert newest_folder("decoder", tmp_path / "again") == tmp_path / "again" / "vae"  # the decoder is in it

    # Stages that were not trained further have the shipped weights and their history.
    unpack(tmp_path / "weights", tmp_path / "scenes" / "shipped")
    again, _ = export(tmp_path / "scenes", tmp_path, "train_scenes.py")
    before, after = load_file(model), load_file(again)
    assert all(torch.equal(before[key], after[key]) for key in before | after)
    assert json.loads(read_checkpoint(again).metadata["training"])["decoder"]["earlier"]["earlier"]["step"] == 10


def test_an_untrained_part_is_named(tmp_path):
    with pytest.raises(UserError, match=r"train_scratch\.py clip"):
        pretrain_run.train_part("unet", tmp_path, FakeDataset(), FAST)


def test_standardizing_changes_the_latents_and_not_the_images():
    torch.manual_seed(0)
    vae = AutoencoderKL(channels=32, channel_mult=(1, 1), num_res_blocks=1).double().eval()
    images = torch.rand(6, 3, 16, 16, dtype=torch.double) * 2 - 1
    with torch.no_grad():
        mean, logvar = vae.encode(images)
        before = vae.decode(mean)
        autoencoder.standardize(vae, mean)
        latents, new_logvar = vae.encode(images)
        after = vae.decode(latents)
    assert torch.allclose(after, before, atol=1e-10)  # float64; the fold is exact but for rounding
    scaled = latents * LATENT_SCALE
    assert torch.allclose(scaled.mean(dim=(0, 2, 3)), torch.zeros(4, dtype=torch.double), atol=1e-10)
    assert torch.allclose(scaled.std(dim=(0, 2, 3)), torch.ones(4, dtype=torch.double), atol=1e-10)
    # The noise keeps its size beside the signal.
    ratio = (new_logvar - logvar).mean(dim=(0, 2, 3)) + 2 * (mean.std(dim=(0, 2, 3)) * LATENT_SCALE).log()
    assert torch.allclose(ratio, torch.zeros(4, dtype=torch.double), atol=1e-10)


def test_captions_are_sampled_with_the_stated_frequencies():
    captions = diffusion.Captions(FakeDataset())
    assert captions.wordings[0] == ""
    assert len(set(captions.wordings)) == len(captions.wordings)
    decoded = captions.sample(torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0))
    texts = [captions.wordings[k] for k in decoded]
    # 4,000 draws of a tenth: a standard deviation of 0.5 %, four of them allowed; of a fifth, 0.6 %.
    assert texts.count("") / 4000 == pytest.approx(diffusion.EMPTY_CAPTIONS, abs=0.02)
    assert texts.count("light") / 4000 == pytest.approx(diffusion.STYLE_ALONE, abs=0.014)
    plain = sum(text in ("a red", "red") for text in texts) / 4000
    named = 1 - diffusion.EMPTY_CAPTIONS - diffusion.STYLE_ALONE
    assert plain == pytest.approx(named * (1 - diffusion.STYLED_CAPTIONS), abs=0.025)
    assert all("light" in text for text in texts if text not in ("", "a red", "red"))


def test_crops_are_parts_of_their_images():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(20, 1, 1, 1)
    crops = random_crops(images, 3, torch.Generator().manual_seed(0))
    assert crops.shape == (20, 1, 3, 3)
    steps = crops.diff(dim=-1)
    assert set(steps.unique().tolist()) == {-1.0, 1.0}  # neighbours stay neighbours, some mirrored
    assert (crops.diff(dim=-2) == 8).all()
    assert len({crop[0, 0, 0].item() for crop in crops}) > 5
