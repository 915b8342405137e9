"""Products in 8 bits: how far from the exact ones, and that nothing is left of them once they are off."""

import math

import pytest
import torch
import torch.nn.functional as F
from optimization.test_registry import bits, distance, gradient, guided_inputs, loras, same_bits, small_networks
from torch import nn

from sd.adapters.injection import eject, inject, patchable_layers
from sd.optimization.int8 import Int8Conv2d, Int8GEGLU, Int8Linear, is_supported, quantize, quantize_unet
from sd.optimization.patching import apply_patch
from sd.optimization.prepacked_conv import PackedConv2d
from sd.optimization.registry import EXACT, default_names, optimize
from sd.pipeline.circular_padding import circular_padding
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.utils.images import to_tensor

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not is_supported(CPU, torch.float32), reason="this processor has no products of bytes")
WITH = [EXACT, "int8"]


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), (1, 1)])
def test_bytes_stand_for_the_numbers_to_half_a_step(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for given in (x, x.abs() + 2, -x.abs() - 2, torch.zeros(shape), x.mT):
        rounded, step, zero = quantize(given)
        assert rounded.shape == given.shape
        assert 0 <= zero <= 255
        # Half a step, and where the byte of 0 is rounded itself, half a step more.
        assert ((rounded.float() - zero) * step - given).abs().max() <= step * 1.0001
    rounded, step, zero = quantize(torch.tensor([0.0, -1.0, 3.0]))
    assert (rounded.float() - zero)[0] == 0  # what edges are padded with
    assert step == pytest.approx(4 / 255)


# 8 bits: a step is 1/255 of the range, some 8 standard deviations of what comes in, and uniform in it (divided by the
# root of 12): 0.9 % of the answer; the rows' 1/127 of 3 standard deviations add 0.6 %.
LAYER = 0.013


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("before", [nn.Identity(), nn.SiLU()])
@torch.no_grad()
def test_a_convolution_in_bytes(dtype, before):
    torch.manual_seed(0)
    x = before(torch.randn(2, 64, 17, 20))
    for layer in (nn.Conv2d(64, 96, 3, padding=1), nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(64, 80, 1)):
        expected = layer(x)
        layer.to(dtype)
        apply_patch(layer, Int8Conv2d)
        answer = layer(x.to(dtype))
        assert answer.dtype == dtype
        assert distance(answer, expected) < LAYER
        assert distance(layer(x[:1, :, :9].to(dtype)), F.conv2d(x[:1, :, :9], *plain(layer))) < LAYER  # another size


def plain(layer: nn.Conv2d) -> tuple:
    return layer.weight.float(), layer.bias.float(), layer.stride, layer.padding


@torch.no_grad()
def test_a_linear_layer_in_bytes():
    torch.manual_seed(0)
    x = torch.randn(2, 50, 64)
    for layer in (nn.Linear(64, 96), nn.Linear(64, 96, bias=False)):
        expected = layer(x)
        apply_patch(layer, Int8Linear)
        assert distance(layer(x), expected) < LAYER
        assert distance(layer(x.transpose(0, 1)), expected.transpose(0, 1)) < LAYER
    assert torch.isfinite(layer(0 * x)).all()


@torch.no_grad()
def test_a_whole_network_stays_near_and_comes_back_bit_for_bit():
    unet, vae = small_networks()
    before, expected = bits(unet), unet(*guided_inputs())
    classes = [type(m) for m in unet.modules()]
    assert optimize(unet, vae, WITH) == [*default_names(CPU, torch.float32), "int8"]
    kinds = {type(m) for m in unet.modules()}
    assert {Int8Conv2d, Int8Linear, Int8GEGLU} <= kinds
    assert PackedConv2d not in kinds
    # Some twenty layers of 1 % each, of which most meet a way around them.
    assert 1e-4 < distance(unet(*guided_inputs()), expected) < 0.05
    assert same_bits(unet, before)
    optimize(unet, vae)  # and the exact ones alone
    assert distance(unet(*guided_inputs()), expected) < 2e-6
    assert optimize(unet, vae, ()) == []
    assert [type(m) for m in unet.modules()] == classes
    assert same_bits(unet, before)
    assert torch.equal(unet(*guided_inputs()), expected)


@torch.no_grad()
def test_an_adapter_in_layers_of_bytes_adds_what_it_adds_to_plain_ones():
    unet, vae = small_networks()
    names = list(patchable_layers(unet))
    inject(unet, "one", loras(unet))
    expected = unet(*guided_inputs())
    eject(unet, "one")
    before = bits(unet)
    optimize(unet, vae, WITH)
    unet(*guided_inputs())
    assert list(patchable_layers(unet)) == names
    inject(unet, "one", loras(unet))
    optimize(unet, vae, WITH)
    assert distance(unet(*guided_inputs()), expected) < 2e-6  # every layer is patched, and none is in bytes
    eject(unet, "one")
    optimize(unet, vae, WITH)
    unet(*guided_inputs())
    assert any(isinstance(m, Int8Linear) for m in unet.modules())
    assert same_bits(unet, before)


def test_gradients_are_those_of_the_plain_network():
    unet, vae = small_networks()
    expected = gradient(unet)
    optimize(unet, vae, WITH)
    with torch.no_grad():
        unet(*guided_inputs())
    assert distance(gradient(unet), expected) < 1e-5  # as in test_optimize


@torch.no_grad()
def test_edges_that_continue_at_the_opposite_ones():
    unet, vae = small_networks()
    with circular_padding(unet, vae):
        expected = unet(*guided_inputs())
        optimize(unet, vae, WITH)
        assert distance(unet(*guided_inputs()), expected) < 0.05


def test_only_what_looks_at_places_and_is_wide_enough():
    unet, _ = small_networks()
    quantize_unet(unet)
    layers = dict(unet.named_modules())
    assert type(layers["input_blocks.0.0"]) is nn.Conv2d
    assert type(layers["out.2"]) is nn.Conv2d
    assert type(layers["time_embed.0"]) is nn.Linear
    text = [layer for name, layer in layers.items() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert text
    assert all(type(layer) is nn.Linear for layer in text)


def test_the_bundled_model_generates_nearly_the_same_image():
    asked = dict(prompt="a red apple, noto emoji", steps=8, sampler="dpmpp_2m", guidance_scale=3.0, seed=5)
    pipe = StableDiffusion.from_pretrained()
    exact = pipe(**asked)
    pipe.optimizations = WITH
    made = pipe(**asked)
    assert "Approximations" not in exact.infotexts[0]
    assert "Approximations: int8" in made.infotexts[0]
    error = (to_tensor(made.images[0]) - to_tensor(exact.images[0])).square().mean().item() / 4  # of a range of 2
    assert 25 < -10 * math.log10(error) < 60  # 30 dB is what is asked for on the mean of many images
