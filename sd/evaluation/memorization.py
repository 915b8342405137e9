"""Detects generated images that replicate a training image, from pixels alone.

Carlini et al. 2023, "Extracting Training Data from Diffusion Models", call this memorization. Pixels are compared, and
no network's features, so that the result depends on no network's preferences.

Both images are reduced to 32 x 32. The middle 24 x 24 of the generated image is compared with every 24 x 24 window of
the training image and of its mirror image, because training flips images; the similarity is the highest correlation of
their colors. It tolerates noise, blur, changes of brightness, mirroring, and a shift by an eighth of the frame.

A generated image counts as a copy from a similarity of 0.95 on. Measured: an image that is blurred, made noisy,
brighter or paler, or moved by 6 % has 0.95 to 1 with itself; different photographs of one backpack or one dog have at
most 0.82, most pairs below 0.5; different images of one cartoon figure, or the two most alike of 60 emoji, reach
0.95.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd.utils.images import resize_and_crop, to_tensor

THUMBNAIL, WINDOW = 32, 24  # pixels, in height and in width
COPY_THRESHOLD = 0.95


def pixel_similarity(generated: Iterable[Image.Image], references: Iterable[Image.Image]) -> Tensor:
    """Return (B, R) correlations, at most 1: of each generated image with its best window of each reference."""
    margin = (THUMBNAIL - WINDOW) // 2
    middles = thumbnails(generated)[:, :, margin:-margin, margin:-margin].flatten(1)  # (B, 3 * 24 * 24)
    known = thumbnails(references)
    windows = F.unfold(torch.cat([known, known.flip(-1)]), WINDOW).mT  # (2 R, 81, 3 * 24 * 24)
    best = torch.einsum("bd,rpd->brp", standardize(middles), standardize(windows)).amax(dim=-1)  # (B, 2 R)
    return torch.maximum(*best.chunk(2, dim=1))


def thumbnails(images: Iterable[Image.Image]) -> Tensor:
    """Return the largest square in the middle of each image, as training crops it, reduced: (B, 3, 32, 32)."""
    return torch.cat([to_tensor(resize_and_crop(image, THUMBNAIL, THUMBNAIL)) for image in images])


def standardize(x: Tensor) -> Tensor:
    """Return rows (..., D) without their mean and of unit length, so that products are correlations.

    A constant row becomes 0, which correlates with nothing.
    """
    return F.normalize(x - x.mean(dim=-1, keepdim=True), dim=-1)
