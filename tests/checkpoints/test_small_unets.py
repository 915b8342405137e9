"""Distilled U-Nets with fewer blocks (BK-SDM, tiny-sd), against diffusers and through every format."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from reference_models import TINY, randomize, relative_error

from sd.checkpoints.checkpoint import load_models, save_checkpoint
from sd.checkpoints.config import fill_defaults, infer_unet_config
from sd.checkpoints.diffusers_format import unet_config
from sd.checkpoints.diffusers_keys import unet_to_diffusers
from sd.clip import CLIPTextModel
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

# BK-SDM's base (one block a level), small (also without the middle) and tiny (also without the innermost level).
BASE = dict(model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_levels=(0, 1), context_dim=64)
SMALL = BASE | dict(middle_blocks=0)
TINIEST = SMALL | dict(channel_mult=(1, 2), attention_levels=(0, 1))
KINDS = {"base": BASE, "small": SMALL, "tiny": TINIEST}


def config_of(unet):
    return fill_defaults({"unet": unet, "vae": TINY["vae"], "clip": TINY["clip"], "image_size": 64}, "here")


@pytest.mark.parametrize("name", KINDS)
def test_it_is_diffusers_of_that_config(name):
    ours = randomize(UNetModel(**KINDS[name]), seed=1)
    config = unet_config(config_of(KINDS[name]))
    theirs = UNet2DConditionModel.from_config(json.loads(json.dumps(config)))
    theirs.load_state_dict(unet_to_diffusers(ours.state_dict()), strict=True)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 7, 64, generator=generator)
    with torch.no_grad():
        expected = theirs.eval()(x, torch.tensor([500]), context).sample
        found = ours(x, torch.tensor([500.0]), context)
    assert relative_error(found, expected) < 1e-5  # fp32, summed in another order


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["model.safetensors", "folder"])
def test_it_is_recognized_from_its_file(tmp_path, name, kind):
    config = config_of(KINDS[name])
    unet = randomize(UNetModel(**KINDS[name]), seed=1)
    networks = randomize(CLIPTextModel(**TINY["clip"]), 2), randomize(AutoencoderKL(**TINY["vae"]), 3), unet
    save_checkpoint(tmp_path / kind, *networks, config)
    *_, loaded, checkpoint = load_models(tmp_path / kind)
    assert checkpoint.config == config
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), unet.state_dict().values()))
    shapes = infer_unet_config(unet.state_dict())  # as of a file that names no configuration
    assert {key: shapes[key] for key in shapes if key != "num_heads"} == {
        key: value for key, value in config["unet"].items() if key != "num_heads"
    }


def test_a_usual_one_is_stored_as_before(tmp_path):
    config = config_of(TINY["unet"])
    unet = randomize(UNetModel(**TINY["unet"]), seed=1)
    networks = randomize(CLIPTextModel(**TINY["clip"]), 2), randomize(AutoencoderKL(**TINY["vae"]), 3), unet
    save_checkpoint(tmp_path / "model.safetensors", *networks, config)
    assert b"middle_blocks" not in (tmp_path / "model.safetensors").read_bytes()[:4000]
    assert load_models(tmp_path / "model.safetensors")[3].config == config
