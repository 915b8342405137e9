"""One network at a time on the GPU. There is none here: layers note where they are sent, and stay where they are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sd.optimization.cpu_offload import CPU, ModelOffloader
from sd.optimization.registry import EXACT, OPTIMIZATIONS, optimize
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.errors import UserError

ASKED = dict(prompt="a red apple", steps=3, sampler="ddim", guidance_scale=3.0, seed=5)
GPU = torch.device("cuda")


@pytest.fixture
def sent(monkeypatch) -> dict[nn.Module, torch.device]:
    """Where each layer was sent last."""
    last = {}

    def move(offloader: ModelOffloader, first: nn.Module, device: torch.device) -> None:
        for layers in offloader.groups[first]:
            last.update(dict.fromkeys(layers.modules(), device))

    monkeypatch.setattr(ModelOffloader, "move", move)
    for name in ("model-cpu-offload", "compile"):
        monkeypatch.setitem(OPTIMIZATIONS, name, replace(OPTIMIZATIONS[name], obstacle=lambda device, dtype: ""))
    return last


@pytest.mark.parametrize("step_cache", [1, 3])
def test_who_works_is_there_and_all_others_wait(sent, step_cache):
    pipe = StableDiffusion.from_pretrained()
    exact = pipe(**ASKED, step_cache=step_cache).latents
    pipe.optimizations = [EXACT, "model-cpu-offload"]
    pipe.optimize()
    pipe.unet.offloader.device = GPU
    heavy = {
        "clip": pipe.clip.encoder.layers[0].mlp.fc1,
        "unet": pipe.unet.output_blocks[0][0].in_layers[2],
        "decoder": pipe.vae.decoder.mid.block_1.conv1,
    }
    assert all(sent[layer] == CPU for layer in heavy.values())
    worked = []

    def note(name: str) -> None:
        assert {other for other, layer in heavy.items() if sent[layer] == GPU} == {name}
        worked.append(name)

    for name, layer in heavy.items():
        layer.register_forward_hook(lambda *_, name=name: note(name))
    again = pipe(**ASKED, step_cache=step_cache)
    assert torch.equal(again.latents, exact)
    assert list(dict.fromkeys(worked)) == ["clip", "unet", "decoder"]
    # These say where the networks are, and have never been sent away.
    homes = {pipe.unet.out[2], pipe.vae.post_quant_conv, pipe.clip.final_layer_norm}
    assert not homes & set(sent)


def test_taken_off_all_come_back_and_stay(sent):
    pipe = StableDiffusion.from_pretrained()
    optimize(pipe.unet, pipe.vae, ["model-cpu-offload"], pipe.clip)
    pipe.unet.offloader.device = GPU
    pipe(**ASKED | {"steps": 1})
    optimize(pipe.unet, pipe.vae, [], pipe.clip)
    assert set(sent.values()) == {GPU}
    assert not pipe.clip._forward_pre_hooks
    sent.clear()
    pipe(**ASKED | {"steps": 1})
    assert not sent


def test_weights_that_move_do_not_go_with_graphs_of_them(sent):
    pipe = StableDiffusion.from_pretrained()
    with pytest.raises(UserError, match="compile and model-cpu-offload do not work together; remove one of them"):
        optimize(pipe.unet, pipe.vae, ["model-cpu-offload", "compile"], pipe.clip)
    assert not sent
