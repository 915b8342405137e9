"""The two one-page examples do what the whole project does, and nothing else."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from examples.minimal_train import load_images, train
from examples.minimal_txt2img import generate
from sd.checkpoints.checkpoint import load_models
from sd.pipeline.stable_diffusion import StableDiffusion

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("prompt", "negative", "scale", "seed"), [("a red apple", "", 7.5, 0), ("a cat", "blue", 3, 9)]
)
def test_minimal_txt2img_equals_the_pipeline_without_patches_in_every_pixel(prompt, negative, scale, seed):
    pipe = StableDiffusion.from_pretrained(ROOT / "weights" / "emoji.safetensors", "cpu", torch.float32)
    pipe.optimizations = []
    asked = dict(steps=4, guidance_scale=scale, seed=seed, sampler="ddim", negative_prompt=negative)
    expected = pipe(prompt, **asked).images[0]
    made = generate(prompt, negative, steps=4, scale=scale, seed=seed)
    assert np.array_equal(made, expected)


def test_minimal_train_lowers_the_loss():
    squares = torch.zeros(2, 3, 64, 64)
    squares[:, :, 16:48, 16:48] = torch.tensor([0.9, -0.8, -0.8]).view(3, 1, 1)
    *_, losses = train(squares, "a red square", steps=24, batch=4, lr=1e-4)
    # One loss depends on its t more than on the weights, so means of a third of the run are compared.
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_minimal_train_reads_images_upright_and_in_their_own_depth(tmp_path):
    gray = np.full((40, 40), 128 * 257, np.uint16)  # of 16 bits, which Pillow alone would clip to white
    Image.fromarray(gray).save(tmp_path / "a.png")
    photo = Image.new("RGB", (40, 40), "black")
    photo.paste("white", (0, 0, 20, 40))  # the left half; the camera was held on its side
    exif = photo.getexif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save(tmp_path / "b.png", exif=exif)
    first, second = load_images(tmp_path, 40)
    assert first.abs().max() < 0.01  # 128 of 255
    assert (second[:, :20].min(), second[:, 20:].max()) == (1, -1), "the white half is above"


@pytest.mark.parametrize(("name", "flags"), [("minimal_train", []), ("minimal_txt2img", ["--help"])])
def test_a_call_that_is_not_understood_prints_how_to_call(tmp_path, monkeypatch, name, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *flags])
    with pytest.raises(SystemExit, match=f"python examples/{name}.py"):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert list(tmp_path.iterdir()) == []


def test_minimal_train_saves_a_checkpoint_from_a_shell(tmp_path):
    photos, made = tmp_path / "photos", tmp_path / "tuned.safetensors"
    photos.mkdir()
    Image.new("RGB", (90, 70), "teal").save(photos / "a.JPG")
    (photos / "note.txt").write_text("not an image")
    assert load_images(photos, 64).shape == (1, 3, 64, 64)
    script = ROOT / "examples" / "minimal_train.py"
    done = subprocess.run(
        [sys.executable, script, photos, "a teal square", made, "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = (load_models(path)[2].state_dict() for path in (ROOT / "weights" / "emoji.safetensors", made))
    assert not torch.equal(before["out.2.bias"].float(), after["out.2.bias"].float())
