"""The patch of wide 3x3 convolutions: which layers and sizes it takes, adapters, int8, and no trace once it is off."""

import copy

import pytest
import torch
from optimization.test_patching import assert_same, snapshot
from optimization.test_registry import bits, distance, same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint

from sd.adapters.injection import eject, inject, merge_adapters, unmerge_adapters
from sd.adapters.variants import LoRA
from sd.optimization.int8 import Int8Conv2d, replace_layer
from sd.optimization.patching import is_plain, make_plain, patches_on
from sd.optimization.prepacked_conv import PackedConv2d, PackedWeight, pack_convolutions
from sd.optimization.registry import TRAINABLE, default_names, frozen_names, optimize
from sd.optimization.winograd.layer import MIN_CHANNELS, WinogradConv2d, obstacle, use_direct, use_winograd
from sd.optimization.winograd.weights import TransformedWeight
from sd.pipeline.circular_padding import circular_padding
from sd.unet import UNetModel
from sd.vae import AutoencoderKL

WIDE = MIN_CHANNELS
ROUNDING = 2e-6  # sums in another order: PyTorch's own convolution is 5e-7 to 2e-6 from fp64, by the processor


def wide_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(WIDE, WIDE, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDE, WIDE, 3, padding=1))
    return layers.to(memory_format=torch.channels_last)


def features(side: int = 16, images: int = 1) -> torch.Tensor:
    return torch.randn(images, WIDE, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_same_output_and_no_trace_once_it_is_off():
    network, x = wide_network(), features()
    before, expected = snapshot(network), network(x)
    kept = bits(network)
    use_winograd(network)
    assert distance(network(x), expected) < ROUNDING
    assert isinstance(network[0].packed, TransformedWeight)
    assert "0.weight" not in dict(network.named_parameters())  # not kept twice
    assert same_bits(network, kept)
    assert network[0].weight.stride() == before[1]["parameters"]["weight"][2]
    use_direct(network)
    assert torch.equal(network(x), expected)
    assert_same(snapshot(network), before)


@torch.no_grad()
def test_a_weight_that_nothing_else_holds_comes_back_from_what_is_stored():
    network, x = wide_network(), features()
    kept = bits(network)
    use_winograd(network)
    network(x)
    assert network[0].packed.original() is None
    use_direct(network)
    assert same_bits(network, kept)
    assert all(is_plain(layer) for layer in network)


@torch.no_grad()
def test_small_feature_maps_take_the_prepacked_convolution():
    network = wide_network()
    kept, small, large = bits(network), features(8, images=4), features(15)
    expected = network(small)
    use_winograd(network)
    for _ in range(2):
        network(large)
        assert isinstance(network[0].packed, TransformedWeight)
        found = network(small)  # in a batch of any size
        assert not isinstance(network[0].packed, TransformedWeight)
        # The same sums in the same order where prepacking works, and a few roundings apart in another build.
        assert distance(found, expected) < ROUNDING
    assert same_bits(network, kept)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(WIDE, WIDE - 1, 3, padding=1),
        nn.Conv2d(WIDE, WIDE, 3, stride=2, padding=1),
        nn.Conv2d(WIDE, WIDE, 3),
        nn.Conv2d(WIDE, WIDE, 1),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=2),
        nn.Conv2d(WIDE, WIDE, 3, padding=1, dilation=2),
    ],
    ids=["narrow", "stride", "padding", "1x1", "groups", "dilation"],
)
def test_other_convolutions_stay_as_they_are(layer):
    use_winograd(nn.Sequential(layer))
    assert type(layer) is nn.Conv2d


def test_it_takes_the_place_of_prepacking_and_gives_it_back():
    network, x = wide_network(), features()
    kept = bits(network)
    pack_convolutions(network)
    with torch.no_grad():
        network(x)
    use_winograd(network)
    pack_convolutions(network)  # in every call of a pipeline
    assert patches_on(network[0]) == (WinogradConv2d,)
    with torch.no_grad():
        network(x)
    use_direct(network)
    pack_convolutions(network)
    assert patches_on(network[0]) == (PackedConv2d,)
    assert same_bits(network, kept)


@torch.no_grad()
def test_a_layer_with_an_adapter_is_computed_plainly_and_taken_again_afterwards():
    network, x = wide_network(), features()
    kept = bits(network)
    deltas = {"0": LoRA.initialize(network[0], 2, 2.0, torch.Generator().manual_seed(3))}
    deltas["0"].lora_up.data.normal_(generator=torch.Generator().manual_seed(4))
    inject(network, "one", deltas)
    expected = network(x)
    eject(network, "one")
    use_winograd(network)
    network(x)
    inject(network, "one", deltas)
    use_winograd(network)
    assert not isinstance(network[0], WinogradConv2d)
    assert isinstance(network[2], WinogradConv2d)
    assert distance(network(x), expected) < ROUNDING
    originals = merge_adapters(network)
    use_winograd(network)
    assert distance(network(x), expected) < ROUNDING
    assert isinstance(network[0].packed, TransformedWeight)
    unmerge_adapters(network, originals)
    eject(network, "one")
    use_winograd(network)
    assert isinstance(network[0], WinogradConv2d)
    assert same_bits(network, kept)


def test_int8_takes_its_place_and_keeps_it():
    network = wide_network()
    use_winograd(network)
    with torch.no_grad():
        network(features())
    replace_layer(network[0], Int8Conv2d)
    use_winograd(network)
    assert patches_on(network[0]) == (Int8Conv2d,)
    make_plain(network[0])
    assert type(network[0]) is nn.Conv2d


@torch.no_grad()
def test_seamless_edges():
    network, x = wide_network(), features()
    with circular_padding(network):
        expected = network(x)
        use_winograd(network)
        assert distance(network(x), expected) < ROUNDING


def gradient(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """With respect to x; the gradients of parameters are added to them."""
    x = x.detach().requires_grad_()
    network(x).square().sum().backward()
    return x.grad


def test_gradients_of_frozen_layers_have_winograds_products_too():
    network, x = wide_network().requires_grad_(False), features()
    kept, expected = bits(network), gradient(network, x)
    use_winograd(network)
    found = gradient(network, x)
    assert all(isinstance(network[i].packed, TransformedWeight) for i in (0, 2))
    assert not torch.equal(found, expected)
    assert distance(found, expected) < ROUNDING
    # Of a map that no one differentiates, and under checkpointing, as the U-Net's blocks are recomputed.
    assert not network[0](x).requires_grad
    again = x.detach().requires_grad_()
    checkpoint(network, again, use_reentrant=False).square().sum().backward()
    assert torch.equal(again.grad, found)
    use_direct(network)
    assert torch.equal(gradient(network, x), expected)
    assert same_bits(network, kept)


def test_the_gradient_of_a_trained_weight_reaches_its_parameter():
    """Also where the weight was transformed before, by a preview."""
    network, x = wide_network(), features()
    network[2].requires_grad_(False)
    parameter = network[0].weight
    expected = gradient(network, x)
    weight_gradient, parameter.grad = parameter.grad, None
    use_winograd(network)
    with torch.no_grad():
        network(x)
    found = gradient(network, x)
    assert network[0].weight is parameter
    assert isinstance(network[2].packed, TransformedWeight)
    assert distance(parameter.grad, weight_gradient) < ROUNDING
    assert distance(found, expected) < ROUNDING


def test_small_maps_in_training_are_computed_plainly_and_the_bound_lies_between_levels():
    network = wide_network().requires_grad_(False)
    kept, small = bits(network), features(9)
    expected = gradient(network, small)
    use_winograd(network)
    gradient(network, features(14))  # of an image of another shape than 16x16, and about as large
    assert isinstance(network[0].packed, TransformedWeight)
    with torch.no_grad():
        network(small)  # packs the weights, as a preview does
    assert torch.equal(gradient(network, small), expected)
    assert network[0].packed is None
    assert same_bits(network, kept)


def test_autocast_chooses_the_dtype():
    network, x = wide_network().requires_grad_(False), features()
    use_winograd(network)
    gradient(network, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16


def test_the_frozen_networks_of_a_training_use_it_where_it_is_supported():
    cpu = torch.device("cpu")
    assert frozen_names(cpu, torch.float32) == [*TRAINABLE, "winograd"]
    assert frozen_names(cpu, torch.bfloat16) == list(TRAINABLE)


@torch.no_grad()
def test_another_dtype_makes_the_layers_plain_again():
    network, x = wide_network(), features()
    kept = bits(network)
    use_winograd(network)
    network(x)
    copied = copy.deepcopy(network)
    network.double()
    assert all(torch.equal(tensor.double(), network.state_dict()[key]) for key, tensor in kept.items())
    use_winograd(network)
    network(x.double())
    assert all(torch.equal(tensor.double(), network.state_dict()[key]) for key, tensor in kept.items())
    use_direct(copied)
    assert same_bits(copied, kept)


def test_it_is_a_default_for_fp32_on_a_cpu_only():
    cpu = torch.device("cpu")
    assert "winograd" in default_names(cpu, torch.float32)
    assert "winograd" not in default_names(cpu, torch.bfloat16)
    assert "CPUs" in obstacle(torch.device("cuda"), torch.float32)


@torch.no_grad()
def test_a_whole_step_and_a_decode_are_no_further_from_fp64():
    torch.manual_seed(0)
    unet = UNetModel(model_channels=WIDE, channel_mult=(1, 1), num_res_blocks=1, attention_levels=(1,), context_dim=48)
    vae = AutoencoderKL(channels=WIDE, channel_mult=(1, 1), num_res_blocks=1)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([300, 300]), torch.randn(2, 7, 48)
    names = default_names(torch.device("cpu"), torch.float32)
    found = {}
    for chosen in ([name for name in names if name != "winograd"], names):
        optimize(unet, vae, chosen)
        found[len(chosen)] = unet(x, t, context), vae.decode(x)
    assert any(isinstance(m, WinogradConv2d) and type(m.packed) is TransformedWeight for m in unet.modules())
    assert any(isinstance(m, WinogradConv2d) and type(m.packed) is TransformedWeight for m in vae.modules())
    assert any(type(getattr(m, "packed", None)) is PackedWeight for m in unet.modules())  # at 8x8
    optimize(unet, vae, ())
    truth = unet.double()(x.double(), t, context.double()), vae.double().decode(x.double())
    for direct, ours, exact in zip(found[len(names) - 1], found[len(names)], truth):
        assert distance(ours, exact) < 1.1 * distance(direct, exact)  # measured: 0.5 to 0.8; 1.1 for luck
