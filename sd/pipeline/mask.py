"""Masks: which part of an image is regenerated.

If a mask has an alpha channel that varies, its opacity counts: strokes of any color on a transparent ground. Otherwise
its brightness counts: white is regenerated, black is kept. If its largest value is 1, then 1 is white.
"""

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from sd.utils.errors import UserError
from sd.utils.images import apply_orientation, in_8_bits, to_rgb

OUTSIDE = "the whole masked part is cut off, as the image has another shape: choose a width and height of its shape."
EMPTY = "the mask is empty, as nothing in it is at least half white: paint white where the image is to be regenerated."
HALF = 128  # of 255: a pixel at least this white is painted


def read_mask(mask: Image.Image) -> Image.Image:
    """Returns any PIL image as an upright mask, L, of its own size."""
    mask = apply_orientation(mask)
    if mask.mode.startswith("I") and np.asarray(mask).max() == 1:  # 1 of 65535 would be black
        return Image.fromarray(np.asarray(mask).clip(0, 1).astype(np.uint8) * 255)
    mask = in_8_bits(mask)
    if mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] != alpha.getextrema()[1]:
            return ones_as_white(alpha)
    gray = mask if mask.mode == "L" else to_rgb(mask, background="black").convert("L")
    return ones_as_white(gray)


def ones_as_white(mask: Image.Image) -> Image.Image:
    return mask.point([0] + [255] * 255) if brightest(mask) == 1 else mask


def brightest(mask: Image.Image) -> float:
    """Returns the highest value in a mask, L."""
    return cast(float, mask.getextrema()[1])  # an image with one band has one pair


def check_painted(mask: Image.Image) -> None:
    """Raises UserError where nothing of a mask, L, is at least half white."""
    if brightest(mask) < HALF:
        raise UserError(EMPTY)


def blur_mask(mask: Image.Image, radius: float) -> Image.Image:
    """Returns a mask, L, with a Gaussian blur on its edge. A painted pixel stays at least half white."""
    painted = mask.point([0] * HALF + [HALF] * HALF)
    return Image.fromarray(np.maximum(np.asarray(mask.filter(ImageFilter.GaussianBlur(radius))), np.asarray(painted)))


def mask_to_tensor(
    mask: Image.Image, width: int, height: int, blur: float = 0, over: tuple[int, int] | None = None
) -> Tensor:
    """Returns a mask as (1, 1, H, W), fp32 in [0, 1], 1 where it is white, fitted to the size as `fit` fits the image.

    blur: the radius in pixels of a Gaussian that softens its edge, for pasting the new image over the old one.
    over: the size of the image that the mask is stretched over first. A painted stroke stays at least half
    white where the mask shrinks, however thin it is.
    """
    gray = read_mask(mask)
    left, top, right, bottom = covering_box(over or gray.size, width, height)
    across, down = gray.width / (over or gray.size)[0], gray.height / (over or gray.size)[1]
    box = (left * across, top * down, right * across, bottom * down)
    fitted = gray if box == (0, 0, width, height) else gray.resize((width, height), Image.Resampling.BILINEAR, box)
    if blur:
        fitted = fitted.filter(ImageFilter.GaussianBlur(blur))
    soft = to_unit(fitted)
    if box[2] - box[0] <= width and box[3] - box[1] <= height:
        return soft
    outer = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    painted = (to_unit(gray.crop(outer)) >= 0.5).float()
    return torch.maximum(soft, 0.5 * F.adaptive_max_pool2d(painted, (height, width)))


def stretch_mask(mask: Image.Image, width: int, height: int) -> Image.Image:
    """Returns any mask as L, stretched to this size. Thin strokes are kept."""
    tensor = mask_to_tensor(mask, width, height, over=(width, height))
    return Image.fromarray((tensor[0, 0] * 255).round().to(torch.uint8).numpy())


def to_unit(mask: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(mask))[None, None].float() / 255


def covering_box(size: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """Returns the central box of an image of `size` that has the shape of width x height, which `fit` keeps."""
    scale = min(size[0] / width, size[1] / height)
    across, down = width * scale, height * scale
    left, top = (size[0] - across) / 2, (size[1] - down) / 2
    return left, top, left + across, top + down


def latent_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """Returns a mask (1, 1, H, W) in [0, 1] as (1, 1, H / factor, W / factor) of 0 and 1.

    A cell is 1 if any of its pixels is at least half white, so that thin strokes are kept.
    """
    return F.max_pool2d((mask >= 0.5).float(), factor)


def stretch_notes(mask: Image.Image | None, image: Image.Image | None) -> list[str]:
    """Returns a sentence on a mask, as it is given, of another shape than its image."""
    if mask is None or image is None:
        return []
    (width, height), (wide, high) = apply_orientation(mask).size, apply_orientation(image).size
    if abs(math.log(width / height * high / wide)) <= 0.05:
        return []
    return [f"The mask is {width}x{height} and is stretched over the image, which is {wide}x{high}."]


def mask_notes(mask: Image.Image, cells: Tensor) -> list[str]:
    """Returns notes on a mask. cells: its `latent_mask`. Raises UserError where there is nothing to regenerate."""
    if not cells.any():
        raise UserError(EMPTY if brightest(read_mask(mask)) < HALF else OUTSIDE)
    return ["The mask is white everywhere, so that the whole image is regenerated."] * bool(cells.all())
