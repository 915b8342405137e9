"""The turbo LoRA: the consistency function and the distillation loss against other forms of the same formulas."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from scene_data import make_cutouts, tiny_clip, tiny_vae
from torch import nn

from sd.checkpoints.discovery import BUNDLED, BUNDLED_TURBO
from sd.checkpoints.model_files import content_of
from sd.denoiser import Denoiser
from sd.evaluation.clip_score import load_clip
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.samplers import consistency_scales, lcm
from sd.schedule import SD1_SCHEDULE, sigma_list
from sd.training.loop import TrainConfig
from sd.training.pretrain.scene_latents import SceneLatents, make_latents
from sd.training.pretrain.scenes import turbo
from sd.training.pretrain.scenes.stream import SceneStream
from sd.training.pretrain.train_unet import new_unet

SIZES = dict(model_channels=32, channel_mult=[1, 2], num_res_blocks=1, attention_levels=[1], context_dim=32)


def tiny_unet(seed=0):
    """A U-Net whose last layer is not zero, as it is at first."""
    torch.manual_seed(seed)
    unet = new_unet(SIZES)
    nn.init.normal_(unet.out[2].weight, std=0.05)
    return unet.requires_grad_(False)


def batch(seed=1, size=3):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, size, 4, 8, 8, generator=generator)
    context, empty = torch.randn(2, size, 5, 32, generator=generator)
    return x0, noise, context, empty


def test_a_jump_is_the_estimate_that_the_lcm_sampler_uses():
    unet, (x0, noise, context, _) = tiny_unet(), batch()
    for steps in (1, 2, 4):
        sigmas = sigma_list(steps, "lcm")
        x = x0 + sigmas[0] * noise
        t = torch.full((len(x),), round(SD1_SCHEDULE.t_of(sigmas[0])))
        estimate = next(lcm(Denoiser(unet, context), x, sigmas, lambda: noise))[1]
        # fp32: the sampler's scale of x is a Python float, the other one a tensor.
        torch.testing.assert_close(turbo.jump(unet, x, t, context), estimate, rtol=1e-5, atol=1e-5)


def test_a_jump_from_the_end_is_the_latent_itself():
    x0, noise, context, _ = batch()
    skip, out = consistency_scales(torch.tensor([0, 1, 999]))
    assert (skip[0], out[0]) == (1, 0)
    assert (skip[2], out[2]) == (pytest.approx(0.25 / (9990**2 + 0.25)), pytest.approx(1))
    assert (skip[1], out[1]) == (pytest.approx(0.25 / 100.25), pytest.approx(10 / math.sqrt(100.25)))
    x = x0 + SD1_SCHEDULE.sigmas[0].item() * noise
    at_end = turbo.jump(tiny_unet(), x, torch.zeros(len(x), dtype=torch.long), context)
    torch.testing.assert_close(at_end, x / math.sqrt(1 + SD1_SCHEDULE.sigmas[0].item() ** 2))


def test_the_loss_is_the_one_of_the_paper_in_its_own_form():
    """Luo et al.'s algorithm 1, written in VP form with alpha = sqrt(a) and sigma = sqrt(1 - a)."""
    unet, teacher, (x0, noise, context, empty) = tiny_unet(0), tiny_unet(1), batch()
    t = torch.tensor([999, 499, 19])
    before = torch.tensor([979, 479, 0])
    a, a_before = (SD1_SCHEDULE.alphas_cumprod[times].view(-1, 1, 1, 1) for times in (t, before))

    def clean(network, z, times, text, alphas):
        eps = network(z, times, text)
        return (z - (1 - alphas).sqrt() * eps) / alphas.sqrt(), eps

    def consistency(network, z, times, text, alphas):
        scaled = 10.0 * times.view(-1, 1, 1, 1)
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()
        return skip * z + out * clean(network, z, times, text, alphas)[0]

    z = a.sqrt() * x0 + (1 - a).sqrt() * noise
    x0_cond, eps_cond = clean(teacher, z, t, context, a)
    x0_uncond, eps_uncond = clean(teacher, z, t, empty, a)
    guided_x0, guided_eps = (turbo.GUIDANCE * c + (1 - turbo.GUIDANCE) * u
                             for c, u in ((x0_cond, x0_uncond), (eps_cond, eps_uncond)))  # fmt: skip
    z_before = a_before.sqrt() * guided_x0 + (1 - a_before).sqrt() * guided_eps
    apart = consistency(unet, z, t, context, a) - consistency(unet, z_before, before, context, a_before)
    expected = ((apart**2 + 0.001**2).sqrt() - 0.001).mean()
    loss = turbo.distillation_loss(unet, teacher, x0, noise, t, context, empty)
    # At t = 999 x0 is z / 0.068: errors of fp32 grow by 15.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.item() > 0.01


def test_only_the_jump_from_the_beginning_has_a_gradient():
    unet, (x0, noise, context, empty) = tiny_unet(), batch()
    module = turbo.add_lora(unet, 0)
    turbo.distillation_loss(unet, tiny_unet(), x0, noise, torch.tensor([999, 499, 19]), context, empty).backward()
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    assert all((grad == 0).all() for name, grad in grads.items() if "lora_down" in name)  # up is 0 at first
    assert any((grad != 0).any() for name, grad in grads.items() if "lora_up" in name)
    assert all(parameter.grad is None for name, parameter in unet.named_parameters() if "deltas" not in name)


def test_turbo_trains_resumes_and_writes_a_lora(tmp_path, monkeypatch):
    stream = SceneStream(make_cutouts(tmp_path / "cutouts"))
    monkeypatch.setattr("sd.training.pretrain.scene_latents.SHARD", 4)
    vae = tiny_vae()
    make_latents(vae, stream, tmp_path / "latents", 4, say=lambda _: None)
    data, text = SceneLatents(tmp_path / "latents"), tiny_clip().text_model

    def train(steps, run):
        settings = TrainConfig(steps=steps, batch=2, precision="fp32", warmup=1, lr=1e-2, ema=0, schedule="constant")
        return turbo.train_turbo(tiny_unet(), tiny_unet(), text, vae, tmp_path / run, data, settings)

    train(1, "resumed")
    file, whole = train(3, "resumed"), train(3, "whole")
    with safe_open(file, "pt") as resumed, safe_open(whole, "pt") as at_once:
        assert resumed.metadata()["ss_steps"] == "3"
        assert resumed.metadata()["ss_network_dim"] == str(turbo.RANK)
        assert json.loads(resumed.metadata()["training"])["settings"]["steps"] == 3
        keys = set(resumed.keys())
        assert keys == set(at_once.keys())
        assert all(torch.equal(resumed.get_tensor(key), at_once.get_tensor(key)) for key in keys)
        assert resumed.get_tensor("lora_unet_mid_block_resnets_0_conv1.lora_up.weight").abs().max() > 0
    layers = [layer for layer in tiny_unet().modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert sum(key.endswith(".lora_up.weight") for key in keys) == len(layers)
    assert {path.name for path in (tmp_path / "whole").glob("sheet-*.png")} == {"sheet-000003.png"}


class TestBundled:
    """The one that comes with the bundled model."""

    PROMPTS = ("a red apple", "a purple star", "two hearts", "three stars", "a star above a house", "a castle at night")

    @pytest.fixture(scope="class")
    def scores(self):
        """The bundled CLIP's score of each prompt's image, (6,), by way."""
        pipe, scorer = StableDiffusion.from_pretrained(BUNDLED, "cpu", torch.float32), load_clip()
        few = dict(steps=4, sampler="lcm", guidance_scale=1.0, seed=1)
        many = dict(steps=20, sampler="dpmpp_2m", guidance_scale=4.0, seed=1)
        texts = scorer.embed_texts(self.PROMPTS)

        def score(tag="", **settings):
            images = [pipe(prompt + tag, **settings).images[0] for prompt in self.PROMPTS]
            return (scorer.embed_images(images) * texts).sum(dim=1)

        return {
            "turbo": score(" <lora:emoji-turbo:1>", **few),
            "few": score(**many | {"steps": 4}),
            "many": score(**many),
        }

    def test_its_four_steps_follow_the_prompt_as_twenty_do(self, scores):
        # 0.68 with it, 0.48 in 4 steps and 0.67 in 20 without it; a single prompt varies by some 0.1 between seeds.
        assert scores["turbo"].mean() > scores["few"].mean() + 0.1
        assert scores["turbo"].mean() > scores["many"].mean() - 0.05

    def test_guidance_on_top_of_it_is_said(self):
        pipe = StableDiffusion.from_pretrained(BUNDLED, "cpu", torch.float32)
        notes = [pipe("a star <lora:emoji-turbo:1>", steps=1, guidance_scale=g).notes for g in (1.0, 7.5)]
        assert [any("few steps" in note for note in some) for some in notes] == [False, True]

    def test_it_is_recognized_by_its_contents_and_has_at_most_4_megabytes(self):
        assert content_of(BUNDLED_TURBO).kind == "LoRA"
        assert BUNDLED_TURBO.stat().st_size < 4e6
