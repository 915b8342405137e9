"""The page's part for X/Y/Z grids: a type and values for each of three axes."""

import gradio as gr

from sd.evaluation.grids.axes import KINDS, make_axis
from sd.utils.errors import UserError

# The types that people use most stand first.
FIRST = (
    *("seed", "steps", "guidance_scale", "prompt_sr", "sampler", "schedule", "checkpoint", "vae", "lora"),
    *("lora_strength", "strength", "clip_skip", "size", "styles"),
)
NAMES = ("x", "y", "z")
PLACEHOLDERS = ("10-30 (+10)", "euler_a, dpmpp_2m", "red, blue")


def axis_widgets() -> dict[str, gr.Component]:
    """Returns the widgets of the axes, placed where this is called: x_axis, x_values, y_axis and so on."""
    ordered = [*FIRST, *(name for name in KINDS if name not in FIRST)]
    choices = [("Nothing", ""), *((KINDS[name].label, name) for name in ordered)]
    widgets: dict[str, gr.Component] = {}
    for name, example in zip(NAMES, PLACEHOLDERS):
        label, hint = name.upper(), f"such as {example}"
        with gr.Row():
            widgets[f"{name}_axis"] = gr.Dropdown(choices, value="", label=f"{label} type", scale=2, min_width=120)
            widgets[f"{name}_values"] = gr.Textbox(
                label=f"{label} values", placeholder=hint, scale=3, min_width=150, value=""
            )
    return widgets


def axes_from(given: dict) -> list[str]:
    """Returns the axes of the widgets, "" for one that is not used. Raises UserError for values that are none."""
    axes = []
    for name in NAMES:
        kind, values = given[f"{name}_axis"], given[f"{name}_values"] or ""
        if not kind and values.strip():
            raise UserError(f"{name.upper()} has values but no type: choose its type, or empty its values.")
        if kind and not values.strip():
            raise UserError(
                f"{name.upper()} has no values: write them with commas between them, or choose Nothing as its type."
            )
        axes.append(str(make_axis(kind, values)) if kind else "")
    return axes
