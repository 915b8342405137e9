"""Rows of the table of options for ControlNet and for masks; fields of `GenerationSettings` have them as defaults."""

from collections.abc import Sequence
from functools import partial

from sd.control.units import format_units, parse_units
from sd.pipeline.options import NOT_IN_WEBUI, Infotext, Widget, option
from sd.utils.errors import SettingError, UserError

MAX_BLUR = 64  # pixels
MAX_OUTPAINT = 1024  # pixels
SIDES = ("left", "right", "up", "down")
CONTENTS = {"original": "original", "blurred": "fill", "noise": "latent noise", "nothing": "latent nothing"}
OF_IMG2IMG = "it is a field of img2img alone there, which `schema.add_image` reads"

NOT_IN_PLAIN_WEBUI = {"a1111": "the webui has no field for it: the prompt of a request holds ADDCOL and ADDROW"}

REGION_RATIOS = option(
    *("", "widths of the columns of ADDCOL, as in 1,2, or heights of the rows of ADDROW, as in 1;2", "prompt"),
    flags=("--region-ratios",),
    default_help="equal",
    infotext=Infotext("Region ratios"),
    widget=Widget("text", "Region ratios", "regions", placeholder="1,2", info="1,2 for columns, 1;2 for rows"),
    missing=NOT_IN_PLAIN_WEBUI,
)
REGION_BASE = option(
    *(0.2, "share of the prompt before ADDBASE where the regions are, from 0 to 1", "prompt"),
    flags=("--region-base",),
    low=0,
    high=1,
    infotext=Infotext("Region base ratio"),
    widget=Widget("slider", "Region base share", "regions", step=0.05, info="of the prompt before ADDBASE"),
    missing=NOT_IN_PLAIN_WEBUI,
)
CONTROL = option(
    *(
        "",
        "names of ControlNets, IP-Adapters or reference_only, as NAME[:WEIGHT][:key=value]..., ' + ' between them",
        "control",
    ),
    flags=("--control",),
    infotext=Infotext("ControlNet 0", "specially"),
    widget=Widget("text", "ControlNets", "control", placeholder="name:0.8:preprocessor=canny"),
    missing={"a1111": "the extension's units stand in alwayson_scripts.controlnet there"},
)


def needless(condition: str, names: Sequence[str]) -> list[str]:
    """Returns a sentence that options change nothing under a condition; none where there are no options.

    >>> needless("Without a mask", ["mask_blur", "only_masked"])
    ['Without a mask, mask blur and only masked change nothing.']
    """
    if not names:
        return []
    *first, last = (name.replace("_", " ") for name in names)
    return [
        f"{condition}, {', '.join(first)} and {last} change nothing."
        if first
        else f"{condition}, {last} changes nothing."
    ]


def check_tile(tile: int, seamless: bool) -> None:
    """Raises UserError for a tile that no U-Net can halve, and for tiles of a seamless image."""
    if tile % 64:
        raise SettingError("tile_size", f"must be a multiple of 64, or 0 for no tiles, not {tile}")
    if tile and seamless:
        raise UserError("tiling makes an image seamless and works on all of it at once: leave out one of them.")


def canonical_sides(text: str) -> str:
    """Returns sides in the order of SIDES, as "left, right". Raises UserError for what is no side, and for none."""
    words = text.lower().replace(",", " ").replace("+", " ").split()
    if wrong := [word for word in words if word not in (*SIDES, "all")]:
        raise UserError(f"the outpaint sides hold {wrong[0][:40]!r}: use some of {', '.join(SIDES)}, or all.")
    if not words:
        raise UserError(f"the outpaint sides are empty: use some of {', '.join(SIDES)}, or all.")
    return ", ".join(side for side in SIDES if side in words or "all" in words)


def check_outpaint(pixels: int) -> None:
    """Raises UserError for a number of pixels that the latent does not have."""
    if pixels % 8:
        raise UserError(f"the outpaint pixels are {pixels}: use a multiple of 8, or 0 to extend nothing.")


def canonical_control(text: str) -> str:
    """Returns the text of some units in the one form that `format_units` gives. Raises UserError for what is none."""
    return format_units(parse_units(text))


mask_option = partial(option, mode="image", missing={"a1111": OF_IMG2IMG})

INVERT_MASK = mask_option(
    *(False, "regenerate where the mask is black and keep where it is white", "img2img"),
    flags=("--invert-mask",),
    infotext=Infotext("Mask mode", "specially"),
    widget=Widget("checkbox", "Invert mask", "mask", info="regenerates what is not painted"),
)
MASK_BLUR = mask_option(
    *(0, "blur of the mask's edge in pixels", "img2img"),
    flags=("--mask-blur",),
    low=0,
    high=MAX_BLUR,
    infotext=Infotext("Mask blur"),
    widget=Widget("slider", "Mask blur", "mask", step=1, default=4, info="pixels at the mask's edge"),
)
MASKED_CONTENT = mask_option(
    *("original", f"what the masked part starts from: {', '.join(CONTENTS)}; it matters below strength 1", "img2img"),
    flags=("--masked-content",),
    choices=CONTENTS,
    infotext=Infotext("Masked content"),
    widget=Widget("dropdown", "Masked content", "mask", info="what the masked part starts from"),
)
ONLY_MASKED = mask_option(
    *(False, "generate the surroundings of the mask alone, at full size, and paste them back", "img2img"),
    flags=("--only-masked",),
    infotext=Infotext("Inpaint area", "specially"),
    widget=Widget("checkbox", "Only masked", "mask", info="the masked part alone, at full size"),
)
ONLY_MASKED_PADDING = mask_option(
    *(32, "pixels around the mask that --only-masked takes in", "img2img"),
    flags=("--only-masked-padding",),
    low=0,
    high=4096,
    infotext=Infotext("Masked area padding", "always", part_of="only_masked"),
    widget=Widget("slider", "Only masked padding", "mask", high=256, step=4, info="pixels kept around it"),
)
SOFT_INPAINTING = mask_option(
    *(False, "let gray parts of the mask change later and less (differential diffusion); blur the mask", "img2img"),
    flags=("--soft-inpainting",),
    infotext=Infotext("Soft inpainting enabled"),
    widget=Widget("checkbox", "Soft inpainting", "mask", info="gray parts of the mask change less"),
)
OUTPAINT = option(
    *(0, "pixels to extend the image by on each of --outpaint-sides, a multiple of 8; 0 is off", "img2img"),
    flags=("--outpaint",),
    metavar="PIXELS",
    mode="image",
    low=0,
    high=MAX_OUTPAINT,
    infotext=Infotext("Outpainting pixels"),
    widget=Widget("slider", "Outpaint", "outpaint", high=512, step=8, info="over 0: extends the image by these pixels"),
    missing={"a1111": "it is an argument of the script Poor man's outpainting there"},
)
OUTPAINT_SIDES = option(
    *(", ".join(SIDES), f"sides that --outpaint extends, some of {', '.join(SIDES)}, or all", "img2img"),
    flags=("--outpaint-sides",),
    metavar="SIDES",
    mode="image",
    infotext=Infotext("Outpainting sides", part_of="outpaint"),
    widget=Widget("dropdown", "Outpaint sides", "outpaint", info="which sides are extended"),
    missing={"a1111": "it is an argument of the script Poor man's outpainting there"},
)
TILE_SIZE = option(
    *(0, "side of the windows of tiled diffusion in pixels, for large images in little memory; 0 is off", "sampling"),
    flags=("--tile-size",),
    metavar="PIXELS",
    low=0,
    high=4096,
    infotext=Infotext("Tiled diffusion size"),
    widget=Widget("slider", "Tile size", "advanced", high=1024, step=64, info="over 0: large images in windows"),
    missing=NOT_IN_WEBUI,
)
TILE_OVERLAP = option(
    *(0.25, "share of a window's side that neighboring windows of --tile-size have in common", "sampling"),
    flags=("--tile-overlap",),
    metavar="SHARE",
    low=0,
    high=0.75,
    infotext=Infotext("Tiled diffusion overlap", part_of="tile_size"),
    widget=Widget(
        "slider", "Tile overlap", "advanced", step=0.05, info="share that neighboring windows have in common"
    ),
    missing=NOT_IN_WEBUI,
)
# Fields that say nothing without a mask.
OF_MASKS = ("invert_mask", "mask_blur", "masked_content", "only_masked", "only_masked_padding", "soft_inpainting")
