"""Fields of webui requests that this server does not support: those without effect, and those that are refused.

The webui ignores unknown fields, so such a field cannot change an image: it is accepted and listed in the answer. A
field of the webui with a value that would change the image is refused.
"""

from typing import Any

from sd.pipeline.sampler_names import find_sampler
from sd.utils.errors import UserError

# Fields that do not affect the image, or only together with one that is refused. SillyTavern sends the server's own
# address and password.
NO_EFFECT = frozenset(
    """
    do_not_save_samples do_not_save_grid comments s_tmin s_tmax url auth refiner_switch_at image_cfg_scale
    hr_additional_modules distilled_cfg_scale hr_distilled_cfg seed_enable_extras mask_round
    """.split()
)
# The webui's other fields, with the values, beside None, False, 0 and empty ones, that have no effect.
AT_DEFAULT: dict[str, tuple] = {
    "restore_faces": (),
    "s_churn": (),
    "s_noise": (1,),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "refiner_checkpoint": ("None",),
    "disable_extra_networks": (),
    "infotext": (),
    "firstphase_width": (),
    "firstphase_height": (),
    "firstpass_image": (),
    "hr_prompt": (),
    "hr_negative_prompt": (),
    "hr_sampler_name": ("Use same sampler",),
    "hr_scheduler": ("Use same scheduler", "Automatic", "automatic"),
    "hr_checkpoint_name": ("Use same checkpoint",),
    "hr_cfg": (),
    "latent_mask": (),
    "initial_noise_multiplier": (1,),
}
SECOND_PASS = tuple(name for name in AT_DEFAULT if name.startswith(("hr_", "firstp")))
IMAGE_ONLY = ("latent_mask", "initial_noise_multiplier")  # unknown to the webui's txt2img
# Fields of the webui's img2img alone, which clients with one body for both send to txt2img.
OF_IMAGES = frozenset(
    """
    resize_mode mask_blur mask_blur_x mask_blur_y inpainting_fill inpaint_full_res inpaint_full_res_padding
    inpainting_mask_invert initial_noise_multiplier include_init_images
    """.split()
)
SOFT_INPAINTING = "soft inpainting"
REGIONAL_PROMPTER = "regional prompter"
MAX_LISTED = 30  # names of ignored fields in an answer
OFF = (False, None, "False", "false", 0)


def check_fields(body: Any, has_image: bool) -> list[str]:
    """Return the names of the fields that are ignored. Raises UserError for one that is not supported.

    body: a `schema.TextToImage`; its unknown fields are its `model_extra`.
    """
    ignored = ["enable_hr"] if has_image and body.enable_hr else []
    for name, value in body.model_extra.items():
        if name in NO_EFFECT or not value or (not has_image and name in OF_IMAGES):
            continue
        if name in AT_DEFAULT and (has_image or name not in IMAGE_ONLY):
            if not has_no_effect(body, name, value, has_image):
                raise UserError(f"{name} is not supported here: leave it out.")
        else:
            ignored.append(name[:100])
    return ignored[:MAX_LISTED]


def has_no_effect(body: Any, name: str, value: Any, has_image: bool) -> bool:
    if value in AT_DEFAULT[name]:
        return True
    if name not in SECOND_PASS:
        return False
    return has_image or not body.enable_hr or is_same_as_first(body, name, value)


def is_same_as_first(body: Any, name: str, value: Any) -> bool:
    """Return whether a field of the second pass repeats the first pass's value."""
    if name == "hr_sampler_name":
        return is_same_sampler(str(value), body.sampler_name or body.sampler_index)
    first = {"hr_cfg": "cfg_scale", "hr_checkpoint_name": ""}.get(name, name.removeprefix("hr_"))
    return bool(first) and value == getattr(body, first, None)


def is_same_sampler(one: str, other: str) -> bool:
    try:
        return find_sampler(one)[0] == find_sampler(other)[0]
    except UserError:
        return False


def check_scripts(body: Any) -> None:
    """Raises UserError for an extension of the webui that would have an effect.

    Its arguments come as {"args": [...]}, {"args": {...}}, {} or null.
    """
    for name, script in body.alwayson_scripts.items():
        args = script.get("args") if isinstance(script, dict) else script
        args = [] if args is None else args if isinstance(args, list) else [args]
        if isinstance(script, (dict, list, type(None))) and is_off(name.lower(), args, body):
            continue
        raise UserError(f"the script {name[:100]} is not supported here: {advice_on(name.lower())}.")


def is_off(name: str, args: list, body: Any) -> bool:
    if name in ("controlnet", SOFT_INPAINTING, REGIONAL_PROMPTER):
        return True  # `controlnet.add_units`, `schema.soft_inpainting_of` and `with_regional_prompter` read them
    if name == "adetailer":
        units = [one for one in args if isinstance(one, dict)]
        switched_off = not args or is_value_off(args[0])
        return switched_off or (bool(units) and all(is_off_detailer(unit) for unit in units))
    if name == "sampler":
        return repeats_sampler(args, body)
    if name == "seed":
        return repeats_seed(args, body)
    if name == "extra options":
        return not any(args)
    return not args or is_value_off(args[0]) or is_off_unit(args[0])


def is_value_off(value: Any) -> bool:
    return not isinstance(value, dict) and value in OFF


def is_off_unit(unit: Any) -> bool:
    """Return whether a unit of ControlNet or a similar extension is off; {} is an unused one."""
    if not isinstance(unit, dict):
        return unit in OFF
    return not unit or any(name in unit and unit[name] in OFF for name in ("enabled", "enable", "is_enabled"))


def is_off_detailer(unit: dict) -> bool:
    return unit.get("ad_model", "None") in (None, "", "None") or unit.get("ad_tab_enable") is False


def repeats_sampler(args: list, body: Any) -> bool:
    """Return whether the built-in script "Sampler" (steps, sampler, schedule), which overrides the body, repeats it."""
    steps, sampler, schedule = (args + [None] * 3)[:3]
    return (
        steps in (None, body.steps)
        and (sampler is None or is_same_sampler(str(sampler), body.sampler_name or body.sampler_index))
        and str(schedule or "").lower() in ("", "automatic", body.scheduler.lower())
    )


def repeats_seed(args: list, body: Any) -> bool:
    """Do the same for "Seed": seed, whether the rest counts, variation seed, its strength, an older size."""
    seed, counts, subseed, strength, *size = args + [None] * max(6 - len(args), 0)
    if seed not in (None, body.seed):
        return False
    varied = bool(strength) and (subseed, strength) != (body.subseed, body.subseed_strength)
    return not counts or not (varied or any(isinstance(side, int) and side > 0 for side in size))


def advice_on(name: str) -> str:
    if name == "adetailer":
        return "leave it out of alwayson_scripts, or let its first argument be false"
    if name in ("sampler", "seed"):
        return "its values differ from those of the request; leave it out of alwayson_scripts"
    return "leave it out of alwayson_scripts"
