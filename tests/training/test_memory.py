"""The peak memory of one training step at v1-5's size, 512 x 512, in a separate process."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sd.utils.device import cpu_has_bf16

ROOT = Path(__file__).resolve().parents[2]
STEP = textwrap.dedent("""
    import sys
    import torch
    from benchmarks.runner import peak_resident_bytes
    from sd.clip import CLIPTextModel
    from sd.optimization.registry import TRAINABLE
    from sd.pipeline.stable_diffusion import StableDiffusion
    from sd.tokenizer import Tokenizer
    from sd.training.finetune.gradient_checkpointing import enable_gradient_checkpointing
    from sd.training.loop import Trainer
    from sd.training.finetune.methods import METHODS
    from sd.training.loss import prediction_errors, snr_weights
    from sd.training.finetune.setup import train_config
    from sd.training.finetune.recipes import recipe_for
    from sd.unet import UNetModel
    from sd.vae import AutoencoderKL

    def made(network):
        with torch.device("meta"):
            network = network()
        network = network.to(torch.bfloat16).to_empty(device="cpu")
        for parameter in network.parameters():
            parameter.detach().uniform_(-0.01, 0.01)
        return network

    method, recomputed = sys.argv[1], sys.argv[2] == "recomputed"
    pipe = StableDiffusion(Tokenizer(), made(CLIPTextModel), made(AutoencoderKL), made(UNetModel))
    pipe.set_optimizations(TRAINABLE)
    pipe.optimize()
    recipe = recipe_for(method, pipe, "zebrafish-7")
    tuner = METHODS[method](pipe, "zebrafish-7", recipe)
    if recomputed:
        enable_gradient_checkpointing(pipe.unet)
    x0, noise = torch.randn(2, 1, 4, 64, 64).unbind(0)

    def loss(model, indices, generators):
        context = tuner.contexts(["a photo of zebrafish-7"])
        return prediction_errors(pipe.unet, x0, noise, torch.tensor([500]), context, snr_weights()).mean()

    settings = train_config(recipe, method, pipe, 1)
    assert Trainer(tuner.module, loss, settings, 0, 1).step(0, torch.tensor([0]))[1] == ""
    print(peak_resident_bytes() / 1e9)
""")


@pytest.mark.slow
@pytest.mark.skipif(not cpu_has_bf16(), reason="the figures are for bf16")
@pytest.mark.parametrize(
    ("method", "how", "most"), [("lora", "plain", 4.0), ("lora", "recomputed", 3.0), ("ti", "plain", 5.0)]
)
def test_a_full_size_step_fits(method, how, most):
    """Bounds in GB: what the requirements allow."""
    done = subprocess.run([sys.executable, "-c", STEP, method, how], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < most
