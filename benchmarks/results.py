"""What was measured of one task, and what follows from it."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Result:
    """seconds: of every turn, by side, and of a matrix product as "matmul"; flops: of a turn, and of that product.

    differences: of each side's answer from diffusers', relative. peak_bytes: of a process that does the task once,
    by side. missing: sides that could not take part, and why.
    """

    name: str
    seconds: dict[str, list[float]]
    flops: dict[str, int] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def sides(self) -> list[str]:
        return [side for side in self.seconds if side != "matmul"]

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    def ratios(self, side: str) -> list[float]:
        """ours / this side, turn by turn."""
        return [ours / theirs for ours, theirs in zip(self.seconds.get("ours", []), self.seconds[side])]

    def share(self, side: str) -> float | None:
        """How much of the fastest matrix product's operations a second this side reaches; None where none counted."""
        if not self.flops:
            return None
        peak = self.flops["matmul"] / min(self.seconds["matmul"])
        return self.flops["task"] / self.median(side) / peak
