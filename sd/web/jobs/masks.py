"""What AUTOMATIC1111's webui does to a picture and its mask before and after it is drawn."""

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter, ImageOps

from sd.pipeline.mask import check_painted, read_mask, soften

FILL_RADII = (256, 64, 16, 4, 2, 1)  # pixels; each finer one is laid over the coarser


@dataclass(frozen=True)
class MaskOptions:
    """invert: black is to be drawn. blur: pixels. fill: what is under the mask is painted over with the colours around
    it first. only_masked: the part around the mask is drawn at the full size and put back; padding: pixels around it.
    """

    invert: bool = False
    blur: int = 0
    fill: bool = False
    only_masked: bool = False
    padding: int = 32


def prepare_mask(mask: Image.Image, options: MaskOptions) -> Image.Image:
    """L, white where to draw, by the rule of `sd.pipeline.mask`. Raises UserError where nothing is."""
    mask = read_mask(mask)
    if options.invert:
        mask = ImageOps.invert(mask)
    check_painted(mask)
    return soften(mask, options.blur) if options.blur else mask


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The colours around the mask, spread into it. image: RGB. mask: L, of its size, white where to fill."""
    kept = ImageOps.invert(mask)
    known = image.convert("RGBA")
    known.putalpha(kept)
    known = known.convert("RGBa")  # premultiplied, so that blurring takes no colour from under the mask
    filled = image.copy()
    for radius in FILL_RADII:
        spread = known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        filled.paste(spread.convert("RGB"), mask=strengthen(spread.getchannel("A")))
    return Image.composite(filled, image, mask)


def strengthen(alpha: Image.Image) -> Image.Image:
    """Wherever there is a tenth of a colour, the colour is taken as it is; less fades."""
    return alpha.point([min(255, level * 10) for level in range(256)])


def region_of(mask: Image.Image, padding: int, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the mask's white with `padding` pixels around it, widened to the shape of
    width x height as far as the picture goes. mask: L, blurred or not.
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


def put_back(image: Image.Image, drawn: Image.Image, mask: Image.Image, region: tuple[int, int, int, int]):
    """`drawn`, made from the region of the picture alone, in its place, where the mask is white."""
    left, top, right, bottom = region
    whole = image.copy()
    whole.paste(drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    box = Image.new("L", image.size)
    box.paste(255, region)
    return Image.composite(whole, image, ImageChops.darker(mask, box))
