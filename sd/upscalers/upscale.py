"""Upscaling by name: Lanczos, Nearest, or a model of `weights/upscalers/`, for every way in.

Images are enlarged by the same steps as in AUTOMATIC1111's webui: a model runs until the image has at least the size
that was asked for, at most `PASSES` times, and Lanczos takes it to exactly this size.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sd.checkpoints.discovery import Models, locate
from sd.upscalers.rrdbnet import RRDBNet, upscaled_tiles
from sd.upscalers.upscaler_files import read_cached
from sd.utils.errors import UserError
from sd.utils.images import to_rgb

Upscaler = Image.Resampling | Path  # a filter, or the file of a model
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
# What the webui calls Real-ESRGAN's own files.
WEBUI_NAMES = {
    "r-esrgan 4x+": "RealESRGAN_x4plus",
    "r-esrgan 4x+ anime6b": "RealESRGAN_x4plus_anime_6B",
    "r-esrgan 2x+": "RealESRGAN_x2plus",
    "esrgan_4x": "ESRGAN",
}
PASSES = 3  # the webui's
TILE = 256  # pixels
MAX_PIXELS = 16384 * 16384  # of what a model may make of an image, in bytes three times as much

OnTile = Callable[[], object]


def find_upscaler(name: str, models: Models, also: Iterable[str] = (), by_path: bool = False) -> Upscaler:
    """Returns the filter, or the file of the model, of that name. Raises UserError, which lists what there is.

    also: labels that the caller knows besides, for the list. by_path: whether a path to a file will do, which is never
    so for names that come over a network.
    """
    if (known := FILTERS.get(name.strip().lower())) is not None:
        return known
    for text in (name, WEBUI_NAMES.get(name.strip().lower(), name)):
        try:
            return locate("upscaler", text, models) if by_path else models.find("upscaler", text)
        except UserError as error:
            problem = error
    if not str(problem).startswith(("there is no", "that is not", "the name of")):
        raise problem  # it says what the file is
    listed = ", ".join([*also, *(known.title() for known in FILTERS), *models.names("upscaler")])
    raise UserError(f"unknown upscaler {name[:100]!r}; choose from {listed}.") from problem


def check_upscaler(upscaler: Upscaler | None) -> None:
    """Raises UserError for a file that holds no model; one that does stays loaded for the image that comes next."""
    if isinstance(upscaler, Path):
        read_cached(upscaler)


def upscale(
    image: Image.Image,
    upscaler: Upscaler,
    width: int,
    height: int,
    device: torch.device | str = "cpu",
    on_tile: OnTile | None = None,
) -> Image.Image:
    """Returns an image in exactly this size, as RGB. Raises UserError where a model would make far more pixels of it.

    device: where a model runs. on_tile: called after each tile of a model; an exception in it ends the call.
    """
    image = to_rgb(image)
    if not isinstance(upscaler, Path):
        return image if image.size == (width, height) else image.resize((width, height), upscaler)
    network = read_cached(upscaler).to(device)
    for _ in range(passes_of(network.scale, image.size, (width, height))):
        image = run_network(network, image, device, on_tile)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def passes_of(scale: int, size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Returns how often a network of this scale runs on an image of this size; never where that is to shrink.

    >>> [passes_of(4, (64, 64), size) for size in ((32, 32), (64, 64), (256, 256), (257, 64), (9999, 9999))]
    [0, 1, 1, 2, 3]
    """
    if wanted != size and all(side <= own for own, side in zip(size, wanted)):
        return 0
    passes = 1
    while scale > 1 and passes < PASSES and any(own * scale**passes < side for own, side in zip(size, wanted)):
        passes += 1
    return passes


def count_tiles(upscaler: Upscaler, size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Returns how many tiles a model computes for an image of this size; 0 for a filter."""
    if not isinstance(upscaler, Path):
        return 0
    scale = read_cached(upscaler).scale
    sizes = [[side * scale**i for side in size] for i in range(passes_of(scale, size, wanted))]
    return sum(math.ceil(width / TILE) * math.ceil(height / TILE) for width, height in sizes)


@torch.no_grad()
def run_network(
    network: RRDBNet, image: Image.Image, device: torch.device | str, on_tile: OnTile | None = None
) -> Image.Image:
    """Runs a network on an RGB image in tiles; only the result's bytes are held whole."""
    width, height = image.width * network.scale, image.height * network.scale
    if width * height > MAX_PIXELS:
        raise UserError(
            f"the upscaler would make {width}x{height} pixels of {image.width}x{image.height}: give a smaller image."
        )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    result = np.empty((height, width, 3), np.uint8)
    for rows, columns, part in upscaled_tiles(network, pixels.to(device).float() / 255, TILE):
        tile = (part[0].clamp(0, 1) * 255).round().to(torch.uint8)
        result[rows, columns] = tile.permute(1, 2, 0).cpu().numpy()
        if on_tile is not None:
            on_tile()
    return Image.fromarray(result)
