"""The settings in an image's text, back into the form: all that can be used, and a sentence about all that cannot."""

from dataclasses import fields

from sd.errors import UserError
from sd.infotext import parse_infotext, write_infotext
from sd.settings import Settings

# By the text's labels: the fields of `Settings` that each fills.
FILLS = {
    "Steps": ("steps",),
    "Sampler": ("sampler", "schedule"),
    "Schedule type": ("schedule",),
    "CFG scale": ("guidance_scale",),
    "Seed": ("seed",),
    "Size": ("width", "height"),
    "Clip skip": ("clip_skip",),
    "Variation seed": ("variation_seed",),
    "Variation seed strength": ("variation_strength",),
    "Denoising strength": ("strength", "hires_strength"),
    "Hires upscale": ("hires_scale", "hires_strength"),
    "Hires upscaler": ("hires_upscaler",),
    "CFG Rescale phi": ("guidance_rescale",),
    "Tiling": ("tiling",),
    "Guidance start": ("guidance_start",),
    "Guidance end": ("guidance_end",),
    "Step cache": ("step_cache",),
    "Token merging ratio": ("token_merging",),
}
SAFE = {"Steps": "1", "CFG scale": "1", "Seed": "1"}
# What a text leaves out where it is off.
OFF = {
    one.name: one.default
    for one in fields(Settings)
    if one.name
    in (
        *("clip_skip", "guidance_rescale", "variation_strength", "hires_scale", "tiling"),
        *("guidance_start", "guidance_end", "step_cache", "token_merging"),
    )
}


def settings_from_infotext(text: str) -> tuple[dict[str, object], list[str]]:
    """(fields of `Settings` with what the text says, a sentence for each value that cannot be used)."""
    found = parse_infotext(text)
    if "Steps" not in found:
        raise UserError("the image's text holds no settings: give an image as this program or the webui saved it.")
    if "Size-1" in found:
        found["Size"] = f"{found['Size-1']}x{found['Size-2']}"
    given = {label: found[label] for label in FILLS if label in found}
    bad = {label: value for label, value in given.items() if not is_usable(SAFE | {label: value})}
    good = {label: value for label, value in given.items() if label not in bad}
    read = vars(Settings.from_infotext(write_infotext("", "", SAFE | good)))
    values = {name: read[name] for label in good for name in FILLS[label]}
    if "Hires upscale" not in good:
        values.pop("hires_strength", None)
    elif "Denoising strength" in good:
        values.pop("strength", None)
    values |= {"prompt": found["Prompt"], "negative_prompt": found["Negative prompt"]}
    return values, [f"{label} {value!r} of this image is not available here." for label, value in bad.items()]


def is_usable(settings: dict[str, str]) -> bool:
    try:
        Settings.from_infotext(write_infotext("", "", settings))
    except UserError:
        return False
    return True
