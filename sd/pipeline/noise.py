"""Seeded noise: each image's noise comes from its own generator, whatever its batch or its device."""

import secrets
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sd.pipeline.sampling.philox import PhiloxGenerator

Source = Callable[[tuple[int, ...]], Tensor]  # shape -> the next standard normal noise, float32 on the CPU
SOURCES = {"cpu": "CPU", "gpu": "GPU", "nv": "NV"}  # and the webui's names for them
LAST_SEED = 2**64 - 1


def source_of(seed: int, rng: str) -> Source:
    """Returns a source of noise. rng: "cpu", torch's generator there; "gpu" or "nv", the numbers of one on a GPU."""
    if rng != "cpu":
        return PhiloxGenerator(seed).randn
    return partial(torch.randn, generator=torch.Generator().manual_seed(seed))


class SeededNoise:
    """A callable () -> (B, 4, h, w) of fresh standard normal noise; row i comes from the generator of seed i.

    seeds: B of them. shape: (4, h, w). The first call returns the starting noise, later calls the noise that a sampler
    adds. variation_seeds: a second seed per image, towards whose noise the starting noise is interpolated by
    `strength`, from 0 to 1. rng: one of `SOURCES`. seed_delta: where it is not 0, the noise that a sampler adds comes
    from new generators, of the seeds plus this number (the webui's ENSD). later: another source for that noise.
    """

    def __init__(
        self,
        seeds: list[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        variation_seeds: list[int] | None = None,
        strength: float = 0.0,
        rng: str = "cpu",
        seed_delta: int = 0,
        later: str | None = None,
    ):
        self.seeds, self.shape, self.device = seeds, shape, torch.device(device)
        self.variation_seeds, self.strength = variation_seeds, strength
        self.rng, self.seed_delta, self.later = rng, seed_delta, later
        self.restart(shape)

    def restart(self, shape: tuple[int, ...]) -> None:
        """Begins again with the seeds, for noise of another shape."""
        self.shape, self.is_start = shape, True
        self.generators = [source_of(seed, self.rng) for seed in self.seeds]

    def __call__(self) -> Tensor:
        rows = [generator(self.shape) for generator in self.generators]
        if self.is_start:  # variations change the starting noise, not the noise that a sampler adds
            if self.variation_seeds is not None and self.strength > 0:
                others = [source_of(seed, self.rng)(self.shape) for seed in self.variation_seeds]
                rows = [slerp(self.strength, row, other) for row, other in zip(rows, others)]
            if self.seed_delta or self.later:
                seeds = [(seed + self.seed_delta) % (LAST_SEED + 1) for seed in self.seeds]
                self.generators = [source_of(seed, self.later or self.rng) for seed in seeds]
            self.is_start = False
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
