"""The size of an image before the work begins, and which inputs go together."""

from PIL import Image

from sd.pipeline.inputs.control import control_notes
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import apply_orientation


def check_inputs(settings: GenerationSettings, image: object | None, mask: object | None) -> None:
    """Raises UserError for a mask or outpainting without an image, and for a second pass after img2img.

    image, mask: in any form, None for none.
    """
    if settings.outpaint and image is None:
        raise UserError("outpainting extends an image, and there is none: give the image, or leave out outpaint.")
    if mask is not None and image is None:
        raise UserError("a mask was given without an image: give the image that it belongs to as well.")
    if image is not None and settings.hires_scale > 1:
        raise UserError("a second pass (hires_scale) is for txt2img: leave out hires_scale or the image.")


def settings_notes(settings: GenerationSettings) -> list[str]:
    """Returns sentences on options that change nothing without another one, and on those of ControlNets."""
    hires = [row for row in OPTIONS if row.name.startswith("hires_") and row.name != "hires_scale"]
    changed = [row.name.replace("_", " ") for row in hires if getattr(settings, row.name) != row.default]
    needless = f"Without a hires scale over 1, {', '.join(changed)} changes nothing."
    return control_notes(settings) + ([needless] if changed and settings.hires_scale == 1 else [])


def width_and_height(settings: GenerationSettings) -> tuple[int, int]:
    """Returns the (width, height) of settings that have both."""
    assert settings.width is not None
    assert settings.height is not None
    return settings.width, settings.height


def resolve_size(settings: GenerationSettings, image: Image.Image | None, usual: int) -> GenerationSettings:
    """Returns the settings with a size: as given, else the image's, cut to multiples of 8, else a square.

    usual: the side of that square in pixels, the model's own.
    """
    width, height = [usual] * 2 if image is None else [side // 8 * 8 for side in apply_orientation(image).size]
    return settings.replace(
        width=width if settings.width is None else settings.width,
        height=height if settings.height is None else settings.height,
    )
