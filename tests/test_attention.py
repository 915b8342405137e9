import pytest
import torch

from sd.attention import attention, attention_written_out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_the_written_out_equation(heads, causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 32, generator=generator)
    # 1e-6: fp32 rounding over sums of at most 32 terms.
    torch.testing.assert_close(
        attention(q, k, v, heads, causal), attention_written_out(q, k, v, heads, causal), rtol=1e-5, atol=1e-6
    )


def test_keys_may_be_more_than_queries():
    q, k, v = torch.randn(2, 5, 16), torch.randn(2, 77, 16), torch.randn(2, 77, 16)
    ours = attention(q, k, v, heads=2)
    assert ours.shape == (2, 5, 16)
    torch.testing.assert_close(ours, attention_written_out(q, k, v, heads=2), rtol=1e-5, atol=1e-6)


def test_causal_means_that_the_future_does_not_matter():
    x = torch.randn(1, 6, 8)
    changed = torch.cat([x[:, :4], torch.randn(1, 2, 8)], dim=1)
    before, after = attention(x, x, x, 2, causal=True), attention(changed, changed, changed, 2, causal=True)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
