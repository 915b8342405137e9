"""The measurements of one task, and the figures computed from them."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Result:
    """The measurements of one task.

    seconds: of every run, by backend, and of a matrix product as "matmul". flops: of a run, and of that product.
    differences: relative error of each backend's output against diffusers'. peak_bytes: of a process that does the task
    once, by backend. missing: unavailable backends, and why.
    """

    name: str
    seconds: dict[str, list[float]]
    flops: dict[str, int] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def backends(self) -> list[str]:
        return [backend for backend in self.seconds if backend != "matmul"]

    def median(self, backend: str) -> float:
        return statistics.median(self.seconds[backend])

    def ratios(self, backend: str) -> list[float]:
        """Return our time / this backend's time, for each round."""
        return [ours / theirs for ours, theirs in zip(self.seconds.get("ours", []), self.seconds[backend])]

    def share(self, backend: str) -> float | None:
        """Return the operations per second as a share of the fastest matrix product's; None where none are counted."""
        if not self.flops:
            return None
        peak = self.flops["matmul"] / min(self.seconds["matmul"])
        return self.flops["task"] / self.median(backend) / peak
