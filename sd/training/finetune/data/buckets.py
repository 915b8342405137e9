"""Aspect-ratio buckets: sizes with about as many pixels as the square but other sides (NovelAI 2022)."""

import math

from PIL import Image, ImageOps

from sd.utils.images import check_size

LONGEST = 2  # the longest ratio of the sides
SLACK = 1 / 16  # the relative deviation of the number of pixels from the square's


def bucket_sizes(size: int) -> list[tuple[int, int]]:
    """Return all (width, height) with about size * size pixels and no side over twice the other, narrow ones first.

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
    """Return 64 from 512 on, where the U-Net halves the latent three times; an eighth of smaller sizes, at least 8.

    It is a power of two, so that a side halves without a remainder. The U-Net copes with what small sizes leave.
    """
    return min(64, 2 ** max(3, int(math.log2(size / 8))))


def nearest_bucket(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the size of the nearest aspect ratio, by the ratio of the ratios, so that wide and tall count alike."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))


def crop_to_size(image: Image.Image, size: tuple[int, int], position: float = 0.5) -> Image.Image:
    """Scale the image until it covers `size` and crop the rest: position 0 keeps the left or top end, 1 the right or
    bottom.
    """
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=(position, position))


def cover_scale(image: tuple[int, int], size: tuple[int, int]) -> float:
    """Return the factor that scales an image of this size (above 1: enlarges it) until it just covers `size`."""
    return max(size[0] / image[0], size[1] / image[1])
