"""Philox against the known answers of its authors, and the normal noise against what CUDA generates."""

import numpy as np
import pytest
import torch

from sd.pipeline.sampling.philox import PhiloxGenerator, philox_4x32


# The known-answer vectors of Random123, the authors' own library: counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_words_are_the_authors(counter, key, words):
    assert philox_4x32(np.array(counter, np.uint64)[:, None], tuple(key))[:, 0].tolist() == words


def test_seed_0_is_cudas():
    """torch.randn(3, 4, device="cuda") with the seed 0, to the digits that float32 has."""
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    # the GPU computes the logarithm and the sine in float32
    np.testing.assert_allclose(PhiloxGenerator(0).randn((3, 4)), expected, rtol=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 1234567890, 2**32 - 1, 2**32, 2**64 - 1])
def test_elements_are_written_out_one_by_one(seed):
    """A plain Philox on Python integers, element by element, in the second call."""
    generator = PhiloxGenerator(seed)
    generator.randn((5,))
    found = generator.randn((4, 3, 5))
    for place, value in enumerate(found.flatten().tolist()):
        a, b, c, d = 1, 0, place, 0
        key = [seed % 2**32, seed >> 32]
        for _ in range(10):
            high, low = divmod(a * 0xD2511F53, 2**32)
            other_high, other_low = divmod(c * 0xCD9E8D57, 2**32)
            a, b, c, d = other_high ^ b ^ key[0], other_low, high ^ d ^ key[1], low
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        radius = np.sqrt(-2 * np.log(a / 2**32 + 2**-33))
        assert value == pytest.approx(radius * np.sin(2 * np.pi * (b / 2**32 + 2**-33)), rel=1e-6)


def test_the_first_numbers_do_not_depend_on_the_shape():
    small, large = PhiloxGenerator(7).randn((4, 8, 8)), PhiloxGenerator(7).randn((4, 64, 64))
    assert torch.equal(small.flatten(), large.flatten()[:256])


def test_the_numbers_are_standard_normal():
    numbers = PhiloxGenerator(3).randn((100_000,))
    assert numbers.dtype == torch.float32
    # five standard errors
    assert numbers.mean().item() == pytest.approx(0, abs=5 / 100_000**0.5)
    assert numbers.std().item() == pytest.approx(1, abs=5 / 200_000**0.5)


def test_calls_and_seeds_differ():
    generator = PhiloxGenerator(0)
    first, second = generator.randn((100,)), generator.randn((100,))
    assert not torch.equal(first, second)
    assert not torch.equal(first, PhiloxGenerator(2**32).randn((100,)))
