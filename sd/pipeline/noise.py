"""Seeded noise: each image's noise comes from its own generator on the CPU, whatever its batch or its device."""

import secrets

import torch
from torch import Tensor


class SeededNoise:
    """A callable () -> (B, 4, h, w) of fresh standard normal noise; row i comes from the generator of seed i.

    seeds: B of them. shape: (4, h, w). The first call returns the starting noise, later calls the noise that a sampler
    adds. variation_seeds: a second seed per image, towards whose noise the starting noise is interpolated by
    `strength`, from 0 to 1.
    """

    def __init__(
        self,
        seeds: list[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        variation_seeds: list[int] | None = None,
        strength: float = 0.0,
    ):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, torch.device(device)
        self.variation_seeds, self.strength = variation_seeds, strength

    def __call__(self) -> Tensor:
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        if self.variation_seeds is not None and self.strength > 0:
            others = [torch.randn(self.shape, generator=torch.Generator().manual_seed(s)) for s in self.variation_seeds]
            rows = [slerp(self.strength, row, other) for row, other in zip(rows, others)]
            self.variation_seeds = None  # they change the starting noise, not the noise that a sampler adds
        noise = torch.stack(rows)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            noise = noise.pin_memory()  # lets the copy run without waiting for the steps in progress
        return noise.to(self.device, non_blocking=on_gpu)


def slerp(amount: float, low: Tensor, high: Tensor) -> Tensor:
    """Returns the spherical interpolation from `low` (amount 0) to `high` (amount 1), which keeps the noise's norm.

    low, high: (4, h, w). The arcs are those of the columns along h, as in the webui, so that variations are the same.
    Nearly parallel columns are interpolated linearly.
    """
    cosine = torch.cosine_similarity(low, high, dim=1)  # (4, w)
    if cosine.mean() > 0.9995:
        return torch.lerp(low, high, amount)
    angle = cosine.acos()
    near, far = torch.sin((1 - amount) * angle), torch.sin(amount * angle)
    return (near[:, None] * low + far[:, None] * high) / torch.sin(angle)[:, None]


def random_seed() -> int:
    """Returns a random seed below 2^32, short enough to be typed again."""
    return secrets.randbelow(2**32)
