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
        return works_at(self.start, self.end, float(t[0]))


def works_at(start: float, end: float, t: float) -> bool:
    """Return whether the time t, 0 to 999, lies between two shares of the sampling."""
    last = TIMES - 1
    return (start == 0 or t <= last * (1 - start)) and (end == 1 or t >= last * (1 - end))
