"""Did the model draw, or did it repeat a picture that it was taught? Told from pixels alone, so that no network's taste
is in it.

Both pictures are shrunk to 32 x 32. The middle 24 x 24 of the drawing is laid over every place of the taught picture
and of its mirror image, for training flips pictures; the closeness is the highest correlation of their colours. That
sees through noise, blur, brightness, mirroring and a frame that moved by an eighth.

A drawing counts as a copy from 0.95 on. Measured: a picture blurred, made noisy, brighter, paler or moved by 6 % is at
0.95 to 1 with itself; different photographs of one backpack or one dog are at 0.82 at most, most pairs below 0.5;
different drawings of one cartoon figure, or the two most alike of 60 emoji, reach 0.95.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd.utils.images import fit, to_tensor

THUMB, WINDOW = 32, 24  # cells each way
COPY = 0.95


def pixel_closeness(made: Iterable[Image.Image], references: Iterable[Image.Image]) -> Tensor:
    """(B, R) correlations, at most 1: how well each drawing fits somewhere onto each reference, mirrored or not."""
    margin = (THUMB - WINDOW) // 2
    middles = thumbs(made)[:, :, margin:-margin, margin:-margin].flatten(1)  # (B, 3 * 24 * 24)
    known = thumbs(references)
    places = F.unfold(torch.cat([known, known.flip(-1)]), WINDOW).mT  # (2 R, 81, 3 * 24 * 24)
    fits = torch.einsum("bd,rpd->brp", correlated(middles), correlated(places)).amax(dim=-1)  # (B, 2 R)
    return torch.maximum(*fits.chunk(2, dim=1))


def thumbs(images: Iterable[Image.Image]) -> Tensor:
    """The largest square in the middle of each, as training cuts it out, shrunk: (B, 3, 32, 32)."""
    return torch.cat([to_tensor(fit(image, THUMB, THUMB)) for image in images])


def correlated(x: Tensor) -> Tensor:
    """Rows (..., D) without their mean and of unit length: their products are correlations. Nothing but 0 stays 0."""
    return F.normalize(x - x.mean(dim=-1, keepdim=True), dim=-1)
