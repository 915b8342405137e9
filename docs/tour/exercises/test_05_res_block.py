import pytest
import torch

from sd.unet import ResBlock


@pytest.fixture(scope="module", params=[(32, 64), (32, 32)], ids=["wider", "same"])
def block(request):
    torch.manual_seed(0)
    return ResBlock(*request.param, time_dim=16)


def test_it_is_the_blocks_own_output(exercise, block):
    x, emb = torch.randn(2, 32, 6, 6), torch.randn(2, 16)
    with torch.no_grad():
        assert torch.equal(exercise.forward(block, x, emb), block(x, emb))


def test_the_time_of_one_latent_does_not_reach_another(exercise, block):
    x, emb = torch.randn(2, 32, 6, 6), torch.randn(2, 16)
    other = emb.clone()
    other[1] += 1
    with torch.no_grad():
        one, two = exercise.forward(block, x, emb), exercise.forward(block, x, other)
    assert torch.equal(one[0], two[0])
    assert not torch.allclose(one[1], two[1])
