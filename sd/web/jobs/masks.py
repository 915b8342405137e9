"""AUTOMATIC1111's mask options: processing of an image and its mask before and after generating."""

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter, ImageOps

from sd.pipeline.mask import blur_mask, check_painted, read_mask

Region = tuple[int, int, int, int]  # left, top, right, bottom
FILL_RADII = (256, 64, 16, 4, 2, 1)  # pixels; finer ones are pasted over coarser ones


@dataclass(frozen=True)
class MaskOptions:
    """The options of a mask.

    invert: black is generated instead of white. blur: pixels. fill: the masked part is first filled with the colors
    around it. only_masked: the region around the mask is generated at the full size and pasted back; padding: pixels
    around it.
    """

    invert: bool = False
    blur: int = 0
    fill: bool = False
    only_masked: bool = False
    padding: int = 32


def prepare_mask(mask: Image.Image, options: MaskOptions) -> Image.Image:
    """Return a mask of mode L, white where to generate (see `sd.pipeline.mask`). Raises UserError where it is empty."""
    mask = read_mask(mask)
    if options.invert:
        mask = ImageOps.invert(mask)
    check_painted(mask)
    return blur_mask(mask, options.blur) if options.blur else mask


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Fill the masked part with the colors around it. image: RGB. mask: L, of the same size, white where to fill."""
    kept = ImageOps.invert(mask)
    known = image.convert("RGBA")
    known.putalpha(kept)
    known = known.convert("RGBa")  # premultiplied, so that blurring takes no color from under the mask
    filled = image.copy()
    for radius in FILL_RADII:
        spread = known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        filled.paste(spread.convert("RGB"), mask=strengthen(spread.getchannel("A")))
    return Image.composite(filled, image, mask)


def strengthen(alpha: Image.Image) -> Image.Image:
    """Scale alpha tenfold: a color of at least a tenth is opaque."""
    return alpha.point([min(255, level * 10) for level in range(256)])


def region_of(mask: Image.Image, padding: int, width: int, height: int) -> Region:
    """Return (left, top, right, bottom) around the mask's white, in pixels.

    The box has `padding` pixels around the white and is widened to the aspect ratio of width x height as far as the
    image reaches. mask: L, blurred or not.
    """
    left, top, right, bottom = mask.getbbox()
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, mask.width), min(bottom + padding, mask.height)
    wide, high = right - left, bottom - top
    wide, high = max(wide, round(high * width / height)), max(high, round(wide * height / width))
    wide, high = min(wide, mask.width), min(high, mask.height)
    left = min(max((left + right - wide) // 2, 0), mask.width - wide)
    top = min(max((top + bottom - high) // 2, 0), mask.height - high)
    return left, top, left + wide, top + high


def paste_region(image: Image.Image, generated: Image.Image, mask: Image.Image, region: Region) -> Image.Image:
    """Paste `generated`, made from the region alone, into the image where the mask is white."""
    left, top, right, bottom = region
    whole = image.copy()
    whole.paste(generated.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    box = Image.new("L", image.size)
    box.paste(255, region)
    return Image.composite(whole, image, ImageChops.darker(mask, box))
