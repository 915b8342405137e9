"""Rows of the table of options for ControlNet and for masks; fields of `GenerationSettings` have them as defaults."""

from sd.control.units import format_units, parse_units
from sd.pipeline.options import Infotext, Widget, option

MAX_BLUR = 64  # pixels
CONTENTS = {"original": "original", "blurred": "fill", "noise": "latent noise", "nothing": "latent nothing"}
OF_IMG2IMG = "it is a field of img2img alone there, which `schema.add_image` reads"

CONTROL = option(
    *("", "one or more ControlNets, each as NAME[:WEIGHT][:key=value]..., with ' + ' between them", "control"),
    flags=("--control",),
    infotext=Infotext("ControlNet 0", "specially"),
    widget=Widget("text", "ControlNets", "control", placeholder="name:0.8:preprocessor=canny"),
    missing={"a1111": "the extension's units stand in alwayson_scripts.controlnet there"},
)


def canonical_control(text: str) -> str:
    """Returns the text of some units in the one form that `format_units` gives. Raises UserError for what is none."""
    return format_units(parse_units(text))


INVERT_MASK = option(
    *(False, "regenerate where the mask is black and keep where it is white", "img2img"),
    flags=("--invert-mask",),
    mode="image",
    infotext=Infotext("Mask mode", "specially"),
    widget=Widget("checkbox", "Invert mask", "mask", info="regenerates what is not painted"),
    missing={"a1111": OF_IMG2IMG},
)
MASK_BLUR = option(
    *(0, "blur of the mask's edge in pixels", "img2img"),
    flags=("--mask-blur",),
    mode="image",
    low=0,
    high=MAX_BLUR,
    infotext=Infotext("Mask blur"),
    widget=Widget("slider", "Mask blur", "mask", step=1, default=4, info="pixels at the mask's edge"),
    missing={"a1111": OF_IMG2IMG},
)
MASKED_CONTENT = option(
    *("original", f"what the masked part starts from: {', '.join(CONTENTS)}; it matters below strength 1", "img2img"),
    flags=("--masked-content",),
    mode="image",
    choices=CONTENTS,
    infotext=Infotext("Masked content"),
    widget=Widget("dropdown", "Masked content", "mask", info="what the masked part starts from"),
    missing={"a1111": OF_IMG2IMG},
)
ONLY_MASKED = option(
    *(False, "generate the surroundings of the mask alone, at full size, and paste them back", "img2img"),
    flags=("--only-masked",),
    mode="image",
    infotext=Infotext("Inpaint area", "specially"),
    widget=Widget("checkbox", "Only masked", "mask", info="the masked part alone, at full size"),
    missing={"a1111": OF_IMG2IMG},
)
ONLY_MASKED_PADDING = option(
    *(32, "pixels around the mask that --only-masked takes in", "img2img"),
    flags=("--only-masked-padding",),
    mode="image",
    low=0,
    high=4096,
    noun="padding",
    infotext=Infotext("Masked area padding", "always", part_of="only_masked"),
    widget=Widget("slider", "Only masked padding", "mask", high=256, step=4, info="pixels kept around it"),
    missing={"a1111": OF_IMG2IMG},
)
SOFT_INPAINTING = option(
    *(False, "let gray parts of the mask change later and less (differential diffusion); blur the mask", "img2img"),
    flags=("--soft-inpainting",),
    mode="image",
    infotext=Infotext("Soft inpainting enabled"),
    widget=Widget("checkbox", "Soft inpainting", "mask", info="gray parts of the mask change less"),
    missing={"a1111": OF_IMG2IMG},
)
# Fields that say nothing without a mask.
OF_MASKS = ("invert_mask", "mask_blur", "masked_content", "only_masked", "only_masked_padding", "soft_inpainting")
