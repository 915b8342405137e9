"""Transformed weights: the paper's matrices, and every bit comes back."""

import pytest
import torch

from sd.optimization.winograd import weights
from sd.optimization.winograd.weights import TransformedWeight, transform_weight

G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def transformed(weight: torch.Tensor) -> TransformedWeight:
    facts = dict(original=lambda: None, requires_grad=False, shape=weight.shape, strides=weight.stride())
    return TransformedWeight.from_weight(weight, **facts)


def test_the_transform_is_the_papers_rounded_once():
    weight = torch.randn(6, 5, 3, 3)
    expected = torch.einsum("ia,kcab,jb->ijck", G, weight.double(), G)
    assert torch.equal(transform_weight(weight), expected.flatten(0, 1).float())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("chunk", [1, 40, 2**15])
def test_every_bit_comes_back(order, chunk, monkeypatch):
    """Also of zeros with a sign, of numbers with no exponent left, and of what is no number."""
    monkeypatch.setattr(weights, "CHUNK", chunk)
    weight = torch.randn(24, 16, 3, 3).to(memory_format=order)
    weight[0, 0] = torch.tensor([[0.0, -0.0, 1e-42], [float("nan"), 3e38, -3e38], [float("inf"), 1e-30, -0.0]])
    weight[1, 1] = 1 + 1e-6 * torch.randn(3, 3)
    weight[2] *= torch.logspace(-20, 10, 9).view(3, 3)
    found = transformed(weight).unpack()
    assert found.stride() == weight.stride()
    assert torch.equal(found.contiguous().view(torch.int32), weight.contiguous().view(torch.int32))


def test_what_rounding_took_is_a_byte_for_almost_every_weight():
    kept = transformed(torch.randn(64, 64, 3, 3))
    assert kept.lost.dtype == torch.int8
    assert len(kept.far) < 0.005 * kept.lost.numel()  # measured: 0.15 %
