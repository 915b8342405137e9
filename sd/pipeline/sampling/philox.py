"""The noise that a CUDA GPU generates, computed on any machine: the webui's random number generator "NV".

Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 4.3) turns a counter of four
32-bit words and a key of two into four random words. cuRAND counts one element of a tensor with the third word and one
call with the first, and makes a normal number of the first two words of a result by the Box-Muller transform.
"""

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # the golden ratio's and sqrt(3) - 1's first 32 bits
ROUNDS = 10
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox_4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return four random words for each counter: (4, N) uint64, each below 2^32, from a counter of the same shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> SHIFT) ^ c1 ^ k0,
            product1 & LOW,
            (product0 >> SHIFT) ^ c3 ^ k1,
            product0 & LOW,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return np.stack([c0, c1, c2, c3])


class PhiloxGenerator:
    """A source of standard normal tensors, equal to torch.randn with a CUDA generator of the same seed.

    seed: 0 to 2^64 - 1. A GPU with fewer threads than the tensor has elements numbers them otherwise, so that large
    tensors differ between GPUs; like the webui, this class counts one thread for each element.
    """

    def __init__(self, seed: int):
        self.key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self.calls = 0

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next tensor of standard normal noise, float32 on the CPU."""
        count = int(np.prod(shape))
        counter = np.zeros((4, count), np.uint64)
        counter[0] = self.calls
        counter[2] = np.arange(count, dtype=np.uint64)
        self.calls += 1
        first, second, _, _ = philox_4x32(counter, self.key).astype(np.float64)
        # cuRAND maps words to (0, 1], at the middles of 2^32 equal parts
        radius = np.sqrt(-2 * np.log((first + 0.5) / 2**32))
        normal = radius * np.sin(2 * np.pi * (second + 0.5) / 2**32)
        return torch.from_numpy(normal.astype(np.float32).reshape(shape))
