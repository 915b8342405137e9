"""Sizes for pictures that are not square: as many pixels as the square, other sides (NovelAI 2022, aspect buckets)."""

import math

from PIL import Image, ImageOps

from sd.utils.images import check_size

LONGEST = 2  # sides are at most 1 : 2
SLACK = 1 / 16  # by how much the number of pixels may differ from the square's


def bucket_sizes(size: int) -> list[tuple[int, int]]:
    """All (width, height) with about size * size pixels and no side over twice the other, narrow ones first.

    Sides are multiples of `side_step(size)`. Raises UserError where `size` is not.
    """
    step = side_step(size)
    check_size(size, size, multiple=step)
    sides = range(step, 2 * size, step)
    return [
        (width, height)
        for width in sides
        for height in sides
        if abs(width * height / size**2 - 1) <= SLACK and 1 / LONGEST <= width / height <= LONGEST
    ]


def side_step(size: int) -> int:
    """64 from 512 on, where the U-Net halves the latent three times; an eighth of smaller sizes, not below 8.

    A power of two, so that a side leaves no rest when it is halved. What small models leave, our U-Net copes with.
    """
    return min(64, 2 ** max(3, int(math.log2(size / 8))))


def nearest(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The one of `sizes` whose shape is nearest: by the ratio of the ratios, so that wide and tall count alike."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))


def cut(image: Image.Image, size: tuple[int, int], place: float = 0.5) -> Image.Image:
    """Scaled until it covers `size`, the rest cut away: place 0 keeps the left or top end, 1 the right or bottom."""
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=(place, place))


def cover_scale(image: tuple[int, int], size: tuple[int, int]) -> float:
    """By how much an image of this size is enlarged (above 1) or made smaller until it just covers `size`."""
    return max(size[0] / image[0], size[1] / image[1])
