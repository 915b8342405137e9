"""An ESRGAN model between the two passes: by its name in the folder, in infotext, and over the webui's API."""

import numpy as np
import pytest
import torch
from reference_models import randomize
from safetensors.torch import save_file
from web_client import Web, post

from sd.checkpoints.discovery import Models
from sd.pipeline.metadata.settings_infotext import read_settings
from sd.upscalers.rrdbnet import RRDBNet
from sd.utils.errors import UserError

SMALL = dict(steps=2, seed=5, guidance_scale=3.0, sampler="euler", hires_scale=2.0, hires_strength=0.5)


def put_upscaler(folder):
    path = folder / "upscalers" / "sharp.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params_ema": randomize(RRDBNet(8, 1, 4), seed=5).state_dict()}, path)
    return path


def test_it_enlarges_for_the_second_pass(pipe, tmp_path):
    path = put_upscaler(tmp_path)
    pipe.adapters.models = Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")
    made = pipe("a cat", hires_upscaler="sharp", **SMALL)
    assert made.images[0].size == (128, 128)
    assert not np.array_equal(made.images[0], pipe("a cat", hires_upscaler="lanczos", **SMALL).images[0])
    by_path = pipe("a cat", hires_upscaler=str(path), **SMALL)
    assert np.array_equal(made.images[0], by_path.images[0])
    for text in made.infotexts + by_path.infotexts:
        assert "Hires upscaler: sharp," in text
        assert read_settings(text).values["hires_upscaler"] == "sharp"
    with pytest.raises(UserError, match=r"unknown upscaler 'blurry'; choose from Latent, Lanczos, Nearest, sharp\."):
        pipe("a cat", hires_upscaler="blurry", **SMALL)


def test_another_programs_infotext_finds_the_file(tmp_path, monkeypatch):
    path = put_upscaler(tmp_path)
    path.rename(path.with_name("RealESRGAN_x4plus.pth"))
    models = Models(tmp_path, tmp_path / "loras", tmp_path / "embeddings")
    monkeypatch.setattr("sd.pipeline.metadata.infotext_sizes.Models", lambda: models)
    text = "a cat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Hires upscale: 2, Hires upscaler: {}"
    for name, found in (("R-ESRGAN 4x+", "RealESRGAN_x4plus"), ("Nearest", "nearest"), ("4x-UltraSharp", "lanczos")):
        reading = read_settings(text.format(name))
        assert reading.values["hires_upscaler"] == found
        assert ("Hires upscaler" in reading.notes) == (found == "lanczos")


def test_the_webuis_api_knows_it(tmp_path, pipe):
    web = Web(tmp_path, pipe)
    put_upscaler(web.models.folders["checkpoint"])
    web.models.refresh()
    assert "sharp" in [one["name"] for one in web.client.get("/sdapi/v1/upscalers").json()]
    body = dict(prompt="a cat", steps=2, seed=1, width=64, height=64, enable_hr=True, hr_scale=2, hr_upscaler="sharp")
    assert "Hires upscaler: sharp" in post(web, "txt2img", **body)["info"]
    web.jobs.close()


def test_a_file_that_is_no_upscaler_costs_no_image(pipe, tmp_path):
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    steps = []
    with pytest.raises(UserError, match="is no upscaler: give an ESRGAN"):
        pipe("a cat", hires_upscaler=str(tmp_path / "odd.safetensors"), on_step=lambda *step: steps.append(1), **SMALL)
    assert steps == []


def test_weights_that_are_no_numbers_are_refused(pipe, tmp_path):
    path = put_upscaler(tmp_path)
    content = torch.load(path)
    content["params_ema"]["conv_hr.bias"][0] = float("nan")
    torch.save(content, path)
    with pytest.raises(UserError, match=r"not finite numbers \(conv_hr.bias\)"):
        pipe("a cat", hires_upscaler=str(path), **SMALL)


def test_options_of_a_second_pass_without_one_are_said_to_do_nothing(pipe):
    made = pipe("a cat", **SMALL | {"hires_scale": 1.0}, hires_upscaler="lanczos", hires_steps=3)
    assert made.notes == [
        "Without a hires scale over 1, hires strength, hires steps and hires upscaler change nothing."
    ]
