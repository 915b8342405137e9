"""The webui's ControlNet extension: its units in `alwayson_scripts`, and its routes /controlnet/...

A unit is a dict. Its image is base64, or {"image": ..., "mask": ...}; without one, img2img's own image is used.
"""

import asyncio
import base64
import io
from typing import Any

from fastapi import APIRouter
from PIL import Image, ImageOps
from pydantic import AliasChoices, Field

from sd.checkpoints.discovery import split_hash
from sd.control.preprocessors import PREPROCESSORS, Preprocessor, Threshold, find_preprocessor, preprocess
from sd.control.units import MAX_UNITS, MODES, NO_MODEL, RESIZES, ControlUnit, format_units
from sd.pipeline.mask import brightest, read_mask, stretch_mask
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import first_frame_notes, to_rgb
from sd.web.a1111.body import WebuiBody, without_nulls
from sd.web.a1111.control_types import describe_control_types
from sd.web.a1111.fields import is_off_unit, is_value_off
from sd.web.jobs.limits import MAX_IMAGES, MAX_PIXELS, check_image, decode_image
from sd.web.jobs.model_index import Models
from sd.web.jobs.uploads import decodes_uploads
from sd.web.problems import PROBLEMS

VERSION = 3  # of the extension's API
RESIZE_ORDER = ("stretch", "crop", "fill")  # as the extension numbers them
OLD_RESIZES = {"scale to fit (inner fit)": "crop", "envelope (outer fit)": "fill"}
# Fields of a unit that change nothing here, or only the webui's files and memory.
NO_EFFECT = frozenset(
    """
    enabled enable is_enabled low_vram lowvram pixel_perfect save_detected_map is_ui input_mode batch_images output_dir
    loopback use_preview_as_input generated_image inpaint_crop_input_image animatediff_batch batch_modifiers
    batch_image_files batch_mask_dir batch_image_dir batch_keyframe_idx union_control_type processor_res
    """.split()
)
HONORED = frozenset(
    """
    image input_image mask mask_image module model weight resize_mode threshold_a threshold_b guidance guidance_start
    guidance_end control_mode guess_mode
    """.split()
)
AT_DEFAULT = {"hr_option": ("Both", "HiResFixOption.BOTH", 0)}  # with a second pass, beside False and empty ones


def add_units(request: Any, body: Any, init_image: bytes | None) -> list[str]:
    """Adds the units of a body's `alwayson_scripts` to a `GenerateRequest`; returns the fields that are ignored.

    init_image: the image of img2img. Raises UserError for what cannot be used.
    """
    units = [fields_of(unit) for unit in units_of(body) if not is_off_unit(unit)]
    if not units:
        return []
    images = [image_of(unit, init_image) for unit in units]
    request.settings = request.settings.replace(control=format_units([unit_from_fields(unit) for unit in units]))
    if any(images):
        if init_image is None and not all(images):
            raise UserError("a ControlNet unit has no image: give one to every unit that is enabled.")
        request.control_images = [image or init_image for image in images]
    elif init_image is None:
        raise UserError("a ControlNet unit has no image: give one, or set enabled to false.")
    return sorted({f"controlnet.{name[:100]}" for unit in units for name in ignored_fields(unit, request.settings)})


def units_of(body: Any) -> list:
    """Returns the extension's arguments; none where its first one turns it off.

    Older ones begin with switches, of which True changes nothing.
    """
    for name, script in body.alwayson_scripts.items():
        if name.lower() == "controlnet":
            args = script.get("args") if isinstance(script, dict) else script
            args = [] if args is None else args if isinstance(args, list) else [args]
            is_off = bool(args) and is_value_off(args[0]) and args[0] is not None
            return [] if is_off else [unit for unit in args if not isinstance(unit, bool)]
    return []


def fields_of(unit: Any) -> dict:
    """Returns a unit without the fields that are null, which are left out. Raises UserError for what is no unit."""
    if not isinstance(unit, dict):
        raise UserError(f"a ControlNet unit is {str(unit)[:50]!r}: send its fields as an object.")
    return without_nulls(unit)


def unit_from_fields(unit: dict) -> ControlUnit:
    """Returns a unit from the extension's fields. Raises UserError for a value that cannot be used."""
    module, one = module_of(unit), preprocessor_of(unit)
    model = NO_MODEL if one.model_free else model_of(unit)
    if not model:
        raise UserError("a ControlNet unit has no model: name one of /controlnet/model_list, or set enabled to false.")
    mode = choice(unit.get("control_mode", 0), tuple(MODES), MODES, "control_mode")
    resize = unit.get("resize_mode", 1)
    resize = OLD_RESIZES.get(str(resize).lower(), resize)
    return ControlUnit(
        model,
        weight=number(unit, "weight", 1.0),
        preprocessor=module,
        a=within(one.a, unit, "threshold_a"),
        b=within(one.b, unit, "threshold_b"),
        start=number(unit, "guidance_start", 0.0),
        end=number(unit, "guidance_end", number(unit, "guidance", 1.0)),
        mode="control" if unit.get("guess_mode") is True else mode,
        resize=choice(resize, RESIZE_ORDER, RESIZES, "resize_mode"),
    )


def model_of(unit: dict) -> str:
    """Returns the name of a unit's ControlNet, "" for none."""
    name = split_hash(str(unit.get("model") or ""))[0]
    return "" if name.lower() == NO_MODEL else name


def number(unit: dict, name: str, default: float) -> float:
    """Returns the number in a field, which may be a text, as the extension reads it too."""
    value = unit.get(name, default)
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"{name} of a ControlNet unit is {str(value)[:50]!r}: use a number.")


def within(bounds: Threshold | None, unit: dict, name: str) -> float | None:
    """Returns a threshold; None, the default, for one out of bounds, as the extension does."""
    if bounds is None:
        return None
    value = number(unit, name, bounds.default)
    return value if bounds.low <= value <= bounds.high and value != bounds.default else None


def choice(value: Any, order: tuple[str, ...], labels: dict[str, str], name: str) -> str:
    """Returns the key of a value that is a place in `order`, a label or a key itself."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(order):
        return order[value]
    text = str(value).lower()
    for key, label in labels.items():
        if text in (key, label.lower()):
            return key
    raise UserError(f"unknown {name} {str(value)[:50]!r}; choose from {', '.join(labels.values())}.")


def image_of(unit: dict, init_image: bytes | None) -> bytes | None:
    """Returns the file of a unit's image, with its mask as transparency where its preprocessor is for masks.

    init_image: what the mask is for where the unit has no image. None where it has neither an image nor a mask.
    """
    image, mask = files_of(unit)
    for name, text in (("image", image), ("mask", mask)):
        if not isinstance(text, str):
            raise UserError(f"the {name} of a ControlNet unit is no base64: send it as text.")
    data, hole = (decode_image(text) if text else None for text in (image, mask))
    if hole is None or (whole := data or init_image) is None or not preprocessor_of(unit).for_masks:
        return data
    return with_mask(whole, hole)


def files_of(unit: dict) -> tuple[Any, Any]:
    """Returns the image and the mask in a unit's fields, each "" where there is none."""
    image, mask = unit.get("image") or unit.get("input_image"), unit.get("mask") or unit.get("mask_image")
    if isinstance(image, dict):
        image, mask = image.get("image"), mask or image.get("mask")
    return image or "", mask or ""


def preprocessor_of(unit: dict) -> Preprocessor:
    return PREPROCESSORS[module_of(unit)]


def module_of(unit: dict) -> str:
    """Returns the name of a unit's preprocessor. Raises UserError for an unknown one."""
    return find_preprocessor(str(unit.get("module") or "none"))


@decodes_uploads
def with_mask(data: bytes, mask: bytes) -> bytes:
    """Returns an image's file with a mask as its transparency; as it is for a mask that is black everywhere."""
    opened = to_rgb(check_image(data))
    hole = stretch_mask(read_mask(check_image(mask)), *opened.size)
    if brightest(hole) == 0:  # the extension's page sends a black mask where nothing is painted
        return data
    opened.putalpha(ImageOps.invert(hole))
    return png_bytes(opened)


def png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def ignored_fields(unit: dict, settings: GenerationSettings) -> list[str]:
    """Returns the fields of a unit that change nothing here. Raises UserError for one that would change the image."""
    has_second_pass = settings.hires_scale > 1
    unknown = [name for name, value in unit.items() if value and name not in HONORED | NO_EFFECT]
    for name in unknown:
        if name in AT_DEFAULT and has_second_pass and unit[name] not in AT_DEFAULT[name]:
            raise UserError(f"{name[:100]} of a ControlNet unit is not supported here: leave it out.")
        if name.startswith(("advanced_weighting", "effective_region", "ipadapter", "pulid")):
            raise UserError(f"{name[:100]} of a ControlNet unit is not supported here: leave it out.")
    module, one, sized = module_of(unit), preprocessor_of(unit), unit.get("processor_res") or 0
    if files_of(unit)[1] and not one.for_masks:
        unknown.append("mask")  # which the extension would read in place of the image
    if unit.get("inpaint_crop_input_image") is False and settings.only_masked:
        unknown.append("inpaint_crop_input_image")  # see `control_inputs`
    if one.model_free:
        unknown += ["model"] if model_of(unit) else []
    elif one.for_ip_adapter:
        pass  # the extension's reads the whole image too
    elif isinstance(sized, int) and sized > 0 and not unit.get("pixel_perfect") and module != "none":
        unknown.append("processor_res")  # the extension's preprocessor works at this size
    return [name for name in unknown if name not in AT_DEFAULT]


class DetectRequest(WebuiBody):
    """The body of /controlnet/detect. The images are base64; processor_res: the shorter side to work at, in pixels."""

    controlnet_module: str = "none"
    controlnet_input_images: list[str] = Field(  # webuiapi leaves "input" out
        [], max_length=MAX_IMAGES, validation_alias=AliasChoices("controlnet_input_images", "controlnet_images")
    )
    controlnet_processor_res: int = Field(512, ge=-1, le=4096)
    controlnet_threshold_a: float = -1
    controlnet_threshold_b: float = -1


def detect(body: DetectRequest) -> tuple[list[str], list[str]]:
    """Returns the preprocessed images in base64, and notes. Raises UserError."""
    module = find_preprocessor(body.controlnet_module)
    if not body.controlnet_input_images:
        raise UserError("controlnet_input_images is empty: give at least one image.")
    one = PREPROCESSORS[module]
    fields = {"threshold_a": body.controlnet_threshold_a, "threshold_b": body.controlnet_threshold_b}
    a, b = within(one.a, fields, "threshold_a"), within(one.b, fields, "threshold_b")
    side = body.controlnet_processor_res
    found = [preprocess_image(decode_image(text), side, module, a, b) for text in body.controlnet_input_images]
    notes = dict.fromkeys(note for _, some in found for note in some)
    return [base64.b64encode(data).decode() for data, _ in found], list(notes)


@decodes_uploads
def preprocess_image(data: bytes, side: int, module: str, a: float | None, b: float | None) -> tuple[bytes, list[str]]:
    """Returns a preprocessed image as a PNG, and notes. side: the shorter side to work at. Raises UserError."""
    opened = check_image(data)
    pixels = preprocess(with_shorter_side(to_rgb(opened), side), module, a, b)
    return png_bytes(Image.fromarray(pixels)), first_frame_notes(control_image=[opened])


def with_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Returns an image scaled so that its shorter side has that many pixels; as it is for 0 or less."""
    scale = side / min(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if side <= 0 or (width, height) == image.size or width * height > MAX_PIXELS:
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def sliders_of(name: str) -> list[dict]:
    """Returns the extension's description of a preprocessor's numbers."""
    one = PREPROCESSORS[name]
    return [
        {"name": bounds.label, "value": bounds.default, "min": bounds.low, "max": bounds.high}
        for bounds in (one.a, one.b)
        if bounds is not None
    ]


def controlnet_router(models: Models) -> APIRouter:
    router = APIRouter(prefix="/controlnet", tags=["webui"], responses=PROBLEMS)

    @router.get("/version")
    async def version() -> dict:
        return {"version": VERSION}

    @router.get("/settings")
    async def settings() -> dict:
        return {"control_net_unit_count": MAX_UNITS}

    @router.get("/model_list")
    async def model_list(update: bool = True) -> dict:
        if update:
            models.refresh()
        return {"model_list": list(await asyncio.to_thread(models.names, "ControlNet"))}

    @router.get("/module_list")
    async def module_list(alias_names: bool = False) -> dict:
        names = [PREPROCESSORS[name].label if alias_names else name for name in PREPROCESSORS]
        details = [{"model_free": one.model_free, "sliders": sliders_of(name)} for name, one in PREPROCESSORS.items()]
        return {"module_list": names, "module_detail": dict(zip(names, details))}

    @router.get("/control_types")
    async def control_types() -> dict:
        return {"control_types": describe_control_types(await asyncio.to_thread(models.names, "ControlNet"))}

    @router.post("/detect")
    async def detect_images(body: DetectRequest) -> dict:
        images, notes = await asyncio.to_thread(detect, body)
        return {"images": images, "info": "Success"} | ({"notes": notes} if notes else {})

    return router
