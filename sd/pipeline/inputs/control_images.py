"""Control images: which one each unit reads, and how it is fitted and preprocessed."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sd.control.preprocessors import PREPROCESSORS, preprocess
from sd.control.units import ControlUnit, check_image_count
from sd.pipeline.mask import HALF, stretch_mask
from sd.utils.errors import UserError
from sd.utils.images import apply_orientation, in_8_bits, resize_and_crop, to_rgb


def images_for(
    units: Sequence[ControlUnit], control_images: Sequence[Image.Image], image: Image.Image | None
) -> list[Image.Image]:
    """Returns an image for each unit. Raises UserError where there is none, or where there are too many or too few."""
    check_image_count(list(units), len(control_images), image is not None)
    given = list(control_images) or ([] if image is None else [image])
    return given * len(units) if len(given) == 1 else given


def mask_of(unit: ControlUnit, image: Image.Image, mask: Image.Image | None) -> Image.Image | None:
    """Returns the mask for a unit's preprocessor: the transparent part of the image, or the mask of inpainting.

    Raises UserError where it needs one and there is none.
    """
    if not PREPROCESSORS[unit.preprocessor].for_masks:
        return None
    upright = in_8_bits(apply_orientation(image))
    alpha = upright.convert("RGBA").getchannel("A")
    if np.asarray(alpha).min() < 255:
        return ImageOps.invert(alpha)
    if mask is not None:
        return stretch_mask(mask, *upright.size)
    raise UserError(
        f"the preprocessor {unit.preprocessor} needs a mask: inpaint, or let the control image be transparent where to "
        "regenerate."
    )


def hint_of(image: Image.Image, mask: Image.Image | None, unit: ControlUnit, width: int, height: int) -> Tensor:
    """Returns what a ControlNet reads, (1, 3, H, W) in [0, 1], and -1 where a mask is white."""
    pixels = preprocess(fit_control_image(image, unit.resize, width, height), unit.preprocessor, unit.a, unit.b)
    hint = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    if mask is None:
        return hint
    masked = np.array(fit_control_image(mask, unit.resize, width, height).convert("L")) >= HALF
    return hint.masked_fill(torch.from_numpy(masked)[None, None], -1.0)


def cut_region(
    image: Image.Image, resize: str, size: tuple[int, int], region: tuple[int, int, int, int]
) -> Image.Image:
    """Returns a region, (left, top, right, bottom), of a control image that is fitted to an image of this size."""
    return fit_control_image(image, resize, *size).crop(region)


def fit_control_image(image: Image.Image, resize: str, width: int, height: int) -> Image.Image:
    """Returns an image in RGB of this size. resize: of `units.RESIZES`; "fill" pads with the border's median color."""
    rgb = to_rgb(image)
    if resize == "crop":
        return resize_and_crop(rgb, width, height)
    if resize == "stretch":
        return rgb.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.array(rgb)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = tuple(int(value) for value in np.median(border, axis=0))
    scale = min(width / rgb.width, height / rgb.height)
    if min(rgb.size) * scale < 1:  # a strip that would have no width: one pixel remains
        sides = (max(1, round(side * scale)) for side in rgb.size)
        rgb = rgb.resize((next(sides), next(sides)), Image.Resampling.LANCZOS)
    return ImageOps.pad(rgb, (width, height), Image.Resampling.LANCZOS, color=color)
