"""Outpainting: an image is extended on chosen sides, and what is new is inpainted.

The new part starts from the colors at the image's edge. The mask reaches OVERLAP pixels into the image and fades there
to black, so that the old and the new part join without a seam.
"""

import numpy as np
from PIL import Image, ImageChops, ImageOps

from sd.pipeline.inputs.masked import fill_masked
from sd.pipeline.mask import mask_to_tensor
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import apply_orientation, resize_and_crop, to_rgb

OVERLAP = 8  # pixels: one position of the latent
CHANGED = ("width", "height", "outpaint", "invert_mask")  # fields of the settings that `extend_image` changes

Margins = tuple[int, int, int, int]  # pixels at the left, the right, above and below


def extend_image(
    settings: GenerationSettings, image: Image.Image | None, mask: Image.Image | None
) -> tuple[GenerationSettings, Image.Image | None, Image.Image | None]:
    """Returns the settings, the image and the mask of the inpainting that extends an image; as given without outpaint.

    settings: with their size, to which the image is fitted before it is extended; with only_masked the image keeps its
    own size, and the size is that of the part that is generated. mask: also regenerated, None for nothing else.
    Raises UserError for invert_mask without a mask.
    """
    if not settings.outpaint or image is None:
        return settings, image, mask
    if mask is None and settings.invert_mask:
        raise UserError("invert mask inverts a mask, and there is none beside outpainting: leave it out.")
    margins = settings.margins
    over = apply_orientation(image).size
    assert settings.width is not None
    assert settings.height is not None
    size = over if settings.only_masked else (settings.width, settings.height)
    old = to_rgb(image) if settings.only_masked else resize_and_crop(image, *size)
    new = extension_mask(size, margins)
    if mask is not None:
        fitted = Image.fromarray((mask_to_tensor(mask, *size, over=over)[0, 0] * 255).round().byte().numpy())
        painted = ImageOps.invert(fitted) if settings.invert_mask else fitted
        new = ImageChops.lighter(new, add_margins(painted, margins))
    width, height = (settings.width, settings.height) if settings.only_masked else settings.outpainted_size
    changes = {"width": width, "height": height, "outpaint": 0, "invert_mask": False}
    return settings.replace(**changes), extend_colors(old, margins), new


def as_asked(settings: GenerationSettings, asked: GenerationSettings) -> GenerationSettings:
    """Returns the settings with the fields that `extend_image` has changed as they were asked for."""
    return settings.replace(**{name: getattr(asked, name) for name in CHANGED})


def add_margins(image: Image.Image, margins: Margins, edge: bool = False) -> Image.Image:
    """Returns an image, L or RGB, with margins: black ones, or of the colors at its edge."""
    left, right, up, down = margins
    widths = [(up, down), (left, right), (0, 0)]
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, widths[: pixels.ndim], mode="edge" if edge else "constant"))


def extension_mask(size: tuple[int, int], margins: Margins) -> Image.Image:
    """Returns the mask, L, of an image of this size with margins: white in them, fading to black inside the image."""
    width, height = size
    left, right, up, down = margins
    far = 1e9  # a side that is not extended has no edge to fade from
    x, y = np.arange(-left, width + right, dtype=float), np.arange(-up, height + down, dtype=float)
    across = np.minimum(np.where(left, x, far), np.where(right, width - 1 - x, far))
    along = np.minimum(np.where(up, y, far), np.where(down, height - 1 - y, far))
    inside = np.minimum(across[None, :], along[:, None])  # pixels to the nearest edge that is extended; below 0 outside
    return Image.fromarray((np.clip(1 - (inside + 0.5) / OVERLAP, 0, 1) * 255).round().astype(np.uint8))


def extend_colors(image: Image.Image, margins: Margins) -> Image.Image:
    """Returns an RGB image with margins of the colors at its edge, blurred the more the farther they are from it."""
    left, _, up, _ = margins
    whole = add_margins(image, margins, edge=True)
    outside = Image.new("L", whole.size, 255)
    outside.paste(0, (left, up, left + image.width, up + image.height))
    return fill_masked(whole, outside)
