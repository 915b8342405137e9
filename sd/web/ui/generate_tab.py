"""The txt2img/img2img tab: form, progress and results."""

from dataclasses import replace
from html import escape

import gradio as gr

from sd.adapters.lora_tags import TAG
from sd.cli.requests import expand_request
from sd.pipeline.noise import random_seed
from sd.prompts.enhance import enhance_prompt
from sd.prompts.llm import find_endpoint
from sd.prompts.regions import parse_regions
from sd.prompts.weighting import CHUNK, split_chunks
from sd.utils.errors import UserError
from sd.web.jobs.finetune import tokenizer
from sd.web.jobs.job import GENERATE, Missing
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.submit import submit_request
from sd.web.problems import printable
from sd.web.ui.addons import with_addon, words_for
from sd.web.ui.components import followed
from sd.web.ui.control import unadded
from sd.web.ui.follow import EVENT, PRESS, JobFollower, carried, say, sentence, show_errors
from sd.web.ui.form import CUSTOM, Form, about_model, is_bundled, seed_of, size_like, usual_size
from sd.web.ui.gallery import Gallery
from sd.web.ui.job_status import generation_panel
from sd.web.ui.keep import keep_form, keep_images, open_used, with_page

# Widgets that the browser keeps itself, with the keys of their scripts.
IMAGES = {"painted": "start", "control_images": "control", "region_masks": "regions"}
KNOW_SIZE = "(...size) => { sd.size = size; }"  # of a painting on the page
NOTES = "notes"  # in a job's result: sentences for the user


class GenerateTab:
    """The tab, placed where it is created. `connect` adds the events that need the whole page."""

    def __init__(self, jobs: Jobs, models: Models):
        self.jobs, self.models = jobs, models
        self.followed = JobFollower(jobs, GENERATE, generation_panel)
        self.page = gr.Textbox(visible=False)  # its id, which the browser sends with each press
        # The last enhanced prompt and its title. A gr.State would keep a connection of each open page busy, and a
        # browser has six to a server: with six pages open none would get an answer any more.
        self.enhanced = [gr.Textbox("", visible=False), gr.Textbox("", visible=False)]
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=320):
                self.form = Form(models)
            with gr.Column(scale=6, min_width=320):
                self.stage = followed(GENERATE)
                self.gallery = Gallery(jobs, self.form)
        self.connect_form()
        self.connect_sizes()
        self.connect_seed()

    def connect_form(self) -> None:
        form, widgets = self.form, self.form.widgets
        prompt, checkpoint = widgets["prompt"], widgets["checkpoint"]
        form.control.connect(widgets["control"])
        form.add_addon.click(show_errors(self.add), [prompt, form.addon, form.addon_strength], prompt, **EVENT)
        form.about.select(show_errors(self.example), None, prompt, **EVENT)
        prompt.change(self.count, prompt, form.tokens, **EVENT | {"trigger_mode": "always_last"})
        checkpoint.change(lambda name: about_model(self.models, name), checkpoint, form.about, **EVENT)
        widgets["hires"].change(lambda on: gr.Row(visible=on), widgets["hires"], form.hires_row, **EVENT)
        form.reset.click(lambda: form.defaults, None, form.inputs(), **EVENT)
        words = [prompt, widgets["negative_prompt"]]
        form.enhance.click(
            show_errors(self.enhance),
            [*words, widgets["seed"], checkpoint],
            [*words, *self.enhanced],
            **EVENT | {"concurrency_limit": 4},
        )

    def connect_sizes(self) -> None:
        form, widgets = self.form, self.form.widgets
        checkpoint, shape = widgets["checkpoint"], widgets["shape"]
        size = [widgets["width"], widgets["height"]]
        checkpoint.input(show_errors(self.usual), checkpoint, [*size, shape], **EVENT)
        widgets["painted"].upload(show_errors(self.fit), checkpoint, [*size, shape], **EVENT)
        shape.input(show_errors(self.shaped), [checkpoint, shape, *size], size, **EVENT)
        form.swap.click(None, size, [*size, shape], js=f"(width, height) => [height, width, '{CUSTOM}']")
        for side in size:
            side.input(None, None, shape, js=f"() => '{CUSTOM}'")
        gr.on([side.change for side in size], None, size, js=KNOW_SIZE, **EVENT)

    def connect_seed(self) -> None:
        seed = self.form.widgets["seed"]
        self.form.dice.click(None, None, seed, js="() => ''")
        last = f"() => sd.page('{GENERATE}')"
        self.form.same_seed.click(show_errors(self.last_seed), self.page, seed, js=last, **EVENT)

    def connect(self, page: gr.Blocks) -> None:
        form = self.form
        given = [self.page, *self.enhanced, *form.control.chosen, *form.inputs()]
        form.generate.click(show_errors(self.submit), given, None, js=with_page(GENERATE), **PRESS)
        self.stage.input(show_errors(self.show_notes), None, None, **EVENT)
        chosen = [form.widgets["checkpoint"], form.widgets["vae"]]
        size = [form.widgets["width"], form.widgets["height"]]
        page.load(None, size, None, js=KNOW_SIZE, **EVENT)
        lists = form.listed()
        loaded = keep_form(page, GENERATE, {name: one for name, one in form.widgets.items() if name not in IMAGES})
        images = {key: form.widgets[name] for name, key in IMAGES.items()}
        open_used(keep_images(loaded.then, images), form.used_folds())
        loaded.then(form.lists, chosen, lists, **EVENT).then(self.count, form.widgets["prompt"], form.tokens, **EVENT)

    def submit(
        self, page: str, enhanced: str, title: str, model: str | None, preprocessor: str, *values: object
    ) -> None:
        """Submits one job, or several where wildcards make the prompts differ. Raises UserError.

        enhanced, title: of the last enhanced prompt. model, preprocessor: the choices under ControlNet, which take no
        part.
        """
        say([*unadded(model, preprocessor), *self.form.unused(*values)])
        request = self.form.request(*values)
        request.title, request.page = title_of(request.settings.prompt, enhanced, title), page
        for one in expand_request(request.settings):
            self.followed.add(submit_request(self.jobs, self.models, replace(request, settings=one.settings)))

    def show_notes(self, event: gr.EventData) -> None:
        """Shows the notes of the jobs that have just ended, each once."""
        notes: dict[str, None] = {}
        for id in carried(event, "jobs", list):
            try:
                notes |= dict.fromkeys(self.jobs.get(str(id)).result.get(NOTES) or ())
            except Missing:
                continue
        say(notes)

    def example(self, event: gr.EventData) -> str:
        return carried(event, "prompt", str)

    def add(self, prompt: str, addon: str | None, strength: float) -> str:
        return with_addon(prompt, addon, strength, words_for(self.models, addon))

    def count(self, prompt: str) -> str:
        """Returns how many tokens the prompt, or its longest region, has, and how many fit its chunks."""
        try:
            texts = parse_regions(TAG.sub("", prompt)).texts
            chunks = max((split_chunks(tokenizer(), text) for text in texts), key=lambda one: sum(map(len, one)))
        except UserError as error:
            return escape(sentence(str(error)))
        return f"{sum(map(len, chunks))}/{CHUNK * len(chunks)} tokens"

    def usual(self, checkpoint: str) -> tuple[int, int, str]:
        size = usual_size(self.models.checkpoint(checkpoint))
        return size, size, "1:1"

    def fit(self, checkpoint: str, event: gr.EventData) -> tuple[int, int, str]:
        """Returns the size for an image's aspect ratio; square after the image was removed."""
        width, height = carried(event, "width", int), carried(event, "height", int)
        return *size_like(self.usual(checkpoint)[0], width, height), CUSTOM if width else "1:1"

    def shaped(self, checkpoint: str, shape: str, width: int, height: int) -> tuple[int, int]:
        if shape == CUSTOM:
            return width, height
        return size_like(self.usual(checkpoint)[0], *map(int, shape.split(":")))

    def last_seed(self, page: str) -> str:
        """Returns the seed of the first of the images that the page shows. Raises UserError where there are none."""
        seeds = [job.result["seeds"][0] for job in self.followed.run(page) if job.result.get("seeds")]
        if not seeds:
            raise UserError("there is no seed to use again yet: generate an image first.")
        return str(seeds[-1])

    def enhance(self, prompt: str, negative_prompt: str, seed: str, checkpoint: str) -> tuple[str, str, str, str]:
        """Enhances the prompt by an LLM, or by a style that the seed chooses if no endpoint is configured.

        Returns both prompts, then the values of `enhanced`.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty: write a word or two first.")
        chosen = random_seed() if (given := seed_of(seed)) is None else given
        emoji = is_bundled(self.models, checkpoint)
        enhanced = enhance_prompt(prompt, find_endpoint(), chosen, emoji=emoji)
        if enhanced.note:
            say([enhanced.note])
        negative = ", ".join(filter(None, [negative_prompt, enhanced.negative_prompt]))
        return enhanced.prompt, negative, enhanced.prompt, enhanced.title


def title_of(prompt: str, enhanced: str, title: str) -> str:
    """Returns the title of an enhanced prompt, as long as `prompt` still contains it; "" where there is none."""
    return printable(title) if enhanced and enhanced in prompt else ""
