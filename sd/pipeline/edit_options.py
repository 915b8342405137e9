"""Rows of the table of options for ControlNet and for masks; fields of `GenerationSettings` have them as defaults."""

from sd.control.units import format_units, parse_units
from sd.pipeline.options import Infotext, Widget, option

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
