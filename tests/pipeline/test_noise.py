import pytest
import torch

from sd.pipeline.noise import SeededNoise, slerp


def test_a_row_depends_on_its_own_seed_alone():
    many, one = SeededNoise([3, 4, 5], (4, 8, 8)), SeededNoise([4], (4, 8, 8))
    for _ in range(3):
        assert torch.equal(many()[1:2], one())


def test_starting_noise_is_torchs_own_for_that_seed():
    expected = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(9))
    assert torch.equal(SeededNoise([9], (4, 8, 8))()[0], expected)


def test_slerp_runs_along_the_arc():
    low, high = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(0.0, low, high), low)
    # The sine of nearly a half turn amplifies fp32 rounding where two columns point nearly opposite ways.
    torch.testing.assert_close(slerp(1.0, low, high), high, rtol=1e-4, atol=1e-4)
    middle = slerp(0.5, low, high)
    # Halfway along a straight line the spread would be 0.71; 16,384 draws know it to 0.006.
    assert middle.std() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(slerp(0.3, low, low), low)


def test_a_variation_changes_the_start_only():
    plain, varied = SeededNoise([1], (4, 8, 8)), SeededNoise([1], (4, 8, 8), variation_seeds=[2], strength=0.4)
    assert not torch.allclose(plain(), varied())
    assert torch.equal(plain(), varied())
