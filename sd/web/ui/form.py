"""The form: the options as widgets, from widgets to a request, and from an image's infotext to widgets."""

import json
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import gradio as gr
from safetensors import SafetensorError, safe_open

from sd.checkpoints.config import IMAGE_SIZE
from sd.checkpoints.predictions import PREDICTIONS
from sd.pipeline.infotext import parse_infotext
from sd.pipeline.inputs.options import OF_MASKS, SIDES, needless
from sd.pipeline.metadata.settings_infotext import form_values
from sd.pipeline.options import Option
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.settings import HIRES_UPSCALERS, OPTIONS, SCHEDULE_LABELS, GenerationSettings
from sd.pipeline.stable_diffusion import BUNDLED
from sd.prompts.styles import find_style, styles_for
from sd.utils.errors import UserError
from sd.utils.images import MAX_SIDE
from sd.web.jobs.limits import decode_image
from sd.web.jobs.model_index import Models
from sd.web.jobs.submit import GenerateRequest
from sd.web.ui.addons import addons
from sd.web.ui.axes import NAMES as AXIS_NAMES
from sd.web.ui.axes import axes_from, axis_widgets
from sd.web.ui.components import examples, paintable_list, painter
from sd.web.ui.control import ControlBuilder

SETTINGS = [row.name for row in OPTIONS]
SEEDS = ("seed", "variation_seed")  # texts: a browser's numbers are exact to 2^53 only
TEXTS = (*SEEDS, "eta")  # numbers that may be missing
SAMPLER, STEPS = "dpmpp_2m", 25
# Initial values of the form that differ from the table's defaults.
FIRST_VALUES = {"prompt": "a red apple", "sampler": SAMPLER, "steps": STEPS}
CHOICES = {
    "sampler": [(one.label, name) for name, one in ALL_SAMPLERS.items()],
    "schedule": [("Automatic", ""), *((label, name) for name, label in SCHEDULE_LABELS.items())],
    "outpaint_sides": [", ".join(some) for count in (4, 1, 2, 3) for some in combinations(SIDES, count)],
}
MASK_DEFAULTS = {row.name: row.default for row in OPTIONS if row.name in OF_MASKS}
NO_AXES = {f"{name}_{part}": "" for name in AXIS_NAMES for part in ("axis", "values")}
HIRES_DEFAULTS = {row.name: row.default for row in OPTIONS if row.name.startswith("hires_")}
SHAPES = ["1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16"]
CUSTOM = "Custom"
# The values of options that infotext leaves out where they are at their defaults.
OFF = {row.name: row.default for row in OPTIONS if row.infotext and row.infotext.written == "changed"}
ABOUT_BUNDLED = """
<p>The bundled model is small: it generates emoji of 128 × 128 pixels of animals, food, vehicles, weather, plants,
things and faces, in five styles. Name the thing, then the style. For common things it follows colors, counts and
places too. For other images, put a Stable Diffusion 1.x checkpoint into the folder <code>weights</code>. Prompts to
try:</p>
<div class="tools">BUTTONS</div>
"""
ABOUT_REGIONS = """
<p>Write a prompt for each region with <code>ADDCOL</code> (a column) or <code>ADDROW</code> (a row) between them:
<code>a cat ADDCOL a dog</code>. A prompt for the whole image comes first and ends with <code>ADDBASE</code>. With
masks, each region is where its mask is white.</p>
"""
EXAMPLES = (
    "a blue apple",
    "three stars",
    "a star above a house",
    "a castle at night",
    "a cat face, noto emoji",
    "a rocket, fluent flat emoji",
)


class Form:
    """The form, placed where it is created. widgets: by the names of the options, and of the request's other fields."""

    def __init__(self, models: Models):
        self.models = models
        self.widgets: dict[str, gr.Component] = {}
        self.folds: list[tuple[gr.Accordion, list[str]]] = []  # with the widgets that take part alone
        self.add_model()
        self.add_prompts()
        self.add_start()
        self.add_regions()
        self.add_control()
        self.add_axes()
        self.add_size()
        self.add_sampling()
        self.add_seed()
        self.add_hires()
        self.add_rare()
        self.defaults = [widget.value for widget in self.widgets.values()]

    def add(self, **widgets: gr.Component) -> None:
        self.widgets |= widgets

    def add_model(self) -> None:
        names, vaes = list(self.models.names("checkpoint")), vae_names(self.models)
        chosen = self.models.default_checkpoint()
        with gr.Row():
            self.add(checkpoint=gr.Dropdown(names, value=chosen, label="Model", scale=3, min_width=150))
            self.add(vae=gr.Dropdown(vaes, value="", label="VAE", visible=len(vaes) > 1, scale=2, min_width=120))

    def add_prompts(self) -> None:
        add = self.add
        self.add_option("prompt", lines=2, elem_classes="prompt")
        self.tokens = gr.HTML(elem_classes="tokens")
        self.add_option("negative_prompt", lines=1)
        with gr.Row():
            kind = {"variant": "primary", "elem_id": "generate"}
            self.generate = gr.Button("Generate", size="lg", scale=2, min_width=140, **kind)
            self.enhance = gr.Button("Improve the prompt", size="lg", min_width=190)
        self.about = examples(about_model(self.models, self.widgets["checkpoint"].value))
        with gr.Row():
            names = style_names(is_bundled(self.models, self.widgets["checkpoint"].value))
            add(style=gr.Dropdown(names, value=[], multiselect=True, label="Styles", min_width=120))
        with gr.Row(elem_classes="together"):
            self.addon = gr.Dropdown(addons(self.models), value=None, label="LoRA or embedding", scale=3, min_width=120)
            self.addon_strength = gr.Slider(0, 2, 1, step=0.05, label="Strength", scale=3, min_width=120)
            self.add_addon = gr.Button("Add", size="md", scale=1, min_width=60)

    def add_start(self) -> None:
        add = self.add
        with gr.Accordion("Start from an image (img2img, inpainting)", open=False) as self.start:
            add(painted=painter())
            self.add_option("strength")
            self.add_section("mask")
            self.add_section("outpaint")
        self.folds.append((self.start, ["painted"]))

    def add_regions(self) -> None:
        with gr.Accordion("Regions", open=False) as fold:
            self.about_regions = gr.HTML(ABOUT_REGIONS, elem_classes="examples")
            self.add_section("regions")
            masks = paintable_list(
                *("Region masks, one for each region, white where it works", "regions", "Paint the region's mask"),
                "Paint where the region is, add the painting, and go on with the next region.",
                size=20,
            )
            self.add(region_masks=masks)
        self.folds.append((fold, ["region_ratios", "region_masks"]))

    def add_control(self) -> None:
        with gr.Accordion("ControlNet", open=False) as fold:
            self.control = ControlBuilder(self.models)
            self.add_option("control")
            self.add(control_images=self.control.images)
        self.folds.append((fold, ["control", "control_images"]))

    def add_axes(self) -> None:
        with gr.Accordion("X/Y/Z plot", open=False) as fold:
            self.add(**axis_widgets())
        self.folds.append((fold, list(NO_AXES)))

    def add_size(self) -> None:
        size = usual_size(self.models.checkpoint())
        with gr.Row(elem_classes="together"):
            self.add_option("width", value=size, min_width=80)
            self.add_option("height", value=size, min_width=80)
            self.swap = gr.Button("⇄ Swap", size="md", min_width=70)
            self.add(shape=gr.Dropdown([*SHAPES, CUSTOM], value="1:1", label="Aspect ratio", min_width=110))

    def add_sampling(self) -> None:
        self.add_section("sampling")
        with gr.Row():
            self.add_section("batch")
            self.add(batch_size=gr.Slider(1, 4, 1, step=1, label="Batch size", min_width=120))

    def add_seed(self) -> None:
        with gr.Row(elem_classes="together"):
            self.add_option("seed", scale=2)
            self.dice = gr.Button("🎲 Random", size="md", min_width=90)
            self.same_seed = gr.Button("♻ Same seed", size="md", min_width=90)

    def add_hires(self) -> None:
        info = "generates at this size first, then larger"
        self.add(hires=gr.Checkbox(False, label="Hires fix", info=info))
        with gr.Row(visible=False) as self.hires_row:
            for row in section("hires"):
                choices = {"choices": upscalers(self.models)} if row.name == "hires_upscaler" else {}
                self.add_option(row.name, **choices)

    def add_rare(self) -> None:
        with gr.Accordion("Advanced", open=False) as fold:
            self.add_section("advanced")
            choices = [("As the model is marked", ""), *((name, name) for name in PREDICTIONS)]
            info = "for a model of v-prediction or zero terminal SNR that is not marked as one"
            self.add(prediction=gr.Dropdown(choices, value="", label="Prediction", info=info, min_width=120))
            self.reset = gr.Button("Reset the form", size="sm", min_width=120)
        self.folds.append((fold, [*(row.name for row in section("advanced")), "prediction"]))
        for name, title in (("compatibility", "Same image as another program"), ("faster", "Faster, less exact")):
            with gr.Accordion(title, open=False) as fold:
                self.add_section(name)
            self.folds.append((fold, [row.name for row in section(name)]))

    def add_section(self, name: str) -> None:
        """Adds the widgets of a section of the table, two a row."""
        rows = section(name)
        for i in range(0, len(rows), 2):
            with gr.Row():
                for row in rows[i : i + 2]:
                    self.add_option(row.name)

    def add_option(self, name: str, **changes: Any) -> None:
        (row,) = (one for one in OPTIONS if one.name == name)
        self.add(**{name: widget_for(row, **changes)})

    def inputs(self) -> list[gr.Component]:
        return list(self.widgets.values())

    def used_folds(self) -> list[tuple[gr.Accordion, list[gr.Component]]]:
        """Returns each accordion with the widgets that take part in an image even where it is closed."""
        return [(fold, [self.widgets[name] for name in names]) for fold, names in self.folds]

    def unused(self, *values: object) -> list[str]:
        """Returns a sentence on what a person has set below the image to start from and `request` leaves out."""
        given = dict(zip(self.widgets, values))
        if not given["painted"]["image"]:
            return needless("Without an image to start from", ["outpaint"] if given["outpaint"] else [])
        if given["painted"]["mask"]:
            return []
        left_out = [name for name in MASK_DEFAULTS if not (given["outpaint"] and name != "invert_mask")]
        changed = [name for name in left_out if given[name] != self.widgets[name].value]
        return needless("Without a painted mask", changed)

    def request(self, *values: object) -> GenerateRequest:
        """Returns the request of the widgets, whose values come in the order of `inputs`. Raises UserError."""
        given = dict(zip(self.widgets, values))
        chosen = {name: given[name] for name in SETTINGS}
        for name in SEEDS:
            chosen[name] = seed_of(chosen[name])
        chosen["eta"] = eta_of(chosen["eta"])
        for name in given["style"] or []:
            chosen["prompt"], chosen["negative_prompt"] = find_style(name).apply(
                chosen["prompt"], chosen["negative_prompt"]
            )
        if not given["hires"]:
            chosen |= HIRES_DEFAULTS
        chosen["num_images"] *= given["batch_size"]
        painted = given["painted"]
        if not painted["image"]:
            chosen |= {"outpaint": 0, "outpaint_sides": ", ".join(SIDES)}
        if not painted["mask"]:
            chosen |= {"invert_mask": False} if chosen["outpaint"] else MASK_DEFAULTS
        image, mask = (decode_image(painted[part]) if painted[part] else None for part in ("image", "mask"))
        return GenerateRequest(
            GenerationSettings(**chosen),
            given["checkpoint"],
            image,
            mask,
            batch_size=given["batch_size"],
            vae=given["vae"],
            prediction=given["prediction"],
            control_images=[decode_image(url) for url in given["control_images"] or ()],
            axes=axes_from(given),
            region_masks=[decode_image(url) for url in given["region_masks"] or ()],
        )

    def fill(self, text: str) -> tuple[dict[gr.Component, object], list[str]]:
        """Returns the values of widgets from an image's infotext, and a note on everything that they cannot show.

        Raises UserError where the text holds no settings.
        """
        values, notes = form_values(text)
        values = OFF | {"num_images": 1, "batch_size": 1, "style": [], "shape": CUSTOM} | NO_AXES | values
        values |= {name: "" if values.get(name) is None else str(values[name]) for name in TEXTS}
        values["hires"] = values["hires_scale"] > 1
        if not values["hires"]:
            del values["hires_scale"]
        predicts = parse_infotext(text).get("Prediction", "")
        values["prediction"] = predicts if predicts in PREDICTIONS else ""
        if model := parse_infotext(text).get("Model"):
            try:
                found = self.models.find("checkpoint", model)
                values["checkpoint"] = next(
                    name for name, path in self.models.names("checkpoint").items() if path == found
                )
            except UserError:
                notes = [*notes, f"The model {model} of this image is not here."]
        return {self.widgets[name]: value for name, value in values.items() if name in self.widgets}, notes

    def listed(self) -> list[gr.Component]:
        """Returns the components whose lists `lists` gives."""
        return [
            self.widgets["checkpoint"],
            self.widgets["vae"],
            self.addon,
            self.control.model,
            self.widgets["hires_upscaler"],
            self.about,
        ]

    def lists(self, checkpoint: str, vae: str) -> dict[gr.Component, object]:
        """Returns the lists of models as of now. checkpoint, vae: the current choices, which are kept if they exist."""
        names, vaes = list(self.models.names("checkpoint")), vae_names(self.models)
        chosen = checkpoint if checkpoint in names else self.models.default_checkpoint()
        known = vae if vae in {value for _, value in vaes} else ""
        return {
            self.widgets["checkpoint"]: gr.Dropdown(names, value=chosen),
            self.widgets["vae"]: gr.Dropdown(vaes, value=known, visible=len(vaes) > 1),
            self.addon: gr.Dropdown(addons(self.models)),
            self.widgets["hires_upscaler"]: gr.Dropdown(upscalers(self.models)),
            self.control.model: gr.Dropdown(list(self.models.names("ControlNet"))),
            self.about: about_model(self.models, chosen),
        }


def section(name: str) -> list[Option]:
    return [row for row in OPTIONS if row.widget is not None and row.widget.section == name]


def widget_for(row: Option, **changes: Any) -> gr.Component:
    """Returns the widget of a row of the table. changes: arguments of the Gradio component that replace the row's."""
    hint = row.widget
    assert hint is not None
    value = FIRST_VALUES.get(row.name, row.default if hint.default is None else hint.default)
    common: dict[str, Any] = {"label": hint.label, "min_width": 120, "value": value}
    if hint.info is not None:
        common["info"] = hint.info
    low, high = row.low if hint.low is None else hint.low, row.high if hint.high is None else hint.high
    if hint.kind == "slider":
        return gr.Slider(low, high, step=hint.step, **common | changes)
    if hint.kind == "number":
        return gr.Number(minimum=low, step=hint.step, precision=0 if row.type is int else None, **common | changes)
    if hint.kind == "checkbox":
        return gr.Checkbox(**common | changes)
    if hint.kind == "dropdown":
        choices = CHOICES.get(row.name) or [(label, value) for value, label in (row.choices or {}).items()]
        return gr.Dropdown(**{"choices": choices} | common | changes)
    return gr.Textbox(placeholder=hint.placeholder, **common | {"value": value or ""} | changes)


def seed_of(text: str) -> int | None:
    """Returns the seed; None, a random one, for an empty text. Raises UserError for a text that is no integer."""
    try:
        return int(text) if text.strip() else None
    except ValueError as error:
        raise UserError(f"the seed is {text[:30]!r}: use a whole number, or nothing for a random one.") from error


def eta_of(text: str) -> float | None:
    """Returns eta; None, the sampler's own, for an empty text. Raises UserError for a text that is no number."""
    try:
        return float(text) if text.strip() else None
    except ValueError as error:
        raise UserError(f"eta is {text[:30]!r}: use a number from 0 to 1, or nothing for the sampler's own.") from error


def usual_size(checkpoint: Path) -> int:
    """Returns the training size of a checkpoint in pixels, from its header: 512 unless a file of ours names another."""
    try:
        with safe_open(checkpoint, "pt") as file:
            size = json.loads(file.metadata()["sd_sizes"])["image_size"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return IMAGE_SIZE
    return size if type(size) is int and 0 < size <= MAX_SIDE else IMAGE_SIZE


def size_like(usual: int, width: float, height: float) -> tuple[int, int]:
    """Returns a (width, height) of an image's aspect ratio and of the model's area; square without an image."""
    if not (width and height):
        return usual, usual
    scale = usual / (width * height) ** 0.5
    return tuple(max(8, round(side * scale / 8) * 8) for side in (width, height))


def vae_names(models: Models) -> list[tuple[str, str]]:
    """Returns (label, name) of the separate VAEs, after the checkpoint's own."""
    found: dict[str, Path] = {}
    with suppress(KeyError):
        found = models.names("VAE")
    return [("Automatic", ""), *((name, name) for name in found)]


def upscalers(models: Models) -> list[tuple[str, str]]:
    """Returns (label, name) of what enlarges for the second pass."""
    return [(label, name) for name, label in HIRES_UPSCALERS.items()] + [
        (name, name) for name in models.names("upscaler")
    ]


def is_bundled(models: Models, checkpoint: str) -> bool:
    with suppress(UserError):
        return models.checkpoint(checkpoint) == BUNDLED
    return False


def style_names(emoji: bool) -> list[str]:
    """Returns the names of all styles, those for the model first."""
    return [style.name for style in (*styles_for(emoji), *styles_for(not emoji))]


def about_model(models: Models, checkpoint: str) -> str:
    """Returns a description of the bundled model with example prompts; "" for any other model."""
    if not is_bundled(models, checkpoint):
        return ""
    buttons = "".join(f'<button type="button">{prompt}</button>' for prompt in EXAMPLES)
    return ABOUT_BUNDLED.replace("BUTTONS", buttons)
