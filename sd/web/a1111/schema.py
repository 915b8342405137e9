"""The request bodies of AUTOMATIC1111's txt2img and img2img, translated to settings, and the response's info.

A feature of the webui that is not supported here is refused, see `fields`.
"""

import re
import time
from typing import Any

from pydantic import ConfigDict, Field, create_model

from sd.pipeline.infotext import parse_infotext
from sd.pipeline.inputs.options import MAX_BLUR
from sd.pipeline.sampler_names import ALL_SAMPLERS, ETA_SAMPLERS, find_foreign_sampler, find_sampler
from sd.pipeline.settings import HIRES_UPSCALERS, OPTIONS, SCHEDULE_LABELS, VERSION, GenerationSettings
from sd.prompts.styles import find_style
from sd.utils.errors import SettingError, UserError
from sd.web.a1111.body import WebuiBody
from sd.web.a1111.controlnet import add_units
from sd.web.a1111.fields import SOFT_INPAINTING, check_fields, check_scripts
from sd.web.a1111.options import settings_of, vae_of
from sd.web.a1111.regional_prompter import with_regional_prompter
from sd.web.a1111.scripts import apply_script
from sd.web.jobs.limits import MAX_IMAGES, decode_image
from sd.web.jobs.submit import GenerateRequest

NO_STYLE = ("", "None")
OTHER_NETWORKS = re.compile("<(hypernet|lyco):")
RESIZE_MODES = {0: "stretch", 1: "crop"}
FILLS = {0: "blurred", 1: "original", 2: "noise", 3: "nothing"}  # by the webui's inpainting_fill


# The fields of the table of options, under the webui's names and with the webui's defaults.
ROWS = [row for row in OPTIONS if row.a1111]
FIELDS: dict[str, Any] = {
    row.a1111: (
        row.type | None if row.optional and row.a1111_default is None else row.type,
        row.default if row.a1111_default is None else row.a1111_default,
    )
    for row in ROWS
}
Named: Any = create_model("Named", __base__=WebuiBody, **FIELDS)  # Any: its fields are known only at run time
# The options that `settings_from_body` translates; the value of any other is the field's own.
TRANSLATED = {"sampler", "schedule", "num_images", "strength", "clip_skip", "hires_scale", "hires_steps"}
TRANSLATED |= {"hires_upscaler", "eta", "ngms"}


class TextToImage(Named):
    """The body of /sdapi/v1/txt2img: the table's options under the webui's names, and the fields below.

    width and height are the checkpoint's own where they are left out. clip_skip is SD.Next's name of the option
    CLIP_stop_at_last_layers, which it overrides; 0 where it is left out. An unknown field is accepted, as by the webui;
    `fields.check_fields` lists it.
    """

    model_config = ConfigDict(extra="allow")

    styles: list[str] = Field([])
    sampler_index: str = "Euler"
    batch_size: int = Field(1, ge=1, le=MAX_IMAGES)
    n_iter: int = Field(1, ge=1, le=MAX_IMAGES)
    enable_hr: bool = False
    hr_second_pass_steps: int = Field(0, ge=0)
    hr_resize_x: int = Field(0, ge=0)
    hr_resize_y: int = Field(0, ge=0)
    override_settings: dict[str, Any] = Field({})
    override_settings_restore_afterwards: bool = True
    alwayson_scripts: dict[str, Any] = Field({})
    script_name: str = ""
    script_args: list[Any] = Field([])
    force_task_id: str = ""
    send_images: bool = True
    save_images: bool = False


class ImageToImage(TextToImage):
    """The body of /sdapi/v1/img2img.

    Images are base64 or data: URLs; a mask is white where to regenerate. mask_blur overrides mask_blur_x and
    mask_blur_y.
    """

    init_images: list[str] = Field([])
    include_init_images: bool = False
    mask: str = ""
    mask_blur: int | None = Field(None, ge=0, le=MAX_BLUR)
    mask_blur_x: int = Field(4, ge=0, le=MAX_BLUR)
    mask_blur_y: int = Field(4, ge=0, le=MAX_BLUR)
    resize_mode: int = 0
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(0, ge=0, le=4096)
    inpainting_mask_invert: bool = False


def settings_from_body(body: TextToImage, options: dict[str, Any], has_image: bool) -> GenerationSettings:
    """Returns the settings of a request. options: the webui's. Raises UserError for what cannot be generated."""
    sampler, schedule = sampler_of(body)
    prompt, negative_prompt = body.prompt, body.negative_prompt
    for style in body.styles:
        if style not in NO_STYLE:
            prompt, negative_prompt = find_style(style).apply(prompt, negative_prompt)
    if found := OTHER_NETWORKS.search(prompt + negative_prompt):
        raise UserError(f"{found[0]}name> in a prompt is not supported here: use <lora:name>, or leave it out.")
    plain = {row.name: getattr(body, row.a1111) for row in ROWS if row.name not in TRANSLATED}
    translated = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "strength": body.denoising_strength,
        "sampler": sampler,
        "schedule": schedule,
        "num_images": body.batch_size * body.n_iter,
        "clip_skip": body.clip_skip or options["CLIP_stop_at_last_layers"],
    }
    translated |= settings_of(options, sampler)
    if body.s_min_uncond:
        translated["ngms"] = body.s_min_uncond
    if body.eta and sampler in ETA_SAMPLERS and sampler != "ddpm":
        translated["eta"] = body.eta
    try:
        return GenerationSettings(**plain | translated | ({} if has_image else hires_from_body(body)))
    except SettingError as error:
        names = {row.name: row.a1111 for row in ROWS if row.name != "num_images"}  # which is batch_size times n_iter
        raise error.renamed(names) from error


def sampler_of(body: TextToImage) -> tuple[str, str]:
    """Returns (sampler, schedule) by our names. An eta of 0 is the sampler's own, as in older webuis."""
    name = body.sampler_name or body.sampler_index
    sampler, schedule = find_by_label(name, body.scheduler)
    return ("ddpm" if sampler == "ddim" and body.eta == 1 else sampler), schedule  # DDIM with eta 1 is DDPM


def find_by_label(name: str, schedule: str) -> tuple[str, str]:
    """Calls `find_foreign_sampler`, for which Automatic and Uniform are what they are in the webui.

    The UserError lists the names that /samplers and /schedulers list.
    """
    try:
        find_sampler(name)
    except UserError:
        labels = ", ".join(one.label for one in ALL_SAMPLERS.values())
        raise UserError(f"unknown sampler {name[:100]!r}; choose from {labels}.") from None
    try:
        return find_foreign_sampler(name, schedule)
    except UserError:
        labels = ", ".join(["Automatic", *SCHEDULE_LABELS.values()])
        raise UserError(f"unknown scheduler {schedule[:100]!r}; choose from {labels}.") from None


def hires_from_body(body: TextToImage) -> dict[str, Any]:
    """Returns the options of the second pass; none where it is off."""
    if not body.enable_hr:
        return {}
    names = {label.lower(): name for name, label in HIRES_UPSCALERS.items()} | {"none": "lanczos"}
    scale = hires_scale_of(body)
    if scale == 1:
        raise UserError("a second pass at the first one's size is not supported here: use an hr_scale over 1.")
    return {
        "hires_scale": scale,
        "hires_upscaler": names.get(body.hr_upscaler.lower(), body.hr_upscaler),
        "hires_strength": body.denoising_strength,
        "hires_steps": body.hr_second_pass_steps,
    }


def hires_scale_of(body: TextToImage) -> float:
    """Returns hr_scale, or the scale that leads to hr_resize_x and hr_resize_y; one of these two may be 0."""
    if not (body.hr_resize_x or body.hr_resize_y):
        return body.hr_scale
    if not (body.width and body.height):
        raise UserError("hr_resize_x and hr_resize_y need width and height in the request as well: give them.")
    scales = [side / own for side, own in zip(hires_sides(body), (body.width, body.height)) if side]
    scale = max(scales)
    sizes = [int(own * scale + 1e-6) // 8 * 8 for own in (body.width, body.height)]
    for side, found in zip(hires_sides(body), sizes):
        if side and side // 8 * 8 != found:
            raise UserError(
                f"hr_resize_x and hr_resize_y of another shape than {body.width}x{body.height} are not supported here: "
                f"use {sizes[0]} and {sizes[1]}, or let one of them be 0."
            )
    exact = [int(own * scale) // 8 * 8 for own in (body.width, body.height)] == sizes
    return scale if exact else scale + 1e-9  # rounding would make it 8 pixels smaller


def hires_sides(body: TextToImage) -> tuple[int, int]:
    return body.hr_resize_x, body.hr_resize_y


def request_from_body(body: TextToImage, options: dict) -> tuple[GenerateRequest, list[str], list[str]]:
    """Returns the request, the names of the fields that are ignored, and notes.

    options: the webui's, including those of the request. Decodes the images, which takes time. Raises UserError.
    """
    has_image = isinstance(body, ImageToImage)
    ignored = check_fields(body, has_image)
    check_scripts(body)
    settings = with_regional_prompter(settings_from_body(body, options, has_image), body)
    if body.eta and settings.sampler not in ETA_SAMPLERS:
        ignored.append("eta")
    request = GenerateRequest(settings, options["sd_model_checkpoint"], batch_size=body.batch_size, vae=vae_of(options))
    if has_image:
        add_image(request, body)
    ignored += add_units(request, body, request.image)
    return request, ignored, apply_script(request, body.script_name, body.script_args, has_image, body.seed == -1)


def add_image(request: GenerateRequest, body: ImageToImage) -> None:
    """Adds the image, the mask and their options. Raises UserError."""
    if len(body.init_images) != 1:
        raise UserError(f"init_images holds {len(body.init_images)} images: give one.")
    if body.resize_mode not in RESIZE_MODES:
        raise UserError(f"resize_mode {body.resize_mode} is not supported here: use 0 (stretch) or 1 (crop).")
    request.resize_mode = RESIZE_MODES[body.resize_mode]
    request.image = decode_image(body.init_images[0])
    if not body.mask:
        return
    if body.inpainting_fill not in FILLS:
        raise UserError(f"inpainting_fill {body.inpainting_fill} is unknown: use a number from 0 to 3.")
    request.mask = decode_image(body.mask)
    blur = body.mask_blur_x if body.mask_blur is None else body.mask_blur
    if body.mask_blur is None and body.mask_blur_x != body.mask_blur_y:
        raise UserError("mask_blur_x and mask_blur_y differ, which is not supported here: use mask_blur.")
    request.settings = request.settings.replace(
        invert_mask=body.inpainting_mask_invert,
        mask_blur=blur,
        masked_content=FILLS[body.inpainting_fill],
        only_masked=body.inpaint_full_res,
        **({"only_masked_padding": body.inpaint_full_res_padding} if body.inpaint_full_res else {}),
        soft_inpainting=soft_inpainting_of(body),
    )


def soft_inpainting_of(body: ImageToImage) -> bool:
    """Returns whether the webui's built-in script for it is on; its further numbers are not used here."""
    for name, script in body.alwayson_scripts.items():
        if name.lower() == SOFT_INPAINTING:
            args = script.get("args") if isinstance(script, dict) else script
            first = args[0] if isinstance(args, list) and args else args
            return bool(first.get("Soft inpainting") if isinstance(first, dict) else first)
    return False


def response_info(result: dict, body: TextToImage, ignored: list[str], notes: list[str]) -> dict:
    """Returns the webui's "info" on the images of a request. result: that of its job.

    There are two further keys if they are not empty: "ignored", the fields that changed nothing, and "notes", sentences
    on what was not honored.
    """
    settings = GenerationSettings(**result["settings"])
    written = parse_infotext(next(iter(result["infotexts"]), ""))
    count = len(result["images"])
    varied = settings.variation_strength > 0
    subseeds = settings.variation_seeds()[:count] if varied else [settings.variation_seed] * count
    return {
        "prompt": settings.prompt,
        "all_prompts": [settings.prompt] * count,
        "negative_prompt": settings.negative_prompt,
        "all_negative_prompts": [settings.negative_prompt] * count,
        "seed": settings.seed,
        "all_seeds": result["seeds"],
        "subseed": settings.variation_seed,
        "all_subseeds": subseeds,
        "subseed_strength": settings.variation_strength,
        "width": settings.width,
        "height": settings.height,
        "sampler_name": ALL_SAMPLERS[settings.sampler].label,
        "cfg_scale": settings.guidance_scale,
        "steps": settings.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": written.get("Model", ""),
        "sd_model_hash": written.get("Model hash", ""),
        "sd_vae_name": written.get("VAE"),
        "sd_vae_hash": written.get("VAE hash"),
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": settings.strength,
        "extra_generation_params": {},
        "index_of_first_image": int(bool(result.get("sheet"))),
        "infotexts": result["infotexts"],
        "styles": body.styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": settings.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
    } | {key: value for key, value in (("ignored", ignored), ("notes", notes)) if value}
