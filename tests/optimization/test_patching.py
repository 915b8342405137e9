"""Patches stack in any order, come off in any order, and leave every bit and every attribute as before."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from optimization.test_registry import bits, distance, guided_inputs, loras, same_bits, small_networks
from torch import nn

from sd.adapters import textual_inversion
from sd.adapters.injection import eject, inject, merge_adapters, unmerge_adapters
from sd.adapters.variants import Difference
from sd.optimization import (
    fused_geglu,
    int8,
    layerwise_vae,
    prepacked_conv,
    shared_cfg_prefix,
    tiled_attention,
    token_merging,
)
from sd.optimization.patching import (
    LayerPatch,
    apply_patch,
    is_plain,
    make_plain,
    patches_on,
    plain_class,
    remove_patch,
    remove_patches,
)
from sd.optimization.registry import OPTIMIZATIONS, optimize
from sd.optimization.small_maps import cached_text, pointwise_conv
from sd.optimization.winograd import layer as winograd
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.gradient_checkpointing import RECOMPUTED


class Doubled(LayerPatch, nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class PlusOne(LayerPatch, nn.Linear):
    STATE = ("one",)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.one


class Hidden(LayerPatch, nn.Linear):
    """Keeps the bias elsewhere, as prepacked convolutions keep the weight."""

    STATE = ("hidden",)
    GIVES_WAY = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.hidden is None:
            self.hidden, self.bias = [self.bias], None
        return F.linear(x, self.weight, self.hidden[0])

    def restore(self) -> None:
        if self.hidden is not None:
            self.bias = self.hidden[0]


def snapshot(*networks: nn.Module) -> list[dict]:
    """Every attribute of every layer: parameters by identity and by value, all others by identity."""
    return [
        {
            "class": type(layer),
            "attributes": {k: v for k, v in vars(layer).items() if k not in ("_parameters", "_buffers", "_modules")},
            "parameters": {
                k: None if p is None else (p, p.detach().clone(), p.stride(), p.requires_grad)
                for k, p in layer._parameters.items()
            },
            "modules": {k: id(m) for k, m in layer._modules.items()},
        }
        for network in networks
        for layer in network.modules()
    ]


def assert_same(now: list[dict], before: list[dict]) -> None:
    assert len(now) == len(before)
    for one, other in zip(now, before):
        for key in ("class", "attributes", "modules"):
            assert one[key] == other[key]
        assert list(one["parameters"]) == list(other["parameters"])
        for name, parameter in one["parameters"].items():
            theirs = other["parameters"][name]
            if parameter is None:
                assert theirs is None
                continue
            (ours_id, ours, *ours_rest), (theirs_id, theirs, *theirs_rest) = parameter, theirs
            assert ours_id is theirs_id, name
            assert ours_rest == theirs_rest, name
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("on", itertools.permutations([Doubled, PlusOne, Hidden]))
@pytest.mark.parametrize("off", itertools.permutations([Doubled, PlusOne, Hidden]))
@torch.no_grad()
def test_three_patches_of_one_layer_in_any_order(on, off):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    before, plain, text = snapshot(layer), layer(x), repr(layer)
    expected = plain
    for patch in on:
        apply_patch(layer, patch, one=1.0)
        expected = {Doubled: 2 * expected, PlusOne: expected + 1, Hidden: expected}[patch]
    assert patches_on(layer) == (*(patch for patch in on[::-1] if patch is not Hidden), Hidden)
    assert plain_class(layer) is nn.Linear
    assert isinstance(layer, on)
    torch.testing.assert_close(layer(x), expected)
    for patch in off:
        remove_patch(layer, patch)
        assert patch not in patches_on(layer)
        layer(x)
    assert torch.equal(layer(x), plain)
    assert repr(layer) == text
    assert_same(snapshot(layer), before)


def test_a_patch_goes_on_once_and_comes_off_once():
    layer = nn.Linear(3, 2)
    remove_patch(layer, Doubled)
    apply_patch(layer, PlusOne, one=1.0)
    apply_patch(layer, PlusOne, one=5.0)
    assert layer.one == 1.0
    assert type(layer) is PlusOne
    apply_patch(layer, Doubled)
    assert type(layer).__name__ == "DoubledAndPlusOne"
    remove_patch(layer, PlusOne)
    assert type(layer) is Doubled
    assert not hasattr(layer, "one")
    remove_patch(layer, PlusOne)
    assert type(layer) is Doubled


def test_a_plain_layer_is_given_back_on_demand():
    """A patch that only computes the same in another way gives way; the others stay."""
    layer = nn.Linear(3, 2)
    assert is_plain(layer)
    apply_patch(layer, Doubled)
    apply_patch(layer, Hidden)
    layer(torch.randn(1, 3))
    assert layer.bias is None
    make_plain(layer)
    assert patches_on(layer) == (Doubled,)
    assert layer.bias is not None
    assert not is_plain(layer)


# Every patch of the U-Net and of the VAE: how it goes on, and how it comes off.
PATCHES = {
    "prepacked-conv": (
        lambda unet, vae: prepacked_conv.pack_convolutions(unet),
        lambda unet, vae: prepacked_conv.unpack_convolutions(unet),
    ),
    "winograd": (
        lambda unet, vae: [winograd.use_winograd(network) for network in (unet, vae)],
        lambda unet, vae: [winograd.use_direct(network) for network in (unet, vae)],
    ),
    "fused-geglu": (
        lambda unet, vae: fused_geglu.fuse_geglu(unet),
        lambda unet, vae: fused_geglu.unfuse_geglu(unet),
    ),
    "pointwise-conv": (
        lambda unet, vae: pointwise_conv.use_products(unet),
        lambda unet, vae: pointwise_conv.use_convolutions(unet),
    ),
    "cached-text": (
        lambda unet, vae: cached_text.cache_text(unet),
        lambda unet, vae: cached_text.compute_text_anew(unet),
    ),
    "tiled-attention": (
        lambda unet, vae: tiled_attention.tile_attention(unet),
        lambda unet, vae: tiled_attention.untile_attention(unet),
    ),
    "shared-cfg-prefix": (
        lambda unet, vae: shared_cfg_prefix.share_prefix(unet),
        lambda unet, vae: shared_cfg_prefix.unshare_prefix(unet),
    ),
    "layerwise-vae": (
        lambda unet, vae: layerwise_vae.run_layerwise(vae),
        lambda unet, vae: layerwise_vae.run_whole_levels(vae),
    ),
    "int8": (
        lambda unet, vae: int8.quantize_unet(unet),
        lambda unet, vae: int8.dequantize_unet(unet),
    ),
    "gradient checkpointing": (
        lambda unet, vae: [
            apply_patch(layer, RECOMPUTED[type(layer)]) for layer in unet.modules() if type(layer) in RECOMPUTED
        ],
        lambda unet, vae: remove_patches(unet, *RECOMPUTED.values()),
    ),
    "lora": (lambda unet, vae: inject(unet, "a", loras(unet), 0.5), lambda unet, vae: eject(unet, "a")),
    "another lora": (lambda unet, vae: inject(unet, "b", loras(unet), -0.25), lambda unet, vae: eject(unet, "b")),
}
ORDERS = 12


@pytest.mark.parametrize("seed", range(ORDERS))
@torch.no_grad()
def test_all_patches_in_any_order_leave_no_trace(seed, monkeypatch):
    """Bytes are only multiplied where the CPU has the instruction; what they compute is test_int8's."""
    unet, vae = small_networks()
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    before, expected, image = snapshot(unet, vae), unet(*guided_inputs()), vae.decode(latent)
    order = random.Random(seed)
    for name in order.sample(list(PATCHES), len(PATCHES)):
        PATCHES[name][0](unet, vae)
        unet(*guided_inputs())
    assert torch.equal(vae.decode(latent), image)
    for name in order.sample(list(PATCHES), len(PATCHES)):
        PATCHES[name][1](unet, vae)
        unet(*guided_inputs())
    assert_same(snapshot(unet, vae), before)
    assert torch.equal(unet(*guided_inputs()), expected)


@pytest.mark.parametrize("order", ["adapter first", "adapter last"])
@pytest.mark.parametrize("name", [*(name for name in PATCHES if name not in ("lora", "another lora")), "all"])
@torch.no_grad()
def test_an_adapter_computes_the_same_with_every_patch(order, name):
    unet, vae = small_networks()
    before = bits(unet)
    inject(unet, "a", loras(unet))
    expected = unet(*guided_inputs())
    eject(unet, "a")
    names = [one for one in PATCHES if "lora" not in one and name in ("all", one)]
    if order == "adapter first":
        inject(unet, "a", loras(unet))
    for one in names:
        PATCHES[one][0](unet, vae)
    if order == "adapter last":
        unet(*guided_inputs())
        inject(unet, "a", loras(unet))
    # Sums in another order, as in test_registry: a few roundings of fp32 through some twenty layers.
    assert distance(unet(*guided_inputs()), expected) < 4e-6
    eject(unet, "a")
    for one in names:
        PATCHES[one][1](unet, vae)
    assert same_bits(unet, before)
    assert all(is_plain(layer) for layer in unet.modules())


@torch.no_grad()
def test_merged_adapters_between_speed_patches_leave_no_trace():
    unet, vae = small_networks()
    optimize(unet, vae, ())
    before = snapshot(unet)
    inject(unet, "a", loras(unet))
    expected = unet(*guided_inputs())
    originals = merge_adapters(unet)
    optimize(unet, vae)
    assert distance(unet(*guided_inputs()), expected) < 4e-6
    unmerge_adapters(unet, originals)
    optimize(unet, vae)
    assert distance(unet(*guided_inputs()), expected) < 4e-6
    eject(unet, "a")
    unet(*guided_inputs())
    optimize(unet, vae, ())
    assert_same(snapshot(unet), before)


@torch.no_grad()
def test_trainable_weights_stay_the_same_trainable_parameters():
    """An optimizer that holds a parameter still holds it after the patch, with its strides and its gradient's flag."""
    layer = nn.Conv2d(32, 32, 3, padding=1)
    weight, before = layer.weight, layer.weight.detach().clone()
    assert weight.is_contiguous()
    prepacked_conv.pack_convolutions(nn.Sequential(layer))
    layer(torch.randn(1, 32, 8, 8))
    assert "weight" not in dict(layer.named_parameters())
    assert torch.equal(layer.weight, before)
    prepacked_conv.unpack_convolutions(nn.Sequential(layer))
    assert layer.weight is weight
    assert weight.requires_grad
    assert weight.is_contiguous()
    assert torch.equal(weight, before)


@torch.no_grad()
def test_images_with_every_adapter_are_those_without_patches():
    """The bundled model with a LoRA in both networks, an embedding, token merging and DeepCache."""
    asked = dict(prompt="a <new> apple", steps=3, sampler="dpmpp_2m", guidance_scale=3.0, seed=5)
    asked |= dict(token_merging=0.5, step_cache=2)
    made = {}
    for names in ((), None):
        pipe = StableDiffusion.from_pretrained()
        before = snapshot(pipe.unet, pipe.clip, pipe.vae)
        pipe.optimizations = names
        pipe.optimize()
        inject(pipe.unet, "one", loras(pipe.unet), 0.2)
        vectors = pipe.clip.embeddings.token_embedding.weight[320:322].clone()
        textual_inversion.inject(pipe.tokenizer, pipe.clip, "<new>", vectors)
        made[names] = pipe(**asked)
        pipe.unload()
        pipe.optimizations = ()
        pipe.optimize()
        assert_same(snapshot(pipe.unet, pipe.clip, pipe.vae), before)
    # Roundings of fp32, over three steps and with guidance's gain: far below a gray level.
    assert distance(made[None].latents, made[()].latents) < 1e-4


@torch.no_grad()
def test_token_merging_over_tiles_and_an_adapter():
    """Two patches of one self-attention, and an adapter within: the tiles come off while tokens merge."""
    unet, _ = small_networks()
    before = snapshot(unet)
    path = "input_blocks.1.1.transformer_blocks.0.attn1"
    width = unet.get_submodule(path).to_q.in_features
    with token_merging.token_merging(unet, 0.5):
        expected = unet(*guided_inputs())
    tiled_attention.tile_attention(unet)
    with token_merging.token_merging(unet, 0.5):
        layer = unet.get_submodule(path)
        assert patches_on(layer) == (token_merging.MergingAttention, tiled_attention.TiledAttention)
        inject(unet, "eye", {f"{path}.to_q": Difference({"diff": torch.eye(width)})})
        assert not torch.allclose(unet(*guided_inputs()), expected)
        eject(unet, "eye")
        tiled_attention.untile_attention(unet)
        assert patches_on(layer) == (token_merging.MergingAttention,)
    with token_merging.token_merging(unet, 0.5):
        assert torch.equal(unet(*guided_inputs()), expected)
    assert_same(snapshot(unet), before)


def test_every_optimization_of_a_network_is_among_these_patches():
    elsewhere = {"channels-last", "model-cpu-offload", "compile"}  # a layout, hooks, and a network's `forward`
    assert set(OPTIMIZATIONS) - elsewhere <= set(PATCHES)
