"""Noise by seed: every picture has its own generator on the CPU, so it depends on neither its batch nor the device."""

import secrets

import torch
from torch import Tensor


class Noise:
    """A callable () -> (B, 4, h, w) of fresh standard normal noise, row i drawn from seed i's own generator.

    seeds: B of them. shape: (4, h, w). The first call gives the starting noise, later ones what a sampler adds.
    variations: a second seed for each picture, whose noise the starting noise is turned to by `strength`, 0 to 1.
    """

    def __init__(
        self,
        seeds: list[int],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        variations: list[int] | None = None,
        strength: float = 0.0,
    ):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, torch.device(device)
        self.variations, self.strength = variations, strength

    def __call__(self) -> Tensor:
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        if self.variations is not None and self.strength > 0:
            others = [torch.randn(self.shape, generator=torch.Generator().manual_seed(s)) for s in self.variations]
            rows = [slerp(self.strength, row, other) for row, other in zip(rows, others)]
            self.variations = None  # they vary the start, not what is added on the way
        noise = torch.stack(rows)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            noise = noise.pin_memory()  # it is copied then without waiting for the steps that the GPU is still at
        return noise.to(self.device, non_blocking=on_gpu)


def slerp(amount: float, low: Tensor, high: Tensor) -> Tensor:
    """Along the arc from `low` (amount 0) to `high` (amount 1), so that noise on the way keeps its length.

    low, high: (4, h, w); the arcs are those of the columns along h, as in the webui, so that its variations are ours.
    Nearly parallel ones are mixed along the straight line.
    """
    cosine = torch.cosine_similarity(low, high, dim=1)  # (4, w)
    if cosine.mean() > 0.9995:
        return torch.lerp(low, high, amount)
    angle = cosine.acos()
    near, far = torch.sin((1 - amount) * angle), torch.sin(amount * angle)
    return (near[:, None] * low + far[:, None] * high) / torch.sin(angle)[:, None]


def random_seed() -> int:
    """A seed that nobody chose, short enough to be typed again."""
    return secrets.randbelow(2**32)
