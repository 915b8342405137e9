"""1x1 convolutions as products: the same output, only where it pays, and no trace once the patch is off."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from optimization.test_registry import bits, distance, same_bits
from torch import nn

from sd.optimization.patching import is_plain, patches_on
from sd.optimization.prepacked_conv import PackedConv2d, pack_convolutions
from sd.optimization.small_maps.pointwise_conv import MAX_CHANNELS, PointwiseConv2d, use_convolutions, use_products


def layers(*channels: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(*(nn.Conv2d(before, after, 1, bias=bias) for before, after in pairwise(channels)))
    return made.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_output_is_no_further_from_fp64_and_nothing_stays(order, bias):
    network = layers(192, 128, bias=bias)
    x = torch.randn(2, 192, 5, 3).contiguous(memory_format=order)
    kept, expected = bits(network), network(x)
    use_products(network)
    found = network(x)
    layer = network[0]
    truth = F.conv2d(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert distance(found, truth) < 1.3 * distance(expected, truth)  # measured: 0.4 to 1.0; another order of the sums
    use_convolutions(network)
    assert is_plain(layer)
    assert torch.equal(network(x), expected)
    assert same_bits(network, kept)


@torch.no_grad()
def test_it_takes_the_place_of_prepacking_and_gives_it_back():
    network = layers(32, 32)
    pack_convolutions(network)
    network(torch.randn(1, 32, 4, 4))
    use_products(network)
    pack_convolutions(network)  # in every call of a pipeline
    assert patches_on(network[0]) == (PointwiseConv2d,)
    use_convolutions(network)
    pack_convolutions(network)
    assert patches_on(network[0]) == (PackedConv2d,)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(MAX_CHANNELS + 1, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(8, 8, 1, groups=2),
        nn.Conv2d(8, 8, 1, padding=1),
    ],
    ids=["wide", "3x3", "stride", "groups", "padding"],
)
def test_other_convolutions_stay_as_they_are(layer):
    use_products(nn.Sequential(layer))
    assert type(layer) is nn.Conv2d


def test_gradients_and_other_dtypes_are_the_convolutions():
    network, x = layers(16, 24), torch.randn(1, 16, 4, 4)
    expected = network(x)
    use_products(network)
    assert torch.equal(network(x), expected)
    with torch.no_grad():
        assert torch.equal(network.double()(x.double()), F.conv2d(x.double(), network[0].weight, network[0].bias))
