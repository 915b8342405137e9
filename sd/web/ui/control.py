"""The page's part for ControlNets and references: choices that become units in a text, and the control images."""

from typing import Any

import gradio as gr

from sd.checkpoints.discovery import IMAGE_ENCODER
from sd.checkpoints.families import IP_ADAPTER
from sd.checkpoints.model_files import content_of
from sd.control.preprocessors import PREPROCESSORS
from sd.control.units import MAX_WEIGHT, MODES, NO_MODEL, RESIZES, ControlUnit, format_units, parse_units
from sd.utils.errors import UserError
from sd.web.jobs.model_index import Models
from sd.web.ui.components import paintable_list
from sd.web.ui.follow import EVENT, say, show_errors


class ControlBuilder:
    """The choices of one unit, placed where it is created, a button that adds it to a text, and the images."""

    def __init__(self, models: Models):
        self.models = models
        modes = [(label, key) for key, label in MODES.items()]
        resizes = [(label, key) for key, label in RESIZES.items()]
        preprocessors = [(one.label, name) for name, one in PREPROCESSORS.items()]
        with gr.Row():
            names = list(models.names("ControlNet"))
            self.model = gr.Dropdown(names, value=None, label="ControlNet", scale=3, min_width=150)
            self.preprocessor = gr.Dropdown(preprocessors, value="none", label="Preprocessor", scale=2, min_width=120)
        self.encoder = gr.Dropdown(encoders_of(models), value="", label="Image encoder", visible=False)
        with gr.Row():
            self.weight = gr.Slider(0, MAX_WEIGHT, 1, step=0.05, label="Control weight", min_width=120)
            self.start = gr.Slider(0, 1, 0, step=0.05, label="Control start", min_width=120)
            self.end = gr.Slider(0, 1, 1, step=0.05, label="Control end", min_width=120)
        with gr.Row():
            self.numbers = [gr.Slider(visible=False, min_width=120), gr.Slider(visible=False, min_width=120)]
        with gr.Row(elem_classes="together"):
            self.mode = gr.Dropdown(modes, value="balanced", label="Control mode", scale=3, min_width=120)
            self.resize = gr.Dropdown(resizes, value="crop", label="Resize mode", scale=3, min_width=150)
            self.button = gr.Button("Add ControlNet", size="md", scale=1, min_width=80)
        self.images = paintable_list(
            *("Control images, one for each ControlNet or one for all", "control", "Paint the control image"),
            "White lines on black, as ControlNets for scribbles and edges read them without a preprocessor.",
            size=1,
        )

    @property
    def chosen(self) -> list[gr.Component]:
        """The choices that make a unit; the button empties them, so that they stand for one that is not added yet."""
        return [self.model, self.preprocessor]

    def connect(self, text: gr.Textbox) -> None:
        """Lets the button add the unit to a text, and the choices show those that belong to them."""
        values = [self.weight, self.start, self.end, self.mode, self.resize, self.encoder, *self.numbers]
        self.button.click(show_errors(self.add), [text, *self.chosen, *values], [text, *self.chosen], **EVENT)
        self.preprocessor.change(sliders_of, self.preprocessor, self.numbers, **EVENT)
        self.model.change(self.encoder_field, self.model, self.encoder, **EVENT)

    def add(self, text: str, model: str | None, preprocessor: str, *values: Any) -> tuple[str, None, str]:
        """Returns the text with one more unit, and the choices, emptied. Raises UserError."""
        added = with_unit(text, model, preprocessor, *values)
        one = PREPROCESSORS[preprocessor]
        if model and one.model_free:
            say([f'The preprocessor "{one.label}" works without a ControlNet: {model} is left out.'])
        return added, None, "none"

    def encoder_field(self, model: str | None) -> gr.Dropdown:
        """Returns the field of the image encoder, which is shown for an IP-Adapter."""
        path = self.models.names("ControlNet").get(model or "")
        is_shown = path is not None and content_of(path).what == IP_ADAPTER
        return gr.Dropdown(encoders_of(self.models), value="", visible=is_shown)


def unadded(model: str | None, preprocessor: str) -> list[str]:
    """Returns a sentence on choices that no unit has yet, and that take no part therefore."""
    if not model and preprocessor == "none":
        return []
    name = model or f'the preprocessor "{PREPROCESSORS[preprocessor].label}"'
    return [f'Under ControlNet {name} is chosen but not added: press "Add ControlNet" to use it.']


def encoders_of(models: Models) -> list[tuple[str, str]]:
    """Returns the choices of image encoders with their labels; the first one, "", is what `find_encoder` finds."""
    names = [(name, name) for name in models.names(IMAGE_ENCODER)]
    return [("The one beside the IP-Adapter, or the only one", ""), *names]


def sliders_of(preprocessor: str) -> list[gr.Slider]:
    """Returns the sliders of a preprocessor's numbers; invisible ones for those that it does not have."""
    one = PREPROCESSORS[preprocessor]
    return [
        gr.Slider(visible=False)
        if bounds is None
        else gr.Slider(
            *(bounds.low, bounds.high, bounds.default),
            step=0.01 if bounds.high - bounds.low <= 1 else 1,
            label=bounds.label,
            visible=True,
        )
        for bounds in (one.a, one.b)
    ]


def with_unit(
    text: str,
    model: str | None,
    preprocessor: str,
    weight: float,
    start: float,
    end: float,
    mode: str,
    resize: str,
    encoder: str,
    *numbers: float | None,
) -> str:
    """Returns the text of some units with one more at its end. numbers: the preprocessor's. Raises UserError."""
    one = PREPROCESSORS[preprocessor]
    if one.model_free:
        model, encoder = NO_MODEL, ""  # those that are still chosen from before take no part
    elif not model:
        raise UserError(
            "there is no ControlNet to add yet: choose one, put one into weights/controlnet, or choose the "
            "preprocessor Reference, which needs none."
        )
    a, b = (
        None if bounds is None or number is None or number == bounds.default else float(number)
        for bounds, number in zip((one.a, one.b), (*numbers, None, None))
    )
    unit = ControlUnit(model, float(weight), preprocessor, a, b, float(start), float(end), mode, resize, encoder)
    return format_units([*parse_units(text), unit])
