"""A network's `forward` compiled. CUDA's graphs need a GPU; what stands around them is the same on a CPU."""

import pytest
import torch
from torch import nn

from sd.optimization.compile import Compiled, compile_forward, eagerly, run_eagerly


class Halves(nn.Module):
    """Gives the same tensor each time, as a graph does."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        return self.scale * x + more


@pytest.fixture
def network() -> Halves:
    torch.compiler.reset()
    return Halves()


@torch.no_grad()
def test_compiled_gives_the_same_says_so_once_a_size_and_comes_off(network, capsys, monkeypatch):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph.forward)
    x, more = torch.randn(2, 3), torch.randn(3)
    expected = network(x, more)
    compile_forward(network, "default")
    once = network.forward
    compile_forward(network, "default")
    assert network.forward is once
    assert torch.equal(network(x, more), expected)
    assert capsys.readouterr().err.count("compiling for this image size") == 1
    network(x, more)
    assert capsys.readouterr().err == ""
    network(torch.randn(4, 3), more)
    assert capsys.readouterr().err.count("compiling for this image size") == 1
    run_eagerly(network)
    assert type(network).forward is network.forward.__func__


def test_it_can_rest_for_a_while(network):
    with eagerly(network):
        assert "forward" not in vars(network)  # and nothing is left where nothing was compiled
    assert "forward" not in vars(network)
    compile_forward(network)
    compiled = network.forward
    with eagerly(network):
        assert "forward" not in vars(network)
    assert network.forward is compiled


@torch.no_grad()
def test_no_answer_lies_where_the_next_one_will(network):
    """As a graph's: every answer in the same place."""
    compile_forward(network)
    place = torch.zeros(3)
    network.forward.run = lambda x, more: torch.add(x, more, out=place)
    first, second = (network(torch.full((3,), value), torch.zeros(3)) for value in (1.0, 2.0))
    assert first.tolist() == [1, 1, 1]
    assert second.tolist() == [2, 2, 2]


@torch.no_grad()
def test_without_a_compiler_it_goes_on_with_a_sentence(network, capsys):
    compile_forward(network)

    def fails(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\nFailed to find C compiler.\nPlease specify via CC.")

    network.forward.run = fails
    x, more = torch.randn(2, 3), torch.randn(3)
    assert torch.equal(network(x, more), Halves.forward(network, x, more))
    said = capsys.readouterr().err
    assert said.endswith("compiling failed: Failed to find C compiler. The network runs without it.\n")
    network(x, more)
    assert capsys.readouterr().err == ""


@torch.no_grad()
def test_too_little_memory_is_not_taken_for_a_missing_compiler(network):
    compile_forward(network)

    def fails(*_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    network.forward.run = fails
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.randn(2, 3), torch.randn(3))


def test_gradients_go_through_the_textbook(network):
    compile_forward(network)
    network.forward.run = None
    network(torch.randn(2, 3), torch.randn(3)).sum().backward()
    assert network.scale.grad is not None


@torch.no_grad()
def test_both_networks_are_one_graph_each(pipe):
    """A break in it would be a place where the GPU waits for Python in every step."""
    x, t = torch.randn(2, 4, 8, 8), torch.full((2,), 500)
    context = torch.randn(2, 77, pipe.clip.final_layer_norm.weight.numel())
    for network, inputs in ((pipe.unet, (x, t, context)), (pipe.vae.decoder, (x,))):
        answer = torch.compile(Compiled(network).eager, backend="eager", fullgraph=True)(*inputs)
        torch.testing.assert_close(answer, network(*inputs))
