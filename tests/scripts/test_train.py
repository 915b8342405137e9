"""The fine-tuning scripts as users run them, with the bundled model and a few steps."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sd.adapters.embedding_files import read_embeddings
from sd.pipeline.stable_diffusion import BUNDLED, StableDiffusion

QUICK = ["--ckpt", BUNDLED, "--steps", 2, "--saves", 1, "--preview-steps", 1, "--batch", 1, "--prompt", "a {}"]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k, colour in enumerate(("red", "green", "blue", "yellow", "white")):
        Image.new("RGB", (160, 140), colour).save(folder / f"{k}.jpg")
    return folder


def test_textual_inversion(run, images):
    flags = ["--images", images, "--word", "<blob>", "--init", "red apple", "--vectors", 2]
    code, out, err = run("train_ti.py", *flags, *QUICK, "--run-dir", "run", "--output", "blob.safetensors")
    assert code == 0, err
    assert "384 trainable parameters, 2 steps of 1 images" in out
    assert "effective learning rate 0.0005" in out
    assert "blob.safetensors  step 2" in out
    assert read_embeddings("blob.safetensors", 192).vectors["<blob>"].shape == (2, 192)
    code, _, err = run("txt2img.py", "a <blob>", "--ckpt", BUNDLED, "--steps", 1, "--embedding", "blob.safetensors")
    assert code == 0, err


def test_lora(run, images):
    flags = ["--images", images, "--name", "blob", "--class-word", "heart", "--rank", 2, "--noise-offset", 0.1]
    code, out, err = run("train_lora.py", *flags, *QUICK, "--run-dir", "run", "--output", "loras/blob.safetensors")
    assert code == 0, err
    assert "captions such as 'blob heart'" in out
    with safe_open("loras/blob.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_network_alpha"] == "2.0"
    assert metadata["ss_steps"] == "2"
    assert metadata["ss_training_comment"] == "say blob heart"
    code, out, err = run(
        "txt2img.py", "a blob heart", "--ckpt", BUNDLED, "--steps", 1, "--lora", "loras/blob.safetensors"
    )
    assert code == 0, err


@pytest.mark.parametrize(
    ("script", "flags", "said"),
    [
        ("train_ti.py", ["--images", "nowhere", "--word", "blob"], "folder not found: nowhere"),
        ("train_lora.py", ["--images", "images/0.jpg", "--name", "blob"], "this is a file: images/0.jpg"),
        ("train_dreambooth.py", ["--images", "images", "--name", "a blob"], "invalid name 'a blob'"),
        ("train_controlnet.py", ["--images", "nowhere", "--name", "blob"], "folder not found: nowhere"),
    ],
)
def test_a_mistake_is_said_before_the_model_is_loaded(run, images, monkeypatch, script, flags, said):
    monkeypatch.setattr(StableDiffusion, "from_pretrained", lambda *_: pytest.fail("was loaded"))
    code, _, err = run(script, *flags)
    assert (code, said in err) == (2, True), err


@pytest.mark.slow
def test_dreambooth(run, images):
    flags = ["--images", images, "--name", "blob", "--ema", 0.9]
    code, _, err = run("train_dreambooth.py", *flags, *QUICK, "--run-dir", "run", "--output", "blob.safetensors")
    assert code == 0, err
    code, _, err = run("txt2img.py", "a blob", "--ckpt", "blob.safetensors", "--steps", 1)
    assert code == 0, err
    assert torch.load("run/state.pt")["step"] == 2
    assert json.loads(Path("run/scores.json").read_text())["steps"][1]["step"] == 2


def test_mistakes_are_one_sentence_and_exit_2(run, images):
    for flags, sentence in (
        (["--images", "nowhere", "--word", "<blob>"], "folder not found: nowhere"),
        (["--images", images, "--word", "dog"], "already in the vocabulary"),
        (["--images", images, "--word", "<blob>", "--steps", 0], "--steps must be a whole number from 1 to"),
    ):
        code, _, err = run("train_ti.py", "--ckpt", BUNDLED, "--run-dir", "run", *flags)
        assert code == 2
        assert err.startswith("error: ")
        assert sentence in err
        assert err.count("\n") == 1
