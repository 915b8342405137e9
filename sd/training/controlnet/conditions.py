"""Condition images for training a ControlNet: from an image to what a user would give, with random variation.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", train on Canny edges with random
thresholds, and on scribbles that are synthesized from edges with strong augmentation: a model that has seen only one
threshold and one line width fails on a drawing by hand.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from sd.control.edges import canny
from sd.control.preprocessors import preprocess
from sd.utils.errors import UserError

REFERENCE_SIDE = 128  # pixels; lengths below are for images of this size and grow with the image
STROKE = 0.4  # of the brightness in the middle of a blurred line: what is brighter belongs to the stroke


def random_canny(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return Canny edges (H, W) with random thresholds."""
    low = rng.uniform(40, 140)
    return canny(np.array(image), low, low * rng.uniform(1.5, 2.5))


def random_scribble(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return lines as a person would draw them (H, W): the main edges, bent, thick, and with gaps.

    An edge counts if its contrast is over a random one of 20 to 60, of 255. Blurred by a Gaussian of deviation sigma, a
    step of contrast c has the gradient c / (sigma sqrt(2 pi)), which Sobel's weights multiply by 8.
    """
    unit = min(image.size) / REFERENCE_SIDE
    sigma = rng.uniform(0.7, 1.6) * unit
    smooth = image.filter(ImageFilter.GaussianBlur(sigma))
    high = 8 * rng.uniform(20, 60) / (sigma * np.sqrt(2 * np.pi))
    points = np.argwhere(canny(np.array(smooth), 0.4 * high, high))  # (N, 2), rows and columns
    lines = draw_points(bend(points, image.size, rng.uniform(0, 1.5) * unit, rng), image.size)
    strokes = thicken(lines, rng.uniform(0.8, 1.8) * unit)
    return erase_gaps(strokes, unit, rng) if rng.random() < 0.5 else strokes


def random_tile(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return the image without its finest details (H, W, 3), as if it were 2 to 8 times smaller."""
    return preprocess(image, "tile_resample", rng.uniform(2, 8))


def random_blur(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Return the image blurred (H, W, 3)."""
    return preprocess(image, "blur_gaussian", rng.uniform(1, 6) * min(image.size) / REFERENCE_SIDE)


CONDITIONS: dict[str, Callable[[Image.Image, np.random.Generator], np.ndarray]] = {
    "canny": random_canny,
    "scribble": random_scribble,
    "tile_resample": random_tile,
    "blur_gaussian": random_blur,
}


def make_condition(image: Image.Image, name: str, seed: int) -> np.ndarray:
    """Return a condition image, (H, W, 3) uint8, a function of the image (RGB) and the seed alone.

    name: of CONDITIONS. Raises UserError for an unknown name.
    """
    if name not in CONDITIONS:
        raise UserError(f"unknown condition {name!r}; choose from {', '.join(CONDITIONS)}.")
    pixels = CONDITIONS[name](image, np.random.default_rng(seed))
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


def bend(points: np.ndarray, size: tuple[int, int], amount: float, rng: np.random.Generator) -> np.ndarray:
    """Return points (N, 2), moved by a smooth random field with a standard deviation of about `amount` pixels.

    size: (width, height) of the image, in which all points stay.
    """
    knots = rng.normal(0, 1, (2, 6, 6)).astype(np.float32)
    field = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in knots]
    rows, columns = points.T
    moved = np.stack([points[:, k] + amount * field[k][rows, columns] for k in (0, 1)], axis=1)
    return np.clip(np.rint(moved).astype(int), 0, (size[1] - 1, size[0] - 1))


def draw_points(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) uint8: 255 at the points (N, 2), 0 elsewhere."""
    lines = np.zeros(size[::-1], np.uint8)
    lines[tuple(points.T)] = 255
    return lines


def thicken(lines: np.ndarray, sigma: float) -> np.ndarray:
    """Return lines (H, W) of one pixel as round strokes of some 2.7 sigma pixels, which also closes small gaps.

    A line blurred by a Gaussian has the brightness 255 / (sigma sqrt(2 pi)) in its middle.
    """
    margin = int(3 * sigma) + 1  # black, because a blur repeats what is at the border
    padded = Image.fromarray(np.pad(lines, margin)).filter(ImageFilter.GaussianBlur(sigma))
    blurred = np.asarray(padded)[margin:-margin, margin:-margin]
    middle = 255 / max(1.0, sigma * np.sqrt(2 * np.pi))
    return np.where(blurred >= STROKE * middle, 255, 0).astype(np.uint8)


def erase_gaps(strokes: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Return strokes (H, W) with one to four round gaps in them."""
    lit = np.argwhere(strokes)
    rows, columns = np.ogrid[: strokes.shape[0], : strokes.shape[1]]
    kept = strokes.copy()
    for _ in range(rng.integers(1, 5) if len(lit) else 0):
        row, column = lit[rng.integers(len(lit))]
        kept[(rows - row) ** 2 + (columns - column) ** 2 <= (rng.uniform(3, 8) * unit) ** 2] = 0
    return kept
