"""Every known label of infotext, and what becomes of it: obeyed, without effect, noted or refused.

A label that is in none of these tables is noted by its name. docs/guides/same-image.md shows them.
"""

from sd.pipeline.inputs.options import OF_MASKS
from sd.pipeline.settings import OPTIONS

# Labels that are read beside those of the table of options, and by what they are obeyed.
ALSO_OBEYED = {
    "Sampler": "sampler and schedule, by the names of many programs",
    "Schedule type": "schedule",
    "Scheduler": "schedule",
    "Size": "width and height, cut to multiples of 8",
    "First pass size": "width and height, where Size is that of the second pass",
    "Hires resize": "hires_scale",
    "Eta DDIM": "eta, for DDIM",
    "NGMS all steps": "guidance_end, at the sigma of NGMS",
    "Model": "the checkpoint, where it is installed; else a note",
    "Model hash": "the checkpoint, where it is installed; else a note",
    "Version": "compat, by the program that it names",
    "Precision": "--precision, with --from-png",
    "Region masks": "a note asks for the masks, which are not in the image",
}
# Labels that do not change the pixels, or repeat another label.
NO_EFFECT = (
    *("VAE hash", "Lora hashes", "TI hashes", "Hashes", "User", "Template", "Negative Template", "Adapters"),
    *("Approximations", "Created Date", "Batch size", "Batch pos", "Guidance", "Distilled CFG Scale", "App"),
    *("Backend", "Operations", "Parser", "Pipeline", "Style Selector Enabled", "Diffusion in Low Bits", "Mask hash"),
    *("X Type", "X Values", "Y Type", "Y Values", "Z Type", "Z Values"),
    *("Fixed X Values", "Fixed Y Values", "Fixed Z Values"),
    *("Styles", "Index", "TE", "UNET", "Style", "Prompts", "Civitai resources", "Civitai metadata", "Interrupted"),
)
# Labels with these beginnings name what is not supported: a note says so where it was in use.
NOTED = {
    "ControlNet": "ControlNet",
    "T2I": "a T2I adapter",
    "Refiner": "a refiner",
    "FreeU": "FreeU",
    "freeu": "FreeU",
    "IPAdapter": "an IP adapter",
    "ADetailer": "ADetailer",
    "RP ": "regions parted by BREAK (here ADDCOL and ADDROW part them)",
    "Face restoration": "face restoration",
    "Tiled Diffusion": "tiled diffusion",
    "Dynamic thresholding": "dynamic thresholding",
    "AddNet": "the additional-networks extension",
    "Ultimate SD": "Ultimate SD upscale",
    "Postprocess": "a postprocessing upscaler",
    "Hypernet": "a hypernetwork",
    "Hires sampler": "another sampler in the second pass",
    "Hires schedule": "another schedule in the second pass",
    "Hires prompt": "another prompt in the second pass",
    "Hires negative": "another negative prompt in the second pass",
    "Hires checkpoint": "another checkpoint in the second pass",
    "Hires CFG": "another CFG scale in the second pass",
    "Token merging ratio hr": "another token merging ratio in the second pass",
    "Skip Early CFG": "early steps without guidance (Skip Early CFG)",
    "Seed resize from": "noise of another size (Seed resize from)",
    "SGM noise multiplier": "the SGM noise multiplier, which only the compatibility none has",
    "Pad conds": "padded prompts (Pad conds), which only the compatibility none has",
    "Extra noise": "extra noise",
    "Sigma": "the sampler's churn (Sigma churn, tmin, tmax, noise)",
    "Schedule ": "a schedule of its own (max sigma, min sigma, rho)",
    "Beta schedule": "another shape of the beta schedule",
    "Discard penultimate sigma": "a discarded last level but one",
    "Downcast alphas_cumprod": "a noise schedule in half precision",
    "UniPC": "another variant of UniPC",
    "Old prompt editing": "the old counting of steps in prompts",
    "Use old": "an old implementation of the webui",
    "VAE Decoder": "another decoder than the VAE",
    "VAE Encoder": "another encoder than the VAE",
    "FP8 weight": "weights in 8 bits",
    "Cache FP16 weight": "weights in 8 bits",
}
# Labels with a note of their own.
NOTED_APART = {
    "RNG": "obeyed, but for sources that do not exist here",
    "VAE": "give --vae for the same colors",
    "Module 1": "give --vae for the same colors",
    "Prediction": "give --prediction; --from-png does so",
    "Noise Schedule": "zero terminal SNR: give --prediction, unless the checkpoint is marked",
    "Script": "It was made by a script, such as X/Y/Z plot: these are the settings of its first image.",
    "ComfyUI samplers": "The ComfyUI workflow has several KSampler nodes: only the first one's settings are read.",
    "InvokeAI weights": "The prompt has weights in InvokeAI's syntax, which are plain text here: write (word:1.2).",
    "ComfyUI weights": "ComfyUI weights words in another way than the webui and this program.",
}
# Only images that were generated from another image have one of these: they are refused without that image.
FROM_IMAGE = (*("Init image hash", "Init image", "Image CFG scale", "Mask", "Outpaint", "Conditional mask weight"),)
# So do the options of masks, which are obeyed with that image.
OF_MASKED_IMAGES = tuple(row.infotext.label for row in OPTIONS if row.infotext and row.name in OF_MASKS)
# Labels of a second pass that say nothing where they repeat the first pass's value.
SAME_AS = {
    "Token merging ratio hr": "Token merging ratio",
    "Hires CFG Scale": "CFG scale",
    "Hires sampler": "Sampler",
    "Hires schedule type": "Schedule type",
    "Hires prompt": "Prompt",
    "Hires negative prompt": "Negative prompt",
    "Hires Module 1": "Module 1",
}
BY_OPTION = {row.infotext.label: row.name for row in reversed(OPTIONS) if row.infotext is not None}
OBEYED = BY_OPTION | ALSO_OBEYED
OPENINGS = ("Lora ", "TI ")  # of labels without effect that end in a name


def is_known(label: str) -> bool:
    """Return whether a label is read elsewhere, or does nothing. label: as `parse_infotext` gives it, "Size-1" too."""
    bare = label.removesuffix("-1").removesuffix("-2")
    noted = ("Script", "ComfyUI samplers", "InvokeAI weights", "ComfyUI weights")
    apart = label in NOTED_APART and label not in noted
    return bare in OBEYED or label in NO_EFFECT or label in FROM_IMAGE or apart or label.startswith(OPENINGS)


def feature_of(label: str) -> str | None:
    """Return what a label names that is not supported, in words; None where it is in no table."""
    return next((what for opening, what in NOTED.items() if label.startswith(opening)), None)


def treatment_of(label: str) -> str:
    """Return "obeyed", "no effect", "noted" or "refused" for a label, whatever its value."""
    if label in FROM_IMAGE:
        return "refused"
    if label in NO_EFFECT or label.startswith(OPENINGS):
        return "no effect"
    return "obeyed" if label.removesuffix("-1").removesuffix("-2") in OBEYED else "noted"


def table_of_labels() -> str:
    """Return the tables as Markdown, for the guide."""
    lines = ["| label | | |", "|---|---|---|"]
    lines += [f"| `{label}` | obeyed | {how} |" for label, how in sorted(OBEYED.items())]
    lines += [f"| `{label}` | noted | {how} |" for label, how in NOTED_APART.items() if label != "RNG"]
    lines += [f"| `{label.strip()}` … | noted | {what} |" for label, what in NOTED.items()]
    lines += [
        f"| {', '.join(f'`{label}`' for label in FROM_IMAGE)} | refused | generated from another image: give it |"
    ]
    lines += [f"| {', '.join(f'`{label}`' for label in NO_EFFECT)} | no effect | |"]
    return "\n".join([*lines, "| any other | noted | by its name |"])
