"""Masks: which part of an image is regenerated. One rule for whatever people use as one.

Where a mask has an alpha channel that varies, the mask is its opacity: strokes of any color on nothing. Otherwise it is
its brightness: white is regenerated, black is kept. One whose largest value is 1 means 1 as white.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from sd.utils.errors import UserError
from sd.utils.images import in_8_bits, to_rgb, upright

OUTSIDE = "all that the mask paints is cut off, as the image has another shape: choose a width and height of its shape."
EMPTY = "the mask is empty, as nothing in it is at least half white: paint white where the image is to be regenerated."
HALF = 128  # of 255: what is at least so white counts as painted


def read_mask(mask: Image.Image) -> Image.Image:
    """Any PIL image as an upright mask, L, of its own size."""
    mask = upright(mask)
    if mask.mode.startswith("I") and np.asarray(mask).max() == 1:  # would be nearly nothing of 65535
        return Image.fromarray(np.asarray(mask).clip(0, 1).astype(np.uint8) * 255)
    mask = in_8_bits(mask)
    if mask.has_transparency_data:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] != alpha.getextrema()[1]:
            return ones_as_white(alpha)
    gray = mask if mask.mode == "L" else to_rgb(mask, background="black").convert("L")
    return ones_as_white(gray)


def ones_as_white(mask: Image.Image) -> Image.Image:
    return mask.point([0] + [255] * 255) if mask.getextrema()[1] == 1 else mask


def check_painted(mask: Image.Image) -> None:
    """Raises UserError where nothing of a mask, L, is at least half white."""
    if mask.getextrema()[1] < HALF:
        raise UserError(EMPTY)


def soften(mask: Image.Image, radius: float) -> Image.Image:
    """A mask, L, with its edge blurred by a Gaussian. What was painted stays at least half, however thin it is."""
    painted = mask.point([0] * HALF + [HALF] * HALF)
    return Image.fromarray(np.maximum(np.asarray(mask.filter(ImageFilter.GaussianBlur(radius))), np.asarray(painted)))


def mask_to_tensor(
    mask: Image.Image, width: int, height: int, blur: float = 0, over: tuple[int, int] | None = None
) -> Tensor:
    """A mask to (1, 1, H, W), fp32 in [0, 1]: 1 where it is white. Fitted to the size as `fit` fits the image.

    blur: the radius in pixels of a Gaussian that softens its edge, for laying the new image over the old.
    over: the size of the image that the mask is stretched over first. What is painted stays at least half where it
    becomes smaller, so that no stroke is too thin to count.
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


def stretch(mask: Image.Image, width: int, height: int) -> Image.Image:
    """Any mask as L of this size, whatever its shape. No stroke becomes too thin to count."""
    tensor = mask_to_tensor(mask, width, height, over=(width, height))
    return Image.fromarray((tensor[0, 0] * 255).round().to(torch.uint8).numpy())


def to_unit(mask: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(mask))[None, None].float() / 255


def covering_box(size: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """The part around the middle of an image of `size` that has the shape of width x height: what `fit` keeps."""
    scale = min(size[0] / width, size[1] / height)
    across, down = width * scale, height * scale
    left, top = (size[0] - across) / 2, (size[1] - down) / 2
    return left, top, left + across, top + down


def latent_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """(1, 1, H, W) in [0, 1] to (1, 1, H / factor, W / factor) of 0 and 1.

    A cell is 1 if any of its pixels is at least half white, so that no painted stroke is too thin to count.
    """
    return F.max_pool2d((mask >= 0.5).float(), factor)


def mask_notes(mask: Image.Image, image_size: tuple[int, int], cells: Tensor) -> list[str]:
    """What deserves a word. cells: `latent_mask`. Raises UserError where there is nothing to regenerate."""
    if not cells.any():
        raise UserError(EMPTY if read_mask(mask).getextrema()[1] < HALF else OUTSIDE)
    notes = []
    width, height = upright(mask).size
    if abs(math.log(width / height * image_size[1] / image_size[0])) > 0.05:
        notes.append(
            f"The mask is {width}x{height} and is stretched over the image, which is {image_size[0]}x{image_size[1]}."
        )
    if cells.all():
        notes.append("The mask is white everywhere, so that the whole image is regenerated.")
    return notes
