"""Keys and values of the text: computed once, the same bits, and anew after whatever changes them."""

import copy

import pytest
import torch
from optimization.test_registry import guided_inputs, loras, small_networks
from torch import nn

from sd.adapters.injection import eject, inject
from sd.optimization.small_maps.cached_text import CachedText, cache_text, compute_text_anew


@pytest.fixture
def unet():
    network = small_networks()[0]
    cache_text(network)
    return network


def plain(unet: nn.Module, *given: torch.Tensor) -> torch.Tensor:
    """What the network computes without the patch."""
    copied = copy.deepcopy(unet)
    compute_text_anew(copied)
    return copied(*given)


def count_products(unet: nn.Module) -> list:
    """Returns a list that grows by one with each call of a layer of keys."""
    calls = []
    for module in unet.modules():
        if isinstance(module, CachedText):
            module.to_k.register_forward_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
def test_the_same_bits_and_once_for_all_steps(unet):
    x, t, context = guided_inputs()
    expected = [plain(unet, x, t - i, context) for i in range(3)]
    calls = count_products(unet)
    found = [unet(x, t - i, context) for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert len(calls) == sum(isinstance(module, CachedText) for module in unet.modules()) > 0
    compute_text_anew(unet)
    assert not any(isinstance(module, CachedText) or hasattr(module, "stored") for module in unet.modules())


@torch.no_grad()
def test_another_context_and_a_changed_one_are_read(unet):
    x, t, context = guided_inputs()
    unet(x, t, context)
    for changed in (context.clone().neg_(), context.add_(1), context[:, :5]):
        assert torch.equal(unet(x, t, changed), plain(unet, x, t, changed))


def negate(weight: nn.Parameter) -> None:
    weight.neg_()


def swap(weight: nn.Parameter) -> None:
    weight.data = -weight.data  # as training exchanges weights and their average


@pytest.mark.parametrize("change", [negate, swap])
@torch.no_grad()
def test_changed_weights_are_read(unet, change):
    given = guided_inputs()
    before = unet(*given)
    for module in unet.modules():
        if isinstance(module, CachedText):
            change(module.to_k.weight)
    found = unet(*given)
    assert not torch.equal(found, before)
    assert torch.equal(found, plain(unet, *given))
    state = {key: tensor / 2 for key, tensor in unet.state_dict().items()}
    unet.load_state_dict(state)
    assert torch.equal(unet(*given), plain(unet, *given))


@torch.no_grad()
def test_adapters_and_copies_compute_their_own(unet):
    given = guided_inputs()
    before = unet(*given)
    inject(unet, "one", loras(unet))
    found = unet(*given)
    assert not torch.equal(found, before)
    assert torch.equal(found, plain(unet, *given))
    eject(unet, "one")
    assert torch.equal(unet(*given), before)
    assert torch.equal(copy.deepcopy(unet)(*given), before)
    assert unet.double()(*guided_inputs(torch.float64)).dtype == torch.float64


def test_gradients_pass_through(unet):
    x, t, context = guided_inputs()
    with torch.no_grad():
        unet(x, t, context)
    context.requires_grad_()
    unet(x, t, context).sum().backward()
    assert context.grad.abs().sum() > 0
