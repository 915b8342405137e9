"""The page's part for ControlNet: choices that become units in a text, and the control images."""

import gradio as gr

from sd.control.preprocessors import PREPROCESSORS
from sd.control.units import MAX_WEIGHT, MODES, RESIZES, ControlUnit, format_units, parse_units
from sd.utils.errors import UserError
from sd.web.jobs.model_index import Models
from sd.web.ui.components import paintable_list
from sd.web.ui.follow import EVENT, show_errors


class ControlBuilder:
    """The choices of one unit, placed where it is created, a button that adds it to a text, and the images."""

    def __init__(self, models: Models):
        modes = [(label, key) for key, label in MODES.items()]
        resizes = [(label, key) for key, label in RESIZES.items()]
        preprocessors = [(one.label, name) for name, one in PREPROCESSORS.items()]
        with gr.Row():
            names = list(models.names("ControlNet"))
            self.model = gr.Dropdown(names, value=None, label="ControlNet", scale=3, min_width=150)
            self.preprocessor = gr.Dropdown(preprocessors, value="none", label="Preprocessor", scale=2, min_width=120)
        with gr.Row():
            self.weight = gr.Slider(0, MAX_WEIGHT, 1, step=0.05, label="Control weight", min_width=120)
            self.start = gr.Slider(0, 1, 0, step=0.05, label="Control start", min_width=120)
            self.end = gr.Slider(0, 1, 1, step=0.05, label="Control end", min_width=120)
        with gr.Row(elem_classes="together"):
            self.mode = gr.Dropdown(modes, value="balanced", label="Control mode", scale=3, min_width=120)
            self.resize = gr.Dropdown(resizes, value="crop", label="Resize mode", scale=2, min_width=120)
            self.button = gr.Button("Add ControlNet", size="md", scale=1, min_width=80)
        self.images = paintable_list(
            *("Control images, one for each ControlNet or one for all", "control", "Paint the control image"),
            "White lines on black, as ControlNets for scribbles and edges read them without a preprocessor.",
            size=1,
        )

    def connect(self, text: gr.Textbox) -> None:
        """Lets the button add the unit to a text."""
        chosen = [self.model, self.preprocessor, self.weight, self.start, self.end, self.mode, self.resize]
        self.button.click(show_errors(with_unit), [text, *chosen], text, **EVENT)


def with_unit(
    text: str, model: str | None, preprocessor: str, weight: float, start: float, end: float, mode: str, resize: str
) -> str:
    """Returns the text of some units with one more at its end. Raises UserError."""
    if not model:
        raise UserError("there is no ControlNet to add yet: choose one, or put one into weights/controlnet.")
    unit = ControlUnit(model, float(weight), preprocessor, None, None, float(start), float(end), mode, resize)
    return format_units([*parse_units(text), unit])
