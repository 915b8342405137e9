"""LoRAs of one region: each region is what a plain prompt with its LoRAs is there, in both networks."""

import numpy as np
import pytest
import torch

from sd.adapters.injection import inject, patchable_layers
from sd.adapters.lora_export import save_lora
from sd.adapters.lora_loader import unload
from sd.adapters.region_loras import RegionLoras
from sd.adapters.variants import LoRA
from sd.checkpoints.discovery import Models
from sd.pipeline.sampling.composed import ComposedGuidance
from sd.pipeline.sampling.regional_loras import RegionalGuidance, UncondRegionalGuidance
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.trace import Trace
from sd.utils.errors import UserError

SMALL = dict(steps=1, seed=5, guidance_scale=3.0, sampler="euler", width=64, height=64)
CLOSE = dict(rtol=0, atol=1e-4)  # fp32 in another order: other rows in a batch; latents are about 1


def lora_for(network, seed):
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for path, layer in patchable_layers(network).items():
        if isinstance(layer, torch.nn.Linear):
            deltas[path] = LoRA.initialize(layer, 2, 2, generator)
            deltas[path].lora_up.data.normal_(0, 0.3, generator=generator)
    return deltas


@pytest.fixture
def styled(pipe, tmp_path):
    """A pipeline that finds two LoRAs of both networks, "ink" and "oil"."""
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed, name in enumerate(("ink", "oil")):
        for network in (pipe.unet, pipe.clip):
            inject(network, name, lora_for(network, seed))
        save_lora(folder / f"{name}.safetensors", pipe.unet, pipe.clip, name)
        unload(pipe.unet, pipe.clip, name)
    pipe.adapters.models = Models(tmp_path, folder, tmp_path / "embeddings")
    return pipe


def latents(pipe, prompt, **more):
    return pipe(prompt, **SMALL | more).latents


@pytest.mark.parametrize("sampler", ["euler", "euler_cfgpp"])
def test_after_one_step_each_half_is_the_plain_prompt_with_its_own_lora(styled, sampler):
    """One step ends at the estimate of x0, the sum of mask * x0; the latent has 8 columns."""
    more = {"sampler": sampler, "negative_prompt": "blurry"}
    made = latents(styled, "a cat <lora:ink:0.8> ADDCOL a dog", **more)
    left, right = latents(styled, "a cat <lora:ink:0.8>", **more), latents(styled, "a dog", **more)
    torch.testing.assert_close(made[..., :4], left[..., :4], **CLOSE)
    torch.testing.assert_close(made[..., 4:], right[..., 4:], **CLOSE)
    for other in ("a cat", "a cat <lora:ink:0.4>", "a cat <lora:oil:0.8>"):
        assert (latents(styled, other, **more) - left)[..., :4].abs().max() > 0.005  # 50 times the tolerance
    two = latents(styled, "a cat <lora:ink:0.8> ADDCOL a dog <lora:oil:1> ADDCOL a cat <lora:ink:0.8>", **more)
    torch.testing.assert_close(two[..., :2], left[..., :2], **CLOSE)
    torch.testing.assert_close(two[..., 6:], left[..., 6:], **CLOSE)


def test_one_lora_at_two_strengths_and_the_base_at_its_share(styled):
    made = latents(styled, "a cat <lora:ink:0.4> ADDROW a cat <lora:ink:1>")
    weak, strong = latents(styled, "a cat <lora:ink:0.4>"), latents(styled, "a cat <lora:ink:1>")
    torch.testing.assert_close(made, torch.cat([weak[..., :4, :], strong[..., 4:, :]], dim=2), **CLOSE)
    based = latents(styled, "a cat <lora:ink:1> ADDBASE a dog ADDCOL a dog", region_base=0.25)
    torch.testing.assert_close(based, 0.25 * strong + 0.75 * latents(styled, "a dog"), **CLOSE)


def test_what_all_regions_name_works_everywhere_and_is_loaded_once(styled):
    common = styled("<lora:ink:1> a garden ADDCOMM a cat ADDCOL a dog", **SMALL)
    each = latents(styled, "a garden, a cat <lora:ink:1> ADDCOL a garden, a dog <lora:ink:1>")
    torch.testing.assert_close(common.latents, each, **CLOSE)
    assert len(common.reports) == 1
    styled.load_lora("ink")
    by_hand = latents(styled, "a garden, a cat ADDCOL a garden, a dog")
    torch.testing.assert_close(common.latents, by_hand, **CLOSE)
    mixed = latents(styled, "a cat <lora:oil:1> ADDCOL a dog")  # the one that is loaded by hand stays on
    torch.testing.assert_close(mixed[..., 4:], latents(styled, "a dog")[..., 4:], **CLOSE)


def test_nothing_of_them_stays(styled):
    before = {key: value.clone() for key, value in styled.unet.state_dict().items()}
    plain = latents(styled, "a dog")
    latents(styled, "a cat <lora:ink:0.8> ADDCOL a dog")
    with pytest.raises(RuntimeError, match="stop"):
        pipe_that_stops(styled)
    assert styled.adapters.names() == []
    assert all(torch.equal(styled.unet.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(latents(styled, "a dog"), plain)


def pipe_that_stops(pipe):
    def stop(*_):
        raise RuntimeError("stop")

    pipe("a cat <lora:ink:0.8> ADDCOL a dog", on_step=stop, **SMALL)


@pytest.mark.parametrize(
    "more",
    [
        {"steps": 3, "step_cache": 2, "token_merging": 0.3},
        {"hires_scale": 2.0},
        {"compat": "webui", "num_images": 2, "batch_size": 2},
        {"tile_size": 64, "width": 128},
        {"ngms": 3.0},
    ],
    ids=lambda more: next(iter(more)),
)
def test_it_combines_and_is_the_same_twice(styled, more):
    prompt = "a garden ADDBASE a [cat:fox:0.5] <lora:ink:1> ADDCOL a dog AND a pig:0.5 ADDROW a tree <lora:oil:0.5>"
    made = [styled(prompt, **SMALL | more) for _ in range(2)]
    assert np.array_equal(np.array(made[0].images[-1]), np.array(made[1].images[-1]))
    without = latents(styled, prompt.replace("<lora:ink:1>", ""), **more)
    assert not torch.equal(made[0].latents, without)
    assert ("minimum sigma changes nothing" in " ".join(made[0].notes)) == ("ngms" in more)


def test_a_trace_refuses_them(styled):
    settings = GenerationSettings("a cat <lora:ink:1> ADDCOL a dog", **SMALL)
    with pytest.raises(UserError, match="several models in one image"):
        styled.generate(settings, trace=Trace())


def test_the_sum_of_guided_denoisers_is_the_formula():
    """Two models whose x0 is a constant each, at a scale of 3, outside of the interval, and for CFG++."""
    x, sigma = torch.randn(1, 4, 2, 8, generator=torch.Generator().manual_seed(0)), 2.0
    mask = torch.rand(1, 1, 2, 8, generator=torch.Generator().manual_seed(1))

    def model(factor):
        def unet(scaled, t, context):
            x0 = factor * context.mean((1, 2))[:, None, None, None]
            return (scaled * (1 + sigma**2) ** 0.5 - x0) / sigma

        return unet

    cond, uncond = torch.full((1, 4, 3), 0.5), torch.full((1, 4, 3), 0.1)
    parts = [
        (ComposedGuidance(model(factor), [(cond, share)], uncond, 3.0), share)
        for factor, share in ((1, mask), (-2, 1 - mask))
    ]
    own = mask - 2 * (1 - mask)  # of the constants
    close = dict(rtol=0, atol=1e-5)  # fp32 rounding of x of size 10
    torch.testing.assert_close(RegionalGuidance(parts, 3.0)(x, sigma), (own * 1.3).expand_as(x), **close)
    outside = RegionalGuidance(parts, 3.0, (5.0, 9.0))(x, sigma)
    torch.testing.assert_close(outside, (own * 0.5).expand_as(x), **close)
    x0, without = UncondRegionalGuidance(parts, 12.5).with_uncond(x, sigma)
    torch.testing.assert_close(x0, (own * 0.5).expand_as(x), **close)  # 12.5 is CFG++'s scale of 1
    torch.testing.assert_close(without, (own * 0.1).expand_as(x), **close)


def test_strengths_come_back_after_an_error():
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    inject(layer, "ink", {"0": LoRA.initialize(layer[0], 2, 2, torch.Generator())}, 0.7)
    loras = RegionLoras([layer], [frozenset(), frozenset(["ink"])])
    with loras.only(frozenset()):
        assert layer[0].deltas[0].strength == 0
    assert layer[0].deltas[0].strength == 0.7
    with pytest.raises(TypeError), loras.only(frozenset()):
        layer(None)
    assert layer[0].deltas[0].strength == 0.7
