"""Conversion from the webui's labels to the fields of `GenerationSettings`, with a note on what is not honored.

What becomes of each label is in `infotext_keys`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from sd.optimization.token_merging import MAX_RATIO
from sd.pipeline.metadata.controlnet_text import LABEL as CONTROLNET
from sd.pipeline.metadata.controlnet_text import control_from_labels
from sd.pipeline.metadata.infotext_keys import FROM_IMAGE, NOTED_APART, OF_MASKED_IMAGES, SAME_AS, feature_of, is_known
from sd.pipeline.metadata.infotext_reading import OURS, Interface, Reading, parse_boolean, parse_finite, parse_integer
from sd.pipeline.metadata.infotext_sizes import read_second_pass, read_size
from sd.pipeline.options import Option
from sd.pipeline.sampler_names import ALL_SAMPLERS, ETA_SAMPLERS, find_foreign_sampler, find_sampler
from sd.pipeline.settings import COMPAT, OPTIONS, SCHEDULE_LABELS
from sd.schedule import SD1_SCHEDULE
from sd.utils.errors import UserError

INVERTED, ONLY_MASKED = "Inpaint not masked", "Only masked"  # the webui's values of "Mask mode" and "Inpaint area"
UNKNOWN = ("", "unknown", "None", "none", "-1")

RNGS = {"cpu": "cpu", "gpu": "gpu", "nv": "nv", "cuda": "nv"}  # cuda is stable-diffusion.cpp's
DDIM_SAMPLERS = ("ddim", "ddim_cfgpp")  # the webui writes their eta as "Eta DDIM"
SD_CPP = "stable-diffusion.cpp"
LIKE_COMFYUI = ("ComfyUI", "Fooocus", "SwarmUI")
WEBUI_VERSION = re.compile(r"v?\d.*|f\d.*|")  # of the webui and its forks; the first ones wrote none
# Values with which a feature does nothing.
OFF = (
    *("", "0", "0.0", "none", "false", "off", "original", "0x0", "-1", "-1x-1", "automatic", "use same choices"),
    *("use same sampler", "use same scheduler", "use same checkpoint", "unknown"),
)


def reader_for(row: Option) -> Callable[[str], Any]:
    """Returns the function that turns the text of an option into its value. It raises ValueError for a wrong text."""
    if row.name == "clip_skip":
        return lambda text: max(1, parse_integer(text))  # some programs write 0 for the last layer
    if row.choices is not None:
        values = {label.lower(): value for value, label in row.choices.items()}
        return lambda text: values[text.lower()] if text.lower() in values else refuse_value(text)
    readers: dict[type, Callable[[str], Any]] = {int: parse_integer, float: parse_finite, bool: parse_boolean, str: str}
    return readers[row.type]


def refuse_value(text: str) -> None:
    raise ValueError(text)


# These are read by functions of their own below.
READ_SPECIALLY = (
    *("sampler", "schedule", "width", "height", "strength", "rng", "eta", "compat"),
    *("hires_strength", "hires_upscaler", "hires_steps", "control"),
    *("invert_mask", "only_masked"),
)
READ_PLAINLY = [row for row in OPTIONS if row.infotext is not None and row.name not in READ_SPECIALLY]


def read_fields(found: Mapping[str, str], interface: Interface) -> Reading:
    """Reads every label of an image's text. found: the result of `infotext.parse_infotext`. Never raises."""
    reading = Reading(interface)
    for row in READ_PLAINLY:
        label = row.infotext.label if row.infotext else ""
        text = found.get(label)
        if text is None or (text in UNKNOWN and row.name not in ("prompt", "negative_prompt", "emphasis")):
            continue
        try:
            reading.values[row.name] = reader_for(row)(text)
        except ValueError:
            wrong = "not a number" if row.type in (int, float) else "unknown here"
            reading.problems[row.name] = (
                f"the file gives {label!r} as {text[:40]!r}, which is {wrong}: set {reading.named(row.name)}."
            )
    read_sampler(found, reading)
    read_size(found, reading)
    read_second_pass(found, reading)
    if reading.values.get("token_merging", 0) > MAX_RATIO:
        reading.notes["Token merging ratio"] = (
            f"The token merging ratio {reading.values['token_merging']:g} is over what is possible here: {MAX_RATIO} "
            "is used."
        )
        reading.values["token_merging"] = MAX_RATIO
    read_control(found, reading)
    read_regions(found, reading)
    read_mask_options(found, reading)
    read_origin(found, reading)
    read_noise(found, reading)
    read_ngms(found, reading)
    read_rest(found, reading)
    return reading


def read_sampler(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the sampler and its schedule, each by its name in the program that wrote the file."""
    name, schedule = found.get("Sampler", ""), found.get("Schedule type", found.get("Scheduler", ""))
    if name in UNKNOWN:
        reading.notes["Sampler"] = "The file does not name its sampler: DDPM is used unless another one is given."
        return
    try:
        sampler, _ = find_sampler(name)
    except UserError:
        nearest = nearest_sampler(name)
        reading.problems["sampler"] = (
            f"the sampler {name[:40]!r} does not exist here: set {reading.named('sampler')}, for example to "
            f"{reading.interface.choice(nearest, ALL_SAMPLERS[nearest].label)}."
        )
        return
    reading.values["sampler"] = sampler
    if name.endswith("_gpu"):
        reading.notes["Sampler"] = (
            f"The sampler {name[:40]} adds noise of a GPU, and here noise of the source of its start: the "
            "image differs."
        )
    try:
        if found.get("Version", "").startswith(OURS):
            _, reading.values["schedule"] = find_sampler(name, schedule)
        else:  # the webui before 1.9 wrote no schedule where it was the even one
            _, reading.values["schedule"] = find_foreign_sampler(name, schedule, missing="uniform")
    except UserError:
        reading.problems["schedule"] = (
            f"the schedule {schedule[:40]!r} does not exist here: set {reading.named('schedule')}, for example to "
            f"{reading.interface.choice('karras', SCHEDULE_LABELS['karras'])}."
        )


def nearest_sampler(name: str) -> str:
    """Returns a sampler of the same family."""
    lower = name.lower()
    families = {"2m": "dpmpp_2m", "sde": "dpmpp_sde", " a": "euler_a", "_a": "euler_a", "dpm": "dpmpp_2m"}
    return next((known for sign, known in families.items() if sign in lower), "euler")


def read_control(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the ControlNets, whose images are not in the file."""
    try:
        control = control_from_labels(found)
    except UserError as error:
        reading.problems["control"] = f"its ControlNet cannot be used: {error}"
        return
    if control:
        reading.values["control"] = control
        reading.notes["ControlNet"] = (
            "It was generated with a ControlNet, whose image is not in it: give that image as the control image."
        )


def read_regions(found: Mapping[str, str], reading: Reading) -> None:
    """Adds a note on the masks of regions, which are not in the file."""
    if found.get("Region masks", "0") != "0":
        reading.notes["Region masks"] = (
            "It was generated with region masks, which are not in it: give them again, one for each region."
        )


def read_mask_options(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the options of masks that the webui writes as words."""
    if found.get("Mask mode", "").lower() == INVERTED.lower():
        reading.values["invert_mask"] = True
    if found.get("Inpaint area", "").lower() == ONLY_MASKED.lower():
        reading.values["only_masked"] = True


def read_origin(found: Mapping[str, str], reading: Reading) -> None:
    """Reads whether the image was generated from another image, which is not in the file."""
    strength = found.get("Denoising strength", "0")
    second_pass = "hires_scale" in reading.values or "First pass size-1" in found
    signs = [
        label for label in (*FROM_IMAGE, *OF_MASKED_IMAGES) if found.get(label, "").lower() not in ("", "none", "false")
    ]
    ours = found.get("Version", "").startswith(OURS) and "Denoising strength" in found and not second_pass
    if ours or "img2img" in found.get("Operations", "") or signs:
        reading.problems["image"] = (
            f"it was generated from another image, which is not in it: {reading.interface.from_image}."
        )
        if not second_pass and "Denoising strength" in found:
            try:
                reading.values["strength"] = parse_finite(strength)
            except ValueError:
                reading.problems["strength"] = (
                    f"the file's denoising strength is not a number: set {reading.named('strength')}."
                )
    elif not second_pass and strength not in ("0", "0.0", "1", "1.0"):
        reading.notes["Denoising strength"] = (
            f"The file gives a denoising strength of {strength}: if it was generated from another image, "
            f"{reading.interface.from_image}."
        )


def read_noise(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the noise source and what the file's program does otherwise; adds notes on what differs here."""
    rng = found.get("RNG", "GPU")
    if rng.lower() in RNGS:
        reading.values["rng"] = RNGS[rng.lower()]
    elif rng == "unknown":
        reading.notes["RNG"] = (
            "The file does not say how its noise was generated: the same seed can give another image here."
        )
    else:
        reading.notes["RNG"] = f"Its noise was generated by {rng}, and here it is on the CPU: the same seed differs."
    read_eta(found, reading)
    if (like := program_of(found)) != "none":
        reading.values["compat"] = like
    if found.get("Noise Schedule", "Default") != "Default":
        reading.notes["Noise Schedule"] = (
            f"It was generated with the noise schedule {found['Noise Schedule']!r}: for the same image set "
            f"{reading.interface.prediction} to v-zero-snr or eps-zero-snr, unless the checkpoint is marked as one of "
            "zero terminal SNR."
        )
    if "Prediction" in found:
        reading.notes["Prediction"] = (
            f"It was generated with {reading.interface.prediction} {found['Prediction']}, which the same image needs."
        )
    vae = found.get("VAE") or found.get("Module 1", "")
    if vae.lower() not in ("", "none", "automatic", "use same choices", "baked vae"):
        reading.notes["VAE"] = f"It was decoded with the VAE {vae!r}: give that as well for the same colors."


def read_eta(found: Mapping[str, str], reading: Reading) -> None:
    """Reads the sampler's eta. The webui writes it for every sampler; one without eta does not use it."""
    sampler = reading.values.get("sampler", "")
    text = found.get("Eta DDIM", found.get("Eta")) if sampler in DDIM_SAMPLERS else found.get("Eta")
    if found.get("Version", "").startswith(SD_CPP) and sampler not in DDIM_SAMPLERS:
        return  # it writes an eta of 0 for every sampler, and only DDIM takes it
    if text is None or sampler not in ETA_SAMPLERS:
        return
    try:
        reading.values["eta"] = parse_finite(text)
    except ValueError:
        reading.problems["eta"] = (
            f"the file gives 'Eta' as {text[:40]!r}, which is not a number: set {reading.named('eta')}."
        )


def read_ngms(found: Mapping[str, str], reading: Reading) -> None:
    """Reads NGMS for all steps as the end of guidance, which is then at that level of noise."""
    if "ngms" in reading.values and parse_boolean(found.get("NGMS all steps", "")):
        t = SD1_SCHEDULE.t_of(max(reading.values.pop("ngms"), 1e-6))
        reading.values["guidance_end"] = 1 - t / (len(SD1_SCHEDULE) - 1)


def program_of(found: Mapping[str, str]) -> str:
    """Returns the value of the option compat for the program that wrote the file."""
    version = found.get("Version", "")
    if "Compatibility" in found or version.startswith(OURS):
        named = found.get("Compatibility", "").lower()
        return named if named in COMPAT else "none"
    if version in LIKE_COMFYUI:
        return "comfyui"
    return "webui" if "App" not in found and WEBUI_VERSION.fullmatch(version) else "none"


def read_rest(found: Mapping[str, str], reading: Reading) -> None:
    """Adds a note on the features that are not supported, and one on unknown labels."""
    features: dict[str, bool] = {}
    unknown: dict[str, bool] = {}
    for label, value in found.items():
        again = label in SAME_AS and value == found.get(SAME_AS[label])
        if is_known(label) or CONTROLNET.fullmatch(label) or value.strip().lower() in OFF or again:
            continue
        if label in NOTED_APART:
            reading.notes[label] = NOTED_APART[label]
        elif feature := feature_of(label):
            features[feature] = True
        else:
            unknown[re.sub("-[12]$", "", label)] = True
    if features:
        reading.notes["features"] = f"It was generated with {list_names(features)}, which is not supported here."
    if unknown:
        reading.notes["labels"] = f"These settings of the file are not supported here: {list_names(unknown)}."


def list_names(names: Mapping[str, object]) -> str:
    """Returns at most eight names, and how many more there are."""
    shown = list(names)[:8]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
