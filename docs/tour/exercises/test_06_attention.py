import torch
import torch.nn.functional as F

from sd.attention import join_heads, split_heads


def test_it_equals_pytorchs(exercise):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 10, 24, generator=generator)
    k, v = (torch.randn(2, 7, 24, generator=generator) for _ in range(2))
    expected = join_heads(F.scaled_dot_product_attention(*(split_heads(one, 3) for one in (q, k, v))))
    assert torch.allclose(exercise.attention(q, k, v, 3), expected, atol=1e-6)  # the order of float32 sums


def test_a_query_that_fits_one_key_alone_reads_its_value(exercise):
    k = 100 * torch.eye(4)[None]
    v = torch.arange(16.0).view(1, 4, 4)
    assert torch.allclose(exercise.attention(k[:, 2:3], k, v, 1), v[:, 2:3])


def test_equal_keys_give_the_mean(exercise):
    v = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    out = exercise.attention(torch.randn(1, 3, 8), torch.ones(1, 5, 8), v, 2)
    assert torch.allclose(out, v.mean(dim=1, keepdim=True).expand(1, 3, 8), atol=1e-6)
