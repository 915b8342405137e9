"""Tiled diffusion: an image larger than the model's own as the mean of overlapping windows.

Bar-Tal et al. 2023, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation", section 4. At every step
the U-Net runs on each window alone, so that its memory does not grow with the image, and the predictions are averaged
where windows overlap. Their mean in eps is that in x0, as x0 is affine in eps.
"""

from collections.abc import Callable, Sequence
from itertools import product

from torch import Tensor

from sd.control.controlled_unet import ControlledUNet
from sd.control.interval import Interval
from sd.unet import UNetModel

Window = tuple[slice, slice]  # rows and columns of the latent


class TiledUNet:
    """A U-Net that runs on windows, as a callable (x, t, context) -> eps.

    tile: the side of a window, in positions of the latent. overlap: the least share of a side that neighboring windows
    have in common. controls, batch: see `ControlledUNet`; each window has its part of the control image.
    """

    def __init__(
        self,
        unet: UNetModel,
        tile: int,
        overlap: float,
        controls: Sequence[Interval] = (),
        batch: int = 1,
    ):
        self.unet, self.tile, self.overlap = unet, tile, overlap
        self.controls, self.batch = controls, batch

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """x: (B, C, h, w). t: (B,). context: (B, M, D). Return eps, (B, 4, h, w)."""
        height, width = x.shape[-2:]
        windows = list(product(spans(height, self.tile, self.overlap), spans(width, self.tile, self.overlap)))
        if len(windows) == 1:
            return self.unet_on(windows[0])(x, t, context)
        total, count = x.new_zeros(len(x), 4, height, width), x.new_zeros(1, 1, height, width)
        for window in windows:
            total[(..., *window)] += self.unet_on(window)(x[(..., *window)], t, context)
            count[(..., *window)] += 1
        return total / count

    def unet_on(self, window: Window) -> Callable:
        """Return the U-Net for one window."""
        if not self.controls:
            return self.unet
        return ControlledUNet(self.unet, [control.part(*window) for control in self.controls], self.batch)


def spans(side: int, tile: int, overlap: float) -> list[slice]:
    """Returns evenly spaced windows of length `tile` that cover 0 to `side`; one where it is no longer than that."""
    if side <= tile:
        return [slice(0, side)]
    step = max(1, int(tile * (1 - overlap)))
    last = -(-(side - tile) // step)  # rounded up
    starts = [round(i * (side - tile) / last) for i in range(last + 1)]
    return [slice(start, start + tile) for start in starts]
