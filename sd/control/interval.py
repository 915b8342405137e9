"""The part of the sampling in which a control works."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from sd.schedule import TIMES


class Interval:
    """Base of what controls the U-Net for a part of the sampling.

    hint: (1, C, h, w), an image at the latent's size. weight: 0 for nothing. start, end: shares of the sampling between
    which it works, measured in t as the guidance interval is.
    """

    hint: Tensor
    weight: float
    start: float
    end: float

    def part(self: Any, rows: slice, columns: slice) -> Any:
        """Return it for a part of the image: these rows and columns of the latent."""
        return replace(self, hint=self.hint[..., rows, columns])

    def is_active(self, t: Tensor) -> bool:
        """Return whether it works at t (B,), which is the same for the whole batch."""
        if self.weight == 0:
            return False
        if self.start == 0 and self.end == 1:
            return True
        last, now = TIMES - 1, float(t[0])
        return (self.start == 0 or now <= last * (1 - self.start)) and (self.end == 1 or now >= last * (1 - self.end))
