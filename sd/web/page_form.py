"""The form: what to draw, as widgets, and the way from them to a request and from a picture's text to them."""

import json
from dataclasses import fields
from pathlib import Path

import gradio as gr
from safetensors import SafetensorError, safe_open

from sd.errors import UserError
from sd.infotext import parse_infotext
from sd.samplers import SAMPLERS
from sd.settings import HIRES_UPSCALERS, SCHEDULE_LABELS, Settings
from sd.sizes import IMAGE_SIZE
from sd.step_caching import MAX_EVERY
from sd.token_merging import MAX_RATIO
from sd.web.asking import Asked
from sd.web.limits import decode_picture
from sd.web.masks import MaskOptions
from sd.web.models import Models
from sd.web.page_parts import painter

SETTINGS = [field.name for field in fields(Settings)]
SEEDS = {"seed": "Seed", "variation_seed": "Variation seed"}  # texts: a browser's numbers are exact to 2^53 only


class Form:
    """Its widgets are placed where it is made. widgets: by the names of `Settings`' fields, and some more."""

    def __init__(self, models: Models):
        self.models = models
        self.widgets: dict[str, gr.Component] = {}
        size = usual_size(models.checkpoint())
        add = self.add
        add(prompt=gr.Textbox("a red apple", label="Prompt", lines=2, placeholder="What to draw"))
        add(negative_prompt=gr.Textbox("", label="Negative prompt", lines=1, placeholder="What to stay away from"))
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", size="md", scale=2, min_width=100)
            self.cancel = gr.Button("Cancel", variant="stop", size="md", interactive=False, min_width=90)
            self.write = gr.Button("Write my prompt", size="md", min_width=170)
        with gr.Accordion("Start from a picture", open=False) as self.start:
            add(painted=painter())
            with gr.Row():
                add(strength=gr.Slider(0, 1, 0.8, step=0.05, label="How much to change"))
                add(mask_blur=gr.Slider(0, 64, 4, step=1, label="Soften the mask"))
            add(only_masked=gr.Checkbox(label="Draw the masked part alone, at full size"))
        with gr.Row():
            add(
                checkpoint=gr.Dropdown(
                    list(models.names("checkpoint")), value=models.default_checkpoint(), label="Model"
                )
            )
            add(width=gr.Number(size, label="Width", precision=0, step=8, minimum=8, min_width=80))
            add(height=gr.Number(size, label="Height", precision=0, step=8, minimum=8, min_width=80))
        with gr.Row():
            self.addon = gr.Dropdown(addons(models), value=None, label="LoRA or embedding", scale=3, min_width=120)
            self.addon_strength = gr.Slider(0, 2, 1, step=0.05, label="Strength", scale=3, min_width=120)
            self.add_addon = gr.Button("Add", size="md", scale=1, min_width=60)
        with gr.Row():
            add(
                sampler=gr.Dropdown(
                    [(one.label, name) for name, one in SAMPLERS.items()], value="ddpm", label="Sampler"
                )
            )
            schedules = [("The sampler's own", ""), *((label, name) for name, label in SCHEDULE_LABELS.items())]
            add(schedule=gr.Dropdown(schedules, value="", label="Schedule"))
        with gr.Row():
            add(steps=gr.Slider(1, 150, 30, step=1, label="Steps"))
            add(guidance_scale=gr.Slider(0, 20, 7.5, step=0.1, label="Guidance"))
        with gr.Row():
            add(seed=gr.Textbox("", label="Seed", placeholder="any"))
            add(num_images=gr.Slider(1, 16, 1, step=1, label="Pictures"))
        self.add_rare()

    def add(self, **widgets: gr.Component) -> None:
        self.widgets |= widgets

    def add_rare(self) -> None:
        add = self.add
        with gr.Accordion("More", open=False):
            with gr.Row():
                add(clip_skip=gr.Slider(1, 12, 1, step=1, label="Clip skip"))
                add(guidance_rescale=gr.Slider(0, 1, 0, step=0.05, label="Guidance rescale"))
            with gr.Row():
                add(variation_seed=gr.Textbox("", label="Variation seed", placeholder="any"))
                add(variation_strength=gr.Slider(0, 1, 0, step=0.01, label="Variation strength"))
            with gr.Row():
                add(hires_scale=gr.Slider(1, 4, 1, step=0.25, label="Second pass: scale"))
                add(hires_strength=gr.Slider(0, 1, 0.7, step=0.05, label="Second pass: strength"))
                add(hires_steps=gr.Slider(0, 150, 0, step=1, label="Second pass: steps (0: as many as the first)"))
                choices = [(label, name) for name, label in HIRES_UPSCALERS.items()]
                add(hires_upscaler=gr.Dropdown(choices, value="latent", label="Second pass: upscaler"))
            add(tiling=gr.Checkbox(label="Edges that continue at the opposite ones"))
        with gr.Accordion("Sooner, less exactly", open=False):
            with gr.Row():
                add(guidance_start=gr.Slider(0, 1, 0, step=0.05, label="Guidance from"))
                add(guidance_end=gr.Slider(0, 1, 1, step=0.05, label="Guidance until"))
            with gr.Row():
                add(step_cache=gr.Slider(1, MAX_EVERY, 1, step=1, label="Step cache"))
                add(token_merging=gr.Slider(0, MAX_RATIO, 0, step=0.05, label="Token merging"))

    def inputs(self) -> list[gr.Component]:
        return list(self.widgets.values())

    def asked(self, *values: object) -> Asked:
        """What the widgets say, their values given in the order of `inputs`. Raises UserError."""
        given = dict(zip(self.widgets, values))
        chosen = {name: given[name] for name in SETTINGS}
        for name in SEEDS:
            chosen[name] = seed_of(chosen[name])
        painted = given["painted"]
        image, mask = (decode_picture(painted[part]) if painted[part] else None for part in ("picture", "mask"))
        options = MaskOptions(blur=given["mask_blur"], only_masked=given["only_masked"])
        return Asked(Settings(**chosen), given["checkpoint"], image, mask, mask_options=options)

    def fill(self, text: str) -> dict[gr.Component, object]:
        """The widgets with what a picture's text says. Raises UserError where it says nothing."""
        found = parse_infotext(text)
        values = vars(Settings.from_infotext(text)) | {"num_images": 1}
        values |= {name: str(values[name]) if label in found else "" for name, label in SEEDS.items()}
        if found.get("Model") in self.models.names("checkpoint"):
            values["checkpoint"] = found["Model"]
        return {self.widgets[name]: value for name, value in values.items() if value is not None}

    def lists(self) -> dict[gr.Component, object]:
        """The lists as the folders are now."""
        return {
            self.widgets["checkpoint"]: gr.Dropdown(choices=list(self.models.names("checkpoint"))),
            self.addon: gr.Dropdown(choices=addons(self.models)),
        }


def seed_of(text: str) -> int | None:
    """None, for any, where nothing is given."""
    try:
        return int(text) if text.strip() else None
    except ValueError as error:
        raise UserError(f"the seed is {text[:30]!r}: use a whole number, or nothing for any.") from error


def usual_size(checkpoint: Path) -> int:
    """Pixels that a checkpoint was made for, read off its header alone: our files say it, all others are like v1-5."""
    try:
        with safe_open(checkpoint, "pt") as file:
            return json.loads(file.metadata()["sd_sizes"])["image_size"]
    except (OSError, SafetensorError, KeyError, TypeError):
        return IMAGE_SIZE


def size_like(usual: int, width: float, height: float) -> tuple[int, int]:
    """(width, height) of a picture's shape, of the area that the model was made for."""
    scale = usual / (width * height) ** 0.5
    return tuple(max(8, round(side * scale / 8) * 8) for side in (width, height))


def addons(models: Models) -> list[tuple[str, str]]:
    """(what to show, what to put into a prompt but its strength)."""
    loras = [(f"{name} (LoRA)", f"<lora:{name}:STRENGTH>") for name in models.names("LoRA")]
    return loras + [(f"{name} (embedding)", f"({name}:STRENGTH)") for name in models.names("embedding")]


def with_addon(prompt: str, addon: str | None, strength: float) -> str:
    """A LoRA's tag, or an embedding's word with its weight, at the prompt's end."""
    if not addon:
        raise UserError("there is nothing to add yet: choose a LoRA or an embedding, or teach one.")
    return f"{prompt.rstrip(', ')}, {addon.replace('STRENGTH', f'{strength:g}')}".removeprefix(", ")
