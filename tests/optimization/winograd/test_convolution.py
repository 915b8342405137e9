"""F(2x2, 3x3) against the definition in fp64, at any size, and with the same bits in any batch."""

import pytest
import torch
import torch.nn.functional as F
from optimization.test_registry import distance
from torch import Tensor, nn

from sd.optimization.winograd import convolution
from sd.optimization.winograd.convolution import winograd_conv2d, winograd_conv2d_backward
from sd.optimization.winograd.weights import transform_weight


def made(channels_in: int, channels_out: int) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    return layer, transform_weight(layer.weight.detach())


def features(*shape: int) -> Tensor:
    """As a ResBlock's convolutions read them."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return F.silu(x).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (1, 5, 7, 9), (3, 5, 1, 1), (1, 5, 2, 13), (0, 5, 4, 4)])
@pytest.mark.parametrize("room", [1, 2000, 2**22])
@torch.no_grad()
def test_any_size_and_any_parts(shape, room, monkeypatch):
    """In one part, in some rows of one image at a time, and in single rows."""
    monkeypatch.setattr(convolution, "BUFFER", room)
    layer, blocks = made(5, 6)
    x = features(*shape)
    found = winograd_conv2d(x, blocks, layer.bias)
    assert found.shape == (shape[0], 6, *shape[2:])
    # Sums of a few numbers of size 1 in fp32, which has 6e-8.
    assert torch.allclose(found.double(), layer.double()(x.double()), atol=2e-6)


@torch.no_grad()
def test_without_a_bias_and_in_the_other_memory_order():
    layer, blocks = made(4, 8)
    x = features(2, 4, 6, 6).contiguous()
    expected = F.conv2d(x.double(), layer.weight.double(), padding=1)
    assert torch.allclose(winograd_conv2d(x, blocks, None).double(), expected, atol=2e-6)  # as above


@pytest.mark.parametrize(("channels_in", "channels_out", "side"), [(256, 256, 32), (320, 320, 24), (1280, 256, 16)])
@torch.no_grad()
def test_it_is_closer_to_fp64_than_the_convolution_of_pytorch(channels_in, channels_out, side):
    layer, blocks = made(channels_in, channels_out)
    layer.to(memory_format=torch.channels_last)
    x = features(1, channels_in, side, side)
    direct = layer(x)
    truth = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    found = distance(winograd_conv2d(x, blocks, layer.bias), truth)
    assert found < 7e-7  # measured: 3.7e-7 to 5.5e-7, by the order in which a processor sums
    assert found < 1.1 * distance(direct, truth)  # measured: 0.2 to 0.6 of it, by the processor


@torch.no_grad()
def test_an_image_has_the_same_bits_in_any_batch():
    layer, blocks = made(256, 256)
    x = features(3, 256, 16, 16)
    together = winograd_conv2d(x, blocks, layer.bias)
    assert all(torch.equal(winograd_conv2d(x[i : i + 1], blocks, layer.bias)[0], together[i]) for i in range(3))


def gradient_of(layer: nn.Conv2d, gradient: Tensor) -> Tensor:
    """With respect to the layer's input, by autograd."""
    x = gradient.new_zeros(len(gradient), layer.in_channels, *gradient.shape[-2:]).requires_grad_()
    return torch.autograd.grad(layer(x), x, gradient)[0]


@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (1, 6, 7, 9), (3, 6, 1, 1), (1, 6, 2, 13), (0, 6, 4, 4)])
@pytest.mark.parametrize("room", [1, 2**22])
def test_the_gradient_with_respect_to_the_input(shape, room, monkeypatch):
    monkeypatch.setattr(convolution, "BUFFER", room)
    layer, blocks = made(5, 6)
    gradient = features(*shape)
    with torch.no_grad():
        found = winograd_conv2d_backward(gradient, blocks)
    # As above: sums of a few numbers of size 1.
    assert torch.allclose(found.double(), gradient_of(layer.double(), gradient.double()), atol=2e-6)


@pytest.mark.parametrize(("channels_in", "channels_out", "side"), [(256, 320, 16), (320, 256, 24)])
def test_the_gradient_is_closer_to_fp64_than_that_of_pytorch(channels_in, channels_out, side):
    layer, blocks = made(channels_in, channels_out)
    layer.to(memory_format=torch.channels_last)
    gradient = features(1, channels_out, side, side)
    direct = gradient_of(layer, gradient)
    with torch.no_grad():
        found = winograd_conv2d_backward(gradient, blocks)
    truth = gradient_of(layer.double(), gradient.double())
    assert distance(found, truth) < 7e-7  # measured: 3.9e-7 to 5.4e-7, likewise
    assert distance(found, truth) < 1.1 * distance(direct, truth)  # measured: 0.2 to 0.4 of it
