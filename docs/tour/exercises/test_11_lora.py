import torch
from torch import nn

from sd.adapters.injection import inject, patched_layers
from sd.adapters.variants import LoRA

X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def network_with_lora(strength=0.7):
    """A network of two layers, of which the first has a LoRA of rank 3."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 4)).requires_grad_(False)
    lora = LoRA({"lora_down": torch.randn(3, 12), "lora_up": torch.randn(8, 3)}, scale=2.0)
    inject(network, "mine", {"0": lora}, strength)
    return network, lora.requires_grad_(False)


def test_it_is_the_product_with_delta_w(exercise):
    network, lora = network_with_lora()
    delta = 2.0 * lora.lora_up @ lora.lora_down
    found = exercise.forward(lora, network[0], X)
    assert torch.allclose(found, 0.7 * X @ delta.T, atol=1e-5)  # the order of float32 products


def test_the_merged_network_has_the_same_output_and_no_deltas(exercise):
    network, _ = network_with_lora()
    before = network(X)
    exercise.merge(network)
    assert not patched_layers(network)
    assert torch.allclose(network(X), before, atol=1e-5)  # W + ΔW is rounded once


def test_unmerging_leaves_no_trace(exercise):
    network, _ = network_with_lora()
    weight, before = network[0].weight.clone(), network(X)
    exercise.unmerge(network, exercise.merge(network))
    assert torch.equal(network[0].weight, weight)
    assert torch.equal(network(X), before)
    assert list(patched_layers(network)) == ["0"]
