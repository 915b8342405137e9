"""The webui's selectable scripts, `script_name` with `script_args`: X/Y/Z plot and Poor man's outpainting.

An axis of X/Y/Z plot is the number of its type in the webui 1.10's list, or the type's label, and its values as text
or, where the webui shows a list to choose from, as a list. Its switches are true and false, or "True" and "False", as
the examples of clients write them.
"""

from typing import Any

from sd.evaluation.grids.axes import Axis, find_kind, make_axis
from sd.evaluation.grids.values import join_values
from sd.pipeline.inputs.options import SIDES
from sd.utils.errors import UserError
from sd.web.a1111.fields import is_value_off
from sd.web.jobs.submit import GenerateRequest

XYZ, OUTPAINTING = "x/y/z plot", "poor man's outpainting"
NOTHING = "Nothing"
BEFORE = f"{NOTHING}|Seed|Var. seed|Var. strength|Steps"
PROMPTS = "Prompt S/R|Prompt order"
AFTER = (
    "Checkpoint name|Negative Guidance minimum sigma|Sigma Churn|Sigma min|Sigma max|Sigma noise|Schedule type|"
    "Schedule min sigma|Schedule max sigma|Schedule rho|Eta|Clip skip|Denoising|Initial noise multiplier|Extra noise"
)
LAST = (
    "VAE|Styles|UniPC Order|Face restore|Token merging ratio|Token merging ratio high-res|Always discard next-to-last "
    "sigma|SGM noise multiplier|Refiner checkpoint|Refiner switch at|RNG source|FP8 mode|Size"
)
# The types of an axis by their numbers, in txt2img and in img2img.
TYPES = {
    False: f"{BEFORE}|Hires steps|CFG Scale|{PROMPTS}|Sampler|Hires sampler|{AFTER}|Hires upscaler|{LAST}",
    True: f"{BEFORE}|CFG Scale|Image CFG Scale|{PROMPTS}|Sampler|{AFTER}|Cond. Image Mask Weight|{LAST}",
}
LISTS = ("sampler", "checkpoint", "schedule", "hires_upscaler", "vae", "styles", "rng")  # shown as lists by the webui
LEGEND, INCLUDE_IMAGES, SUB_GRIDS, KEEP_SEEDS = 9, 10, 11, 12  # places of switches in script_args of X/Y/Z plot
VARY_SEEDS = (13, 14, 15)  # where there are that many; in older webuis the margin follows at once
OWN_FILL = {0: "blurred", 1: "original", 2: "noise", 3: "nothing"}


def apply_script(request: GenerateRequest, name: str, args: list[Any], has_image: bool, random_seed: bool) -> list[str]:
    """Adds what a script does to a request, and returns notes on what it does otherwise here. Raises UserError.

    has_image: whether it is a request of img2img, in which a few types of axes have other numbers. random_seed: whether
    the request leaves the seed open.
    """
    title = name.strip().lower()
    if title in ("", "none"):
        return []
    if title == XYZ:
        return add_axes(request, args, has_image, random_seed)
    if title == OUTPAINTING:
        return add_outpainting(request, args)
    raise UserError(
        f"the script {name.strip()[:100]!r} is not supported here: use X/Y/Z plot or Poor man's outpainting, or leave "
        "out script_name."
    )


def is_without_images(name: str, args: list[Any]) -> bool:
    """Returns whether a script's answer has its sheet alone: X/Y/Z plot without "Include Sub Images"."""
    return name.strip().lower() == XYZ and not is_on(args, INCLUDE_IMAGES)


def is_on(args: list[Any], place: int) -> bool:
    """Returns whether a script's argument is there and switched on; "False" is off, although it is a text."""
    return len(args) > place and bool(args[place]) and not is_value_off(args[place])


def add_axes(request: GenerateRequest, args: list[Any], has_image: bool, random_seed: bool) -> list[str]:
    if len(args) < 9:
        raise UserError(
            f"script_args of X/Y/Z plot holds {len(args)} values: give type, values and list of each axis, 9 in all."
        )
    csv_mode = len(args) > 14 and is_on(args, len(args) - 1)
    axes = [axis_of(args[i], args[i + 1], args[i + 2], has_image, csv_mode) for i in (0, 3, 6)]
    if is_on(args, KEEP_SEEDS) and random_seed:
        raise UserError("'Keep -1 for seeds' is not supported here: use the axis Seed with the values -1, -1, -1.")
    if len(args) > 15 and any(is_on(args, place) for place in VARY_SEEDS):
        raise UserError("'Vary seeds' of an axis is not supported here: use the axis Seed, such as 1-4.")
    request.axes = ["" if axis is None else str(axis) for axis in axes]
    notes = []
    if len(args) > LEGEND and not is_on(args, LEGEND):
        notes.append("The sheet of a grid always has labels here.")
    if is_on(args, SUB_GRIDS) and axes[2]:
        notes.append("The sub grids of a grid are parts of its one sheet here.")
    return notes


def axis_of(kind: Any, values: Any, listed: Any, has_image: bool, csv_mode: bool) -> Axis | None:
    """Returns an axis, or None for the type Nothing. Raises UserError for an unknown type and for wrong values."""
    label = label_of(kind, has_image)
    if label == NOTHING:
        return None
    if label.lower() == "denoising" and not has_image:
        label = "hires_strength"  # the webui's txt2img has no other
    name = find_kind(label).name
    chosen = listed if isinstance(listed, list) and listed and name in LISTS and not csv_mode else None
    return make_axis(name, str(values or "") if chosen is None else join_values([str(one) for one in chosen]))


def label_of(kind: Any, has_image: bool) -> str:
    """Returns the label of a type of axis. Raises UserError for a number that the webui's list does not have."""
    types = TYPES[has_image].split("|")
    if isinstance(kind, str):
        return NOTHING if kind.strip().lower() in ("", "nothing", "none") else kind
    if not isinstance(kind, int) or isinstance(kind, bool) or not 0 <= kind < len(types):
        raise UserError(
            f"the type of an axis is {str(kind)[:40]!r}: use a number from 0 to {len(types) - 1}, or a label."
        )
    return types[kind]


def add_outpainting(request: GenerateRequest, args: list[Any]) -> list[str]:
    """Reads pixels, mask blur, masked content and sides; the image keeps its own size, as in the webui."""
    if request.image is None:
        raise UserError("Poor man's outpainting extends an image: send the request to img2img.")
    pixels, blur, fill, sides = (args + [None] * 4)[:4]
    sides = list(SIDES) if sides is None else sides
    if fill is not None and (not isinstance(fill, int) or fill not in OWN_FILL):
        raise UserError(f"the masked content {str(fill)[:40]!r} is unknown: use a number from 0 to 3.")
    if not isinstance(sides, list):
        raise UserError(f"the outpainting direction is {str(sides)[:40]!r}: give a list of {', '.join(SIDES)}.")
    request.settings = request.settings.replace(
        outpaint=128 if pixels is None else pixels,
        outpaint_sides=", ".join(map(str, sides)),
        mask_blur=4 if blur is None else blur,
        masked_content=OWN_FILL[fill or 0],
        only_masked=False,
        width=None,
        height=None,
    )
    return []
