"""Options of masks: inverted, blurred, filled, or their surroundings alone, as AUTOMATIC1111's webui has them."""

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter, ImageOps

from sd.pipeline.inputs.options import OF_MASKS, needless
from sd.pipeline.mask import blur_mask, check_painted, read_mask, stretch_mask
from sd.pipeline.settings import GenerationSettings
from sd.utils.images import apply_orientation, to_rgb

Region = tuple[int, int, int, int]  # left, top, right, bottom
FILL_RADII = (256, 64, 16, 4, 2, 1)  # pixels; finer ones are pasted over coarser ones
DEFAULTS = {name: GenerationSettings.__dataclass_fields__[name].default for name in OF_MASKS}


@dataclass
class MaskedInputs:
    """An image and a mask as the options of masks make them.

    whole, whole_mask, region: set where only a region of the whole image is generated. notes: sentences.
    """

    image: Image.Image | None
    mask: Image.Image | None
    whole: Image.Image | None = None
    whole_mask: Image.Image | None = None
    region: Region | None = None
    notes: tuple[str, ...] = ()

    def finish(self, generated: list[Image.Image]) -> list[Image.Image]:
        """Return the generated images, pasted into the whole image where only a region was generated."""
        if self.region is None or self.whole is None or self.whole_mask is None:
            return generated
        return [paste_region(self.whole, one, self.whole_mask, self.region) for one in generated]


def prepare_masked(settings: GenerationSettings, image: Image.Image | None, mask: Image.Image | None) -> MaskedInputs:
    """Return what the pipeline generates from; the very image and mask where no option of masks is on.

    settings: with their size. Raises UserError for an empty mask.
    """
    changed = [name for name, default in DEFAULTS.items() if getattr(settings, name) != default]
    if image is None or mask is None:
        if not settings.only_masked and "only_masked_padding" in changed:
            changed.remove("only_masked_padding")  # a part of it: see `sizes.needless_parts`
        return MaskedInputs(image, mask, notes=tuple(needless("Without a mask", changed)))
    if not set(changed) - {"soft_inpainting", "only_masked_padding"}:
        return MaskedInputs(image, mask)
    image = to_rgb(apply_orientation(image))
    mask = prepare_mask(stretch_mask(mask, *image.size), settings.invert_mask, settings.mask_blur)
    source = fill_masked(image, mask) if settings.masked_content == "blurred" else image
    notes: tuple[str, ...] = ()
    if settings.masked_content != "original" and settings.strength == 1:
        notes = ("At strength 1 the masked part starts from pure noise, so the masked content does not matter.",)
    if not settings.only_masked:
        return MaskedInputs(source, mask, notes=notes)
    assert settings.width is not None
    assert settings.height is not None
    region = region_of(mask, settings.only_masked_padding, settings.width, settings.height)
    return MaskedInputs(source.crop(region), mask.crop(region), image, mask, region, notes)


def prepare_mask(mask: Image.Image, invert: bool = False, blur: int = 0) -> Image.Image:
    """Return a mask of mode L, white where to generate (see `sd.pipeline.mask`). Raises UserError where it is empty."""
    mask = read_mask(mask)
    if invert:
        mask = ImageOps.invert(mask)
    check_painted(mask)
    return blur_mask(mask, blur) if blur else mask


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
