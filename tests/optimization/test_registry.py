"""Patches for speed: the same image, the same bits once off, and adapters, edges and shortcuts that still work."""

import math

import pytest
import torch
from torch import nn

from sd.adapters.injection import eject, inject, patchable_layers
from sd.adapters.variants import LoRA
from sd.attention import attention
from sd.optimization.fused_geglu import FusedGEGLU
from sd.optimization.prepacked_conv import PackedConv2d, pack_convolutions
from sd.optimization.registry import (
    ALIASES,
    NO_OPTIMIZATIONS,
    OPTIMIZATIONS,
    current_name,
    default_names,
    list_optimizations,
    optimize,
    parse_names,
)
from sd.optimization.shared_cfg_prefix import SharedPrefixUNet
from sd.optimization.tiled_attention import (
    MIN_TOKENS,
    ROWS,
    TiledAttention,
    tile_attention,
    tiled_attention,
    untile_attention,
)
from sd.pipeline.circular_padding import circular_padding
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.unet import UNetModel
from sd.utils.device import cpu_has_bf16
from sd.utils.errors import UserError
from sd.vae import AutoencoderKL

USUAL = default_names(torch.device("cpu"), torch.float32)
SMALL = dict(model_channels=64, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0, 1), context_dim=48)


def small_networks(dtype: torch.dtype = torch.float32) -> tuple[UNetModel, AutoencoderKL]:
    torch.manual_seed(0)
    vae = AutoencoderKL(channels=32, channel_mult=(1, 2), num_res_blocks=1)
    return UNetModel(**SMALL).to(dtype).eval(), vae.to(dtype).eval()


@pytest.fixture
def networks() -> tuple[UNetModel, AutoencoderKL]:
    return small_networks()


def loras(unet: UNetModel) -> dict[str, LoRA]:
    """One for each layer that takes one, the same ones every time."""
    generator = torch.Generator().manual_seed(3)
    layers = {p: layer for p, layer in patchable_layers(unet).items() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    patches = {path: LoRA.initialize(layer, 2, 2.0, generator) for path, layer in layers.items()}
    for patch in patches.values():
        patch.lora_up.data = 0.1 * torch.randn(patch.lora_up.shape, generator=generator)
    return patches


def gradient(unet: UNetModel) -> torch.Tensor:
    """Of the text's states, from the sum of squares of what comes out."""
    x, t, context = guided_inputs()
    context.requires_grad_()
    unet(x, t, context).square().sum().backward()
    return context.grad


def guided_inputs(dtype: torch.dtype = torch.float32, size: int = 16, images: int = 1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, 4, size, size, generator=generator)
    context = torch.randn(2 * images, 7, 48, generator=generator)
    return torch.cat([x, x]).to(dtype), torch.full((2 * images,), 300), context.to(dtype)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def bits(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def same_bits(network: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    now = network.state_dict()
    return list(now) == list(before) and all(torch.equal(now[key], before[key]) for key in before)


# Sums in another order: a few roundings of fp32 (6e-8 each) through some twenty layers. Measured: under 2e-6 with
# AVX-512, and 2.2e-6 with AVX2, whose convolutions add in another order. A wrong patch differs by 1e-3 and more.
ROUNDING = 4e-6


@pytest.mark.parametrize("name", USUAL)
@torch.no_grad()
def test_each_exact_patch_gives_the_textbook_answer(networks, name):
    unet, vae = networks
    expected = unet(*guided_inputs())
    assert optimize(unet, vae, [name]) == [name]
    assert distance(unet(*guided_inputs()), expected) < ROUNDING


@pytest.mark.parametrize("size", [16, 17])
@torch.no_grad()
def test_all_of_them_together_at_any_size(networks, size):
    unet, vae = networks
    expected = unet(*guided_inputs(size=size))
    assert optimize(unet, vae) == list(USUAL)
    assert distance(unet(*guided_inputs(size=16)), unet(*guided_inputs(size=16))) == 0  # packed for 16x16
    assert distance(unet(*guided_inputs(size=size)), expected) < ROUNDING


@pytest.mark.skipif(not cpu_has_bf16(), reason="no bf16 here")
@torch.no_grad()
def test_bf16_is_no_further_from_the_truth_than_plain_bf16():
    unet, vae = small_networks(torch.bfloat16)
    truth = small_networks()[0]
    truth.load_state_dict({key: tensor.float() for key, tensor in unet.state_dict().items()})
    x, t, context = guided_inputs(torch.bfloat16, size=math.isqrt(MIN_TOKENS))
    exact = truth(x.float(), t, context.float())
    plain = distance(unet(x, t, context), exact)
    optimize(unet, vae)
    assert distance(unet(x, t, context), exact) < 1.1 * plain  # roundings fall otherwise, fewer of them: 1.1 for luck


@torch.no_grad()
def test_taken_off_every_bit_and_every_class_is_as_before(networks):
    unet, vae = networks
    before, expected = bits(unet), unet(*guided_inputs())
    classes, strides = [type(m) for m in unet.modules()], [p.stride() for p in unet.parameters()]
    optimize(unet, vae)
    unet(*guided_inputs())
    assert any(isinstance(m, PackedConv2d) and m.packed is not None for m in unet.modules())
    assert type(unet) is SharedPrefixUNet
    assert any(isinstance(m, FusedGEGLU) for m in unet.modules())
    assert same_bits(unet, before)  # and saved while they are on, too
    assert optimize(unet, vae, ()) == []
    assert [type(m) for m in unet.modules()] == classes
    assert [p.stride() for p in unet.parameters()] == strides
    assert same_bits(unet, before)
    assert torch.equal(unet(*guided_inputs()), expected)


@torch.no_grad()
def test_packed_weights_are_not_kept_twice(networks):
    unet, vae = networks
    optimize(unet, vae, ["prepacked-conv"])
    unet(*guided_inputs())
    packed = [m for m in unet.modules() if isinstance(m, PackedConv2d)]
    assert packed
    assert all("weight" not in dict(m.named_parameters()) for m in packed)


@torch.no_grad()
def test_a_lora_in_packed_layers_adds_what_it_adds_to_plain_ones(networks):
    unet, vae = networks
    names = list(patchable_layers(unet))
    inject(unet, "one", loras(unet))
    expected = unet(*guided_inputs())
    eject(unet, "one")
    plain, before = unet(*guided_inputs()), bits(unet)
    optimize(unet, vae)
    unet(*guided_inputs())
    assert list(patchable_layers(unet)) == names
    inject(unet, "one", loras(unet))
    optimize(unet, vae)
    assert distance(unet(*guided_inputs()), expected) < ROUNDING
    eject(unet, "one")
    optimize(unet, vae)
    assert distance(unet(*guided_inputs()), plain) < ROUNDING
    assert same_bits(unet, before)


@torch.no_grad()
def test_seamless_edges_through_packed_convolutions(networks):
    unet, vae = networks
    with circular_padding(unet, vae):
        expected = unet(*guided_inputs())
        optimize(unet, vae)
        assert distance(unet(*guided_inputs()), expected) < ROUNDING


def test_gradients_through_a_patched_network_are_those_of_the_plain_one(networks):
    unet, vae = networks
    expected = gradient(unet)
    optimize(unet, vae)
    with torch.no_grad():
        unet(*guided_inputs())
    assert distance(gradient(unet), expected) < 1e-5  # twice as many layers, and sums of squares


@torch.no_grad()
def test_another_dtype_unpacks(networks):
    unet, vae = networks
    optimize(unet, vae)
    unet(*guided_inputs())
    expected = small_networks()[0].double()(*guided_inputs(torch.float64))
    unet.double()
    assert distance(unet(*guided_inputs(torch.float64)), expected) < 1e-12
    assert all(p.dtype == torch.float64 for p in unet.parameters())


@torch.no_grad()
def test_the_start_is_shared_only_where_both_rows_are_equal(networks):
    unet, vae = networks
    x, t, context = guided_inputs()
    other, later = torch.cat([x[:1], -x[1:]]), torch.tensor([300, 301])
    four = guided_inputs(images=2)
    expected = [unet(other, t, context), unet(x, later, context), unet(*four), unet(x[:1], t[:1], context[:1])]
    optimize(unet, vae, ["shared-cfg-prefix"])
    found = [unet(other, t, context), unet(x, later, context), unet(*four), unet(x[:1], t[:1], context[:1])]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    rows = []
    unet.input_blocks[1][0].register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    unet(x, t, context)
    unet(other, t, context)
    assert rows == [1, 2]


def test_layers_too_narrow_for_a_block_stay_as_they_are(networks):
    unet, _ = networks
    pack_convolutions(unet)
    assert type(unet.input_blocks[0][0]) is nn.Conv2d
    assert type(unet.out[2]) is nn.Conv2d


def test_unknown_names_change_nothing(networks):
    unet, vae = networks
    with pytest.raises(UserError, match="unknown optimization 'turbo'; choose from exact, channels-last"):
        optimize(unet, vae, ["shared-cfg-prefix", "turbo"])
    assert type(unet) is UNetModel


def test_older_names_of_optimizations_are_still_accepted(networks):
    for older, name in ALIASES.items():
        assert older not in OPTIMIZATIONS
        assert current_name(older) == name
        assert OPTIMIZATIONS[name]
    assert optimize(*networks, ["shared-start", "packed-convolutions"]) == ["prepacked-conv", "shared-cfg-prefix"]
    assert optimize(*networks, ["shared-start", "shared-cfg-prefix"]) == ["shared-cfg-prefix"]
    with pytest.raises(UserError, match="compile is not supported on this device and dtype"):
        optimize(*networks, parse_names("exact, graphs"))


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cpu", torch.float64), ("cuda", torch.float16)])
def test_the_list_names_each_with_its_state(device, dtype):
    assert NO_OPTIMIZATIONS not in OPTIMIZATIONS
    lines = {line.split()[0]: line for line in list_optimizations(torch.device(device), dtype).splitlines()}
    assert list(lines) == list(OPTIMIZATIONS)
    on = [name for name, line in lines.items() if line.split()[1] == "on"]
    assert on == default_names(torch.device(device), dtype)
    assert ("prepacked-conv" in on) == (dtype == torch.float32)


def test_the_bundled_model_generates_the_same_image_with_and_without():
    asked = dict(prompt="a red apple, noto emoji", steps=4, sampler="dpmpp_2m", guidance_scale=3.0, seed=5)
    fast, plain = StableDiffusion.from_pretrained(), StableDiffusion.from_pretrained()
    plain.optimizations = ()
    with_them, without = fast(**asked), plain(**asked)
    assert type(fast.unet) is SharedPrefixUNet
    assert type(plain.unet) is UNetModel
    # Roundings of fp32, over four steps and with guidance's gain: far below a grey level.
    assert distance(with_them.latents, without.latents) < 1e-4
    fast.optimizations = ()
    assert torch.equal(fast(**asked).latents, without.latents)


@pytest.mark.parametrize(("places", "keys", "heads"), [(ROWS, 40, 4), (ROWS + 37, 70, 3), (5, 1, 1)])
def test_tiles_give_what_attention_gives(places, keys, heads):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, heads * 8, generator=generator) for n in (places, keys, keys))
    # The same sums in another order, over at most 70 keys: a few roundings of fp32.
    assert distance(tiled_attention(q, k, v, heads), attention(q, k, v, heads)) < 1e-6


@pytest.mark.parametrize("shared", [0.0, 10.0])
def test_tiles_in_bf16_stay_near_whatever_the_keys_have_in_common(shared):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 600, 80, generator=generator) for _ in range(3))
    q, k = q + 1, k + shared * torch.randn(80, generator=generator)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    truth = attention(q.float(), k.float(), v.float(), 2)
    # bf16 has 8 bits, 0.2 % on average, for the scores, which are of size 1 to 4, their exponentials and the answer.
    # Without the keys' mean taken away the second case would be 2.6 % away.
    assert distance(tiled_attention(q, k, v, 2), truth) < 0.012


@torch.no_grad()
def test_only_long_self_attentions_in_bf16_are_tiled(networks, monkeypatch):
    unet, _ = networks
    calls = []
    monkeypatch.setattr(
        "sd.optimization.tiled_attention.tiled_attention", lambda *given: calls.append(given) or attention(*given)
    )
    monkeypatch.setattr("sd.optimization.tiled_attention.is_faster", lambda device, dtype: dtype == torch.bfloat16)
    tile_attention(unet)
    assert [type(m) for name, m in unet.named_modules() if name.endswith("attn2")].count(TiledAttention) == 0
    unet(*guided_inputs(size=32))
    unet.bfloat16()
    unet(*guided_inputs(torch.bfloat16, size=16))
    assert calls == []
    unet(*guided_inputs(torch.bfloat16, size=32))
    assert calls
    assert all(q.shape[1] == k.shape[1] == MIN_TOKENS for q, k, _, _ in calls)
    untile_attention(unet)
    assert not any(isinstance(m, TiledAttention) for m in unet.modules())
