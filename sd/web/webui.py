"""AUTOMATIC1111's words for a picture to ours. Whatever would change the picture and is not known here is refused; what
clients always send, at values that mean nothing, passes.
"""

import re
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sd.errors import UserError
from sd.infotext import parse_infotext
from sd.samplers import SAMPLERS, find_sampler
from sd.settings import HIRES_UPSCALERS, VERSION, Settings
from sd.styles import find_style
from sd.web.asking import Asked
from sd.web.limits import MAX_BODY, MAX_PICTURES, decode_picture
from sd.web.masks import MaskOptions

# Fields that say nothing about the picture, or nothing without another that is refused. SillyTavern sends the server's
# own address and password along.
HARMLESS = {
    *("do_not_save_samples", "do_not_save_grid", "force_task_id", "comments", "s_tmin", "s_tmax", "url", "auth"),
    *("refiner_switch_at", "image_cfg_scale", "hr_additional_modules"),
}
# Beside None, False, 0 and what is empty: values that mean "not used".
NEUTRAL = {
    "s_noise": (1,),
    "initial_noise_multiplier": (1,),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "hr_sampler_name": ("Use same sampler",),
    "hr_scheduler": ("Use same scheduler", "Automatic", "automatic"),
    "hr_checkpoint_name": ("Use same checkpoint",),
    "refiner_checkpoint": ("None",),
    "script_name": ("None",),
    "seed_enable_extras": (True,),
    "mask_round": (True,),
}
# The schedules that the webui takes for these samplers when it is left to it; for the others the model's own.
AUTOMATIC = {"dpm2": "karras", "dpmpp_2m": "karras", "dpmpp_sde": "karras", "dpmpp_2m_sde": "exponential"}
# What these schedules are among ours: "Normal" has the numbers of "Uniform".
OTHER_SCHEDULES = {"automatic": "", "normal": "uniform"}
NO_STYLE = ("", "None")
OTHER_NETWORKS = re.compile("<(hypernet|lyco):")
RESIZE_MODES = {0: "stretch", 1: "crop"}
MAX_BLUR = 64  # pixels


class Script(BaseModel):
    """One of the webui's extensions. The first of its arguments says, by False, that it is to do nothing."""

    args: list[Any] = []


class TextToImage(BaseModel):
    """The body of /sdapi/v1/txt2img. width, height: the checkpoint's own where they are left out. clip_skip: SD.Next's
    word for the option CLIP_stop_at_last_layers, before which it goes; 0 where it is left out.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, str_max_length=MAX_BODY)

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] = []
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    sampler_name: str = ""
    sampler_index: str = "Euler"
    scheduler: str = ""
    batch_size: int = Field(1, ge=1, le=MAX_PICTURES)
    n_iter: int = Field(1, ge=1, le=MAX_PICTURES)
    steps: int = 50
    cfg_scale: float = 7.0
    width: int | None = None
    height: int | None = None
    clip_skip: int = 0
    tiling: bool = False
    eta: float = 0.0
    denoising_strength: float = 0.75
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    alwayson_scripts: dict[str, Script] = {}
    send_images: bool = True
    save_images: bool = False

    @model_validator(mode="before")
    @classmethod
    def leave_out_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class ImageToImage(TextToImage):
    """The body of /sdapi/v1/img2img. Pictures are base64 or data: URLs; a mask is white where to draw. mask_blur goes
    before mask_blur_x and mask_blur_y.
    """

    init_images: list[str] = []
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


def check_unknown(body: TextToImage) -> None:
    """Raises UserError for a field that asks for what is not to be had."""
    for name, value in body.model_extra.items():
        if name in HARMLESS or not value or value in NEUTRAL.get(name, ()):
            continue
        if name.startswith("hr_") and (not body.enable_hr or value == getattr(body, name.removeprefix("hr_"), None)):
            continue
        raise UserError(f"{name} is not supported here: leave it out.")
    for name, script in body.alwayson_scripts.items():
        if script.args and script.args[0] is not False:
            raise UserError(f"the script {name[:100]} is not supported here: leave it out of alwayson_scripts.")


def settings_of(body: TextToImage, clip_skip: int) -> Settings:
    """Raises UserError for what cannot be drawn. clip_skip: from the options."""
    sampler, schedule = sampler_of(body)
    prompt, negative_prompt = body.prompt, body.negative_prompt
    for style in body.styles:
        if style not in NO_STYLE:
            prompt, negative_prompt = find_style(style).apply(prompt, negative_prompt)
    if found := OTHER_NETWORKS.search(prompt + negative_prompt):
        raise UserError(f"{found[0]}name> in a prompt is not supported here: use <lora:name>, or leave it out.")
    return Settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        strength=body.denoising_strength,
        steps=body.steps,
        guidance_scale=body.cfg_scale,
        sampler=sampler,
        schedule=schedule,
        seed=body.seed,
        width=body.width,
        height=body.height,
        num_images=body.batch_size * body.n_iter,
        clip_skip=body.clip_skip or clip_skip,
        variation_seed=body.subseed,
        variation_strength=body.subseed_strength,
        tiling=body.tiling,
        **hires_of(body),
    )


def sampler_of(body: TextToImage) -> tuple[str, str]:
    """(sampler, schedule) in our spelling. An eta of 0 means the sampler's own, as it did in older webuis."""
    name = body.sampler_name or body.sampler_index
    chosen = OTHER_SCHEDULES.get(body.scheduler.lower(), body.scheduler)
    sampler, schedule = find_sampler(name, chosen)
    if not chosen and schedule == "ldm" and not name.lower().endswith("uniform"):
        schedule = AUTOMATIC.get(sampler, schedule)
    if body.eta not in (0, 1):
        raise UserError(f"an eta of {body.eta:g} is not supported here: use 0 or 1.")
    return ("ddpm" if sampler == "ddim" and body.eta == 1 else sampler), schedule  # DDIM with eta 1 is DDPM


def hires_of(body: TextToImage) -> dict:
    if not body.enable_hr:
        return {}
    names = {label: name for name, label in HIRES_UPSCALERS.items()}
    if body.hr_upscaler not in names:
        raise UserError(f"there is no hr_upscaler {body.hr_upscaler!r} here: use {' or '.join(names)}.")
    if body.hr_second_pass_steps not in (0, body.steps):
        raise UserError("hr_second_pass_steps is not supported here: use 0, as many as the first time.")
    return {
        "hires_scale": body.hr_scale,
        "hires_upscaler": names[body.hr_upscaler],
        "hires_strength": body.denoising_strength,
    }


def asked_of(body: TextToImage, options: dict) -> Asked:
    """options: the webui's, those of the request included. Raises UserError. Pictures are decoded, which takes time."""
    check_unknown(body)
    settings = settings_of(body, options["CLIP_stop_at_last_layers"])
    asked = Asked(settings, options["sd_model_checkpoint"], batch_size=body.batch_size)
    if not isinstance(body, ImageToImage):
        return asked
    if len(body.init_images) != 1:
        raise UserError(f"init_images holds {len(body.init_images)} pictures: give one.")
    if body.enable_hr:
        raise UserError("enable_hr is for pictures from text: leave it out.")
    if body.resize_mode not in RESIZE_MODES:
        raise UserError(f"resize_mode {body.resize_mode} is not supported here: use 0 (stretch) or 1 (crop).")
    asked.resize_mode = RESIZE_MODES[body.resize_mode]
    asked.image = decode_picture(body.init_images[0])
    if not body.mask:
        return asked
    if body.inpainting_fill not in (0, 1):
        raise UserError(f"inpainting_fill {body.inpainting_fill} is not supported here: use 0 (fill) or 1 (original).")
    asked.mask = decode_picture(body.mask)
    blur = body.mask_blur_x if body.mask_blur is None else body.mask_blur
    if body.mask_blur is None and body.mask_blur_x != body.mask_blur_y:
        raise UserError("mask_blur_x and mask_blur_y differ, which is not supported here: use mask_blur.")
    asked.mask_options = MaskOptions(
        invert=body.inpainting_mask_invert,
        blur=blur,
        fill=body.inpainting_fill == 0,
        only_masked=body.inpaint_full_res,
        padding=body.inpaint_full_res_padding,
    )
    return asked


def info_of(result: dict, body: TextToImage) -> dict:
    """What the webui says beside the pictures that came of a request. result: its job's."""
    settings = Settings(**result["settings"])
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
        "sampler_name": SAMPLERS[settings.sampler].label,
        "cfg_scale": settings.guidance_scale,
        "steps": settings.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": written.get("Model", ""),
        "sd_model_hash": written.get("Model hash", ""),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": settings.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": result["infotexts"],
        "styles": body.styles,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": settings.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
    }
