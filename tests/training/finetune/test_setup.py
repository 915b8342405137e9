"""The setup of a run before its first step."""

import pytest
import torch

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune import setup as preparing
from sd.training.finetune.recipes import recipe_for
from sd.training.finetune.setup import load_for_training, train_config


@pytest.mark.parametrize(
    ("method", "precision", "dtype"),
    [
        ("lora", None, torch.float16),
        ("lora", "fp32", torch.float32),
        ("ti", "bf16", torch.bfloat16),
        ("dreambooth", None, torch.float32),
        ("dreambooth", "fp16", torch.float32),  # the precision of its steps alone
    ],
)
def test_frozen_networks_may_be_in_half_precision(monkeypatch, method, precision, dtype):
    monkeypatch.setattr(preparing, "best_precision", lambda device: "fp16")
    monkeypatch.setattr(StableDiffusion, "from_pretrained", lambda path, device, dtype, vae, prediction: dtype)
    assert load_for_training(method, device="cpu", precision=precision) == dtype


@pytest.mark.parametrize("method", ["ti", "lora", "dreambooth"])
@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_the_loop_trains_on_the_very_gpu_of_the_model(monkeypatch, pipe, method, device):
    recipe = recipe_for(method, pipe, "my-dog")
    monkeypatch.setattr(preparing, "best_precision", lambda device: "fp32")
    monkeypatch.setattr(StableDiffusion, "device", torch.device(device))
    assert train_config(recipe, method, pipe, world_size=1).device == device
