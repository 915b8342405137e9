"""Images in Python code: PIL images, paths, open files, numpy arrays and torch tensors."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sd.utils.errors import UserError
from sd.utils.images import open_image, to_8_bits

ImageLike = Image.Image | str | Path | np.ndarray | torch.Tensor
ACCEPTED = "a PIL image, a path, a numpy array or a torch tensor"


def as_image(value: Any, name: str = "image") -> Image.Image:
    """Returns any of these as a PIL image. name: its name in messages.

    An array has the shape (H, W), (H, W, C) or (1, H, W, C), where C is 1, 3 or 4; the channels of a tensor may come
    first. Integers range from 0 to 255 (65535 in 16 bits), other numbers from 0 to 1, or from -1 to 1 if some are
    negative. A list may hold one image. Raises UserError for everything else, and for an image without pixels.
    """
    if isinstance(value, Image.Image):
        if 0 in value.size:
            raise UserError(f"the {name} is {value.width}x{value.height}: give an image that has pixels.")
        return value
    if isinstance(value, (str, Path)):
        return open_image(value)
    if isinstance(value, (bytes, bytearray)):
        return open_image(io.BytesIO(value))
    if hasattr(value, "read"):
        return open_image(value)
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise UserError(f"the {name} is a list of {len(value)}: give one image per call.")
        return as_image(value[0], name)
    channels_first = isinstance(value, torch.Tensor)
    if channels_first:
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray):
        raise UserError(f"the {name} is of type {type(value).__name__}: give {ACCEPTED}.")
    return from_array(value, name, channels_first)


def as_images(image: ImageLike | None, mask: ImageLike | None) -> tuple[Image.Image | None, Image.Image | None]:
    """Returns an image and a mask of any type as PIL images."""
    return None if image is None else as_image(image, "image"), None if mask is None else as_image(mask, "mask")


def as_image_list(value: Any, name: str) -> list[Image.Image]:
    """Returns one image of any type, or each of a list, as PIL images; an empty list for None."""
    values = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
    return [as_image(one, name) for one in values]


def from_array(array: np.ndarray, name: str, channels_first: bool) -> Image.Image:
    """Returns the image in an array. Raises UserError where its shape or type is not that of one image."""
    pixels = rows_first(array, name, channels_first)  # (H, W) or (H, W, C)
    if pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise UserError(f"the {name} is an array of shape {array.shape} and type {array.dtype}: give {ACCEPTED}.")
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise UserError(f"the {name} holds values that are not finite numbers.")
        pixels = (pixels + 1) / 2 if -1 <= pixels.min() < 0 and pixels.max() <= 1 else pixels
    return Image.fromarray(to_8_bits(pixels))


def rows_first(array: np.ndarray, name: str, channels_first: bool) -> np.ndarray:
    """Returns the pixels as (H, W) or (H, W, C), C being 3 or 4. If both ends could be C, a tensor's is the first."""
    pixels = array
    while pixels.ndim > 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 3:
        first, last = pixels.shape[0] in (1, 3, 4), pixels.shape[-1] in (1, 3, 4)
        if first and (channels_first or not last):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)):
        return np.ascontiguousarray(pixels)
    raise UserError(f"the {name} has the shape {array.shape}: give one image, (H, W, 3) or (3, H, W).")
