"""The size of an image before the work begins, and which inputs go together."""

from PIL import Image

from sd.checkpoints.discovery import Models
from sd.control.units import check_image_count, parse_units
from sd.pipeline.inputs.control import control_notes, find_models
from sd.pipeline.inputs.options import needless
from sd.pipeline.inputs.regions import check_regions
from sd.pipeline.inputs.second_pass import hires_upscaler
from sd.pipeline.options import Option
from sd.pipeline.sampler_names import CFG_PLUS_PLUS
from sd.pipeline.sampling.conditioning import divide_prompt
from sd.pipeline.settings import OPTIONS, GenerationSettings
from sd.prompts.regions import has_regions
from sd.upscalers.upscale import check_upscaler
from sd.utils.errors import UserError
from sd.utils.images import apply_orientation, cut_size

SEEDS = ("seed", "variation_seed")
OF_GUIDANCE = ("negative_prompt", "guidance_rescale", "guidance_start", "guidance_end", "ngms")


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


def check_named_models(
    settings: GenerationSettings,
    models: Models,
    control_count: int,
    mask_count: int,
    has_image: bool,
    by_path: bool = True,
) -> None:
    """Raises UserError, before a checkpoint is needed, for what does not fit the numbers of images, or is not there.

    control_count, mask_count: of the control images and the region masks. has_image: whether there is an init image.
    by_path: whether models may be named by their paths, which is never so for names that come over a network; an
    upscaler is not opened then.
    """
    check_regions(settings, mask_count)
    divide_prompt(settings)  # for its error
    upscaler = hires_upscaler(settings, models, by_path)
    units = parse_units(settings.control)
    check_image_count(units, control_count, has_image)
    find_models(units, models, by_path)
    if by_path:
        check_upscaler(upscaler)


def settings_notes(settings: GenerationSettings) -> list[str]:
    """Returns sentences on options that change nothing, or less, beside others."""
    return [*control_notes(settings), *needless_parts(settings), *guidance_notes(settings)]


def needless_parts(settings: GenerationSettings) -> list[str]:
    """Returns a sentence for each option that is off while options that are a part of it have been changed.

    Which are parts of which stands in the table. Seeds say nothing: one that is not given is drawn.
    """
    defaults = {row.name: row.default for row in OPTIONS}
    parts: dict[str, list[str]] = {}
    for row in OPTIONS:
        whole = row.infotext.part_of if row.infotext else ""
        is_off = whole and row.name not in SEEDS and getattr(settings, whole) == defaults[whole]
        if is_off and is_changed(settings, row):
            parts.setdefault(whole, []).append(row.name)
    words = {"hires_scale": "a hires scale over 1", "tile_size": "a tile size"}
    conditions = {whole: f"Without {words.get(whole) or whole.replace('_', ' ')}" for whole in parts}
    return [note for whole, changed in parts.items() for note in needless(conditions[whole], changed)]


def guidance_notes(settings: GenerationSettings) -> list[str]:
    """Returns a sentence on the options of guidance without guidance, or on the step cache where it is skipped."""
    changed = [row.name for row in OPTIONS if row.name in OF_GUIDANCE and is_changed(settings, row)]
    is_guided = settings.guidance_scale != 1 or settings.sampler in CFG_PLUS_PLUS
    if not is_guided:
        return needless("At a guidance scale of 1, which is no guidance", changed)
    has_cache = settings.step_cache != 1 and not (settings.control or settings.tile_size)
    is_composed = has_regions(settings.prompt) or "AND" in settings.prompt.split()  # all parts are computed anyway
    if has_cache and settings.ngms and not is_composed:
        return [
            f"Below sigma {settings.ngms:g}, where every second step has no guidance (ngms), the step cache saves "
            "nothing: a step with guidance cannot use what one without it has computed."
        ]
    return []


def is_changed(settings: GenerationSettings, row: Option) -> bool:
    return bool(getattr(settings, row.name) != row.default)


def width_and_height(settings: GenerationSettings) -> tuple[int, int]:
    """Returns the (width, height) of settings that have both."""
    assert settings.width is not None
    assert settings.height is not None
    return settings.width, settings.height


def resolve_size(settings: GenerationSettings, image: Image.Image | None, usual: int) -> GenerationSettings:
    """Returns the settings with a size: as given, else the image's, cut to multiples of 8, else a square.

    usual: the side of that square in pixels, the model's own.
    """
    width, height = (usual, usual) if image is None else cut_size(*apply_orientation(image).size)
    return settings.replace(
        width=width if settings.width is None else settings.width,
        height=height if settings.height is None else settings.height,
    )
