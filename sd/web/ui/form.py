"""The form: what to generate, as widgets, and the way from them to a request and from an image's text to them."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import gradio as gr
from safetensors import SafetensorError, safe_open

from sd.checkpoints.config import IMAGE_SIZE
from sd.optimization.deepcache import MAX_EVERY
from sd.optimization.token_merging import MAX_RATIO
from sd.pipeline.infotext import parse_infotext
from sd.pipeline.metadata.settings_infotext import form_values
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.settings import HIRES_UPSCALERS, SCHEDULE_LABELS, GenerationSettings
from sd.pipeline.stable_diffusion import BUNDLED
from sd.prompts.styles import find_style, styles_for
from sd.utils.errors import UserError
from sd.web.jobs.limits import decode_picture
from sd.web.jobs.masks import MaskOptions
from sd.web.jobs.model_index import Models
from sd.web.jobs.submit import GenerateRequest
from sd.web.ui.addons import addons
from sd.web.ui.components import examples, painter

SETTINGS = [field.name for field in fields(GenerationSettings)]
SEEDS = ("seed", "variation_seed")  # texts: a browser's numbers are exact to 2^53 only
SAMPLER, STEPS = "dpmpp_2m", 25
HIRES = 2.0  # times the size, once it is switched on
SHAPES = ["1:1", "4:3", "3:2", "16:9", "3:4", "2:3", "9:16"]
CUSTOM = "Custom"
# What an image's text leaves out where it is off.
OFF = {
    one.name: one.default
    for one in fields(GenerationSettings)
    if one.name
    in (
        *("clip_skip", "guidance_rescale", "variation_strength", "hires_scale", "hires_steps", "tiling"),
        *("guidance_start", "guidance_end", "step_cache", "token_merging"),
    )
}
ABOUT_BUNDLED = """
<p>The bundled model is small: it generates emoji of 128 × 128 pixels of animals, food, vehicles, weather, plants,
things and faces, in five styles. Name the thing, then the style. For other images, put a Stable Diffusion 1.x
checkpoint into
the folder <code>weights</code>. Prompts to try:</p>
<div class="tools">BUTTONS</div>
"""
EXAMPLES = (
    "a red apple, fluent 3d emoji",
    "a cat face, noto emoji",
    "a rocket, fluent flat emoji",
    "a snowman, fxemoji",
    "a tree, fluent emoji",
)


class Form:
    """Its widgets are placed where it is made. widgets: by the names of `GenerationSettings`' fields, and some more."""

    def __init__(self, models: Models):
        self.models = models
        self.widgets: dict[str, gr.Component] = {}
        self.add_model()
        self.add_prompts()
        self.add_start()
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
        placeholder = "What to generate"
        add(prompt=gr.Textbox("a red apple", label="Prompt", lines=2, placeholder=placeholder, elem_classes="prompt"))
        self.tokens = gr.HTML(elem_classes="tokens")
        add(negative_prompt=gr.Textbox("", label="Negative prompt", lines=1, placeholder="what to avoid"))
        with gr.Row():
            kind = {"variant": "primary", "elem_id": "generate"}
            self.draw = gr.Button("Generate", size="lg", scale=2, min_width=140, **kind)
            self.write = gr.Button("Improve the prompt", size="lg", min_width=190)
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
            with gr.Row():
                info = "0 keeps the image, 1 replaces it"
                add(strength=gr.Slider(0, 1, 0.8, step=0.05, label="Denoising strength", info=info, min_width=120))
                info = "pixels at the mask's edge"
                add(mask_blur=gr.Slider(0, 64, 4, step=1, label="Mask blur", info=info, min_width=120))
            with gr.Row():
                contents = [("Original", False), ("Fill", True)]
                info = "what the masked part starts from"
                add(mask_fill=gr.Radio(contents, value=False, label="Masked content", info=info, min_width=120))
                info = "the masked part alone, at full size"
                add(only_masked=gr.Checkbox(False, label="Only masked", info=info, min_width=120))
                info = "pixels kept around it"
                padding = gr.Slider(0, 256, 32, step=4, label="Only masked padding", info=info, min_width=120)
                add(padding=padding)

    def add_size(self) -> None:
        size = usual_size(self.models.checkpoint())
        with gr.Row(elem_classes="together"):
            number = {"precision": 0, "step": 8, "minimum": 8, "min_width": 80}
            self.add(width=gr.Number(size, label="Width", **number))
            self.add(height=gr.Number(size, label="Height", **number))
            self.swap = gr.Button("⇄ Swap", size="md", min_width=70)
            self.add(shape=gr.Dropdown([*SHAPES, CUSTOM], value="1:1", label="Aspect ratio", min_width=90))

    def add_sampling(self) -> None:
        add = self.add
        with gr.Row():
            samplers = [(one.label, name) for name, one in ALL_SAMPLERS.items()]
            add(sampler=gr.Dropdown(samplers, value=SAMPLER, label="Sampler", min_width=120))
            schedules = [("Automatic", ""), *((label, name) for name, label in SCHEDULE_LABELS.items())]
            add(schedule=gr.Dropdown(schedules, value="", label="Schedule", min_width=120))
        with gr.Row():
            add(steps=gr.Slider(1, 150, STEPS, step=1, label="Steps", min_width=120))
            add(guidance_scale=gr.Slider(0, 20, 7.5, step=0.1, label="Guidance", min_width=120))
        with gr.Row():
            add(num_images=gr.Slider(1, 16, 1, step=1, label="Batch count", min_width=120))
            add(batch_size=gr.Slider(1, 4, 1, step=1, label="Batch size", min_width=120))

    def add_seed(self) -> None:
        with gr.Row(elem_classes="together"):
            self.add(seed=gr.Textbox("", label="Seed", placeholder="random", scale=2, min_width=120))
            self.dice = gr.Button("🎲 Random", size="md", min_width=90)
            self.same_seed = gr.Button("♻ Same seed", size="md", min_width=90)

    def add_hires(self) -> None:
        add = self.add
        info = "generates at this size first, then larger"
        add(hires=gr.Checkbox(False, label="Hires fix", info=info))
        with gr.Row(visible=False) as self.hires_row:
            add(hires_scale=gr.Slider(1, 4, HIRES, step=0.25, label="Upscale by", min_width=120))
            add(hires_strength=gr.Slider(0, 1, 0.7, step=0.05, label="Hires denoising", min_width=120))
            info = "0: as many as the first pass"
            add(hires_steps=gr.Slider(0, 150, 0, step=1, label="Hires steps", info=info, min_width=120))
            choices = [(label, name) for name, label in HIRES_UPSCALERS.items()]
            add(hires_upscaler=gr.Dropdown(choices, value="latent", label="Upscaler", min_width=120))

    def add_rare(self) -> None:
        add = self.add
        with gr.Accordion("Advanced", open=False):
            with gr.Row():
                info = "2 reads CLIP's last layer but one, for models trained so"
                add(clip_skip=gr.Slider(1, 12, 1, step=1, label="Clip skip", info=info, min_width=120))
                info = "over 0: less glare at high guidance"
                rescale = gr.Slider(0, 1, 0, step=0.05, label="Guidance rescale", info=info, min_width=120)
                add(guidance_rescale=rescale)
            with gr.Row():
                placeholder = {"placeholder": "random", "min_width": 120}
                add(variation_seed=gr.Textbox("", label="Variation seed", **placeholder))
                add(variation_strength=gr.Slider(0, 1, 0, step=0.01, label="Variation strength", min_width=120))
            add(tiling=gr.Checkbox(False, label="Tiling", info="edges that continue at the opposite ones"))
            self.reset = gr.Button("Reset the form", size="sm", min_width=120)
        with gr.Accordion("Faster, less exact", open=False):
            with gr.Row():
                info = "share of the steps before guidance begins"
                start = gr.Slider(0, 1, 0, step=0.05, label="Guidance start", info=info, min_width=120)
                info = "share of the steps after which it ends"
                end = gr.Slider(0, 1, 1, step=0.05, label="Guidance end", info=info, min_width=120)
                add(guidance_start=start, guidance_end=end)
            with gr.Row():
                info = "over 1: the deep part of the network is computed once in so many steps"
                cache = gr.Slider(1, MAX_EVERY, 1, step=1, label="Step cache", info=info, min_width=120)
                info = "over 0: this share of the image's tokens is merged with similar ones"
                merging = gr.Slider(0, MAX_RATIO, 0, step=0.05, label="Token merging", info=info, min_width=120)
                add(step_cache=cache, token_merging=merging)

    def inputs(self) -> list[gr.Component]:
        return list(self.widgets.values())

    def asked(self, *values: object) -> GenerateRequest:
        """What the widgets say, their values given in the order of `inputs`. Raises UserError."""
        given = dict(zip(self.widgets, values))
        chosen = {name: given[name] for name in SETTINGS}
        for name in SEEDS:
            chosen[name] = seed_of(chosen[name])
        for name in given["style"] or []:
            chosen["prompt"], chosen["negative_prompt"] = find_style(name).apply(
                chosen["prompt"], chosen["negative_prompt"]
            )
        if not given["hires"]:
            chosen["hires_scale"] = 1.0
        chosen["num_images"] *= given["batch_size"]
        painted = given["painted"]
        image, mask = (decode_picture(painted[part]) if painted[part] else None for part in ("picture", "mask"))
        return GenerateRequest(
            GenerationSettings(**chosen),
            given["checkpoint"],
            image,
            mask,
            batch_size=given["batch_size"],
            mask_options=MaskOptions(
                blur=given["mask_blur"],
                fill=given["mask_fill"],
                only_masked=given["only_masked"],
                padding=given["padding"],
            ),
            vae=given["vae"],
        )

    def fill(self, text: str) -> tuple[dict[gr.Component, object], list[str]]:
        """The widgets with what an image's text says, and a sentence for whatever they cannot show.

        Raises UserError where it says nothing.
        """
        values, notes = form_values(text)
        values = OFF | {"num_images": 1, "batch_size": 1, "style": [], "shape": CUSTOM} | values
        values |= {name: str(values.get(name, "")) for name in SEEDS}
        values["hires"] = values["hires_scale"] > 1
        if not values["hires"]:
            del values["hires_scale"]
        if model := parse_infotext(text).get("Model"):
            try:
                found = self.models.find("checkpoint", model)
                values["checkpoint"] = next(
                    name for name, path in self.models.names("checkpoint").items() if path == found
                )
            except UserError:
                notes = [*notes, f"The model {model} of this image is not here."]
        return {self.widgets[name]: value for name, value in values.items() if name in self.widgets}, notes

    def lists(self, checkpoint: str, vae: str) -> dict[gr.Component, object]:
        """The lists as the folders are now. checkpoint, vae: what is chosen; the default where it has gone."""
        names, vaes = list(self.models.names("checkpoint")), vae_names(self.models)
        chosen = checkpoint if checkpoint in names else self.models.default_checkpoint()
        known = vae if vae in {value for _, value in vaes} else ""
        return {
            self.widgets["checkpoint"]: gr.Dropdown(names, value=chosen),
            self.widgets["vae"]: gr.Dropdown(vaes, value=known, visible=len(vaes) > 1),
            self.addon: gr.Dropdown(addons(self.models)),
            self.about: about_model(self.models, chosen),
        }


def seed_of(text: str) -> int | None:
    """None, for any, where nothing is given."""
    try:
        return int(text) if text.strip() else None
    except ValueError as error:
        raise UserError(f"the seed is {text[:30]!r}: use a whole number, or nothing for a random one.") from error


def usual_size(checkpoint: Path) -> int:
    """Pixels that a checkpoint was made for, read off its header alone: our files say it, all others are like v1-5."""
    try:
        with safe_open(checkpoint, "pt") as file:
            return json.loads(file.metadata()["sd_sizes"])["image_size"]
    except (OSError, SafetensorError, KeyError, TypeError):
        return IMAGE_SIZE


def size_like(usual: int, width: float, height: float) -> tuple[int, int]:
    """(width, height) of an image's shape, of the area that the model was made for; square where there is no image."""
    if not (width and height):
        return usual, usual
    scale = usual / (width * height) ** 0.5
    return tuple(max(8, round(side * scale / 8) * 8) for side in (width, height))


def vae_names(models: Models) -> list[tuple[str, str]]:
    """(what to show, its name) of the separate VAEs, after the checkpoint's own."""
    found: dict[str, Path] = {}
    with suppress(KeyError):
        found = models.names("VAE")
    return [("Automatic", ""), *((name, name) for name in found)]


def is_bundled(models: Models, checkpoint: str) -> bool:
    with suppress(UserError):
        return models.checkpoint(checkpoint) == BUNDLED
    return False


def style_names(emoji: bool) -> list[str]:
    """All styles, those first that are for the model."""
    return [style.name for style in (*styles_for(emoji), *styles_for(not emoji))]


def about_model(models: Models, checkpoint: str) -> str:
    """What the bundled model can generate, with prompts to try; nothing for all others."""
    if not is_bundled(models, checkpoint):
        return ""
    buttons = "".join(f'<button type="button">{prompt}</button>' for prompt in EXAMPLES)
    return ABOUT_BUNDLED.replace("BUTTONS", buttons)
