"""The tab that draws: the form, what is being drawn, and what was drawn."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from html import escape

import gradio as gr

from sd.chat import find_endpoint
from sd.drawings import spell_out
from sd.errors import UserError
from sd.pipeline import BUNDLED
from sd.prompt_writer import Written, write_prompts
from sd.seeds import random_seed
from sd.web.asking import ask
from sd.web.jobs import Jobs
from sd.web.models import Models
from sd.web.page_follow import EVENT, cancel, follow, plainly
from sd.web.page_form import Form, seed_of, size_like, usual_size, with_addon
from sd.web.page_gallery import Gallery
from sd.web.page_parts import shown
from sd.web.page_stage import stage


class DrawTab:
    """Placed where it is made. `connect` ties it to the page's load."""

    def __init__(self, jobs: Jobs, models: Models):
        self.jobs, self.models = jobs, models
        self.mine = gr.BrowserState([], storage_key="sd-drawing", secret="sd")  # ids of the jobs asked for last
        self.written = gr.State(None)  # what was written last
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=420):
                self.form = Form(models)
            with gr.Column(scale=6, min_width=420):
                self.stage = shown("now")
                self.gallery = Gallery(jobs, self.form)
        self.gallery.pick_from(self.stage)
        self.connect_form()

    def connect_form(self) -> None:
        form, widgets = self.form, self.form.widgets
        prompt, checkpoint = widgets["prompt"], widgets["checkpoint"]
        size = [widgets["width"], widgets["height"]]
        form.add_addon.click(plainly(with_addon), [prompt, form.addon, form.addon_strength], prompt, **EVENT)
        checkpoint.input(plainly(self.usual), checkpoint, size, **EVENT)
        widgets["painted"].upload(plainly(self.fit), checkpoint, size, **EVENT)
        words = [prompt, widgets["negative_prompt"]]
        form.write.click(
            plainly(self.write),
            [*words, widgets["seed"], checkpoint],
            [*words, self.written],
            **EVENT | {"concurrency_limit": 4},
        )

    def connect(self, page: gr.Blocks) -> None:
        form = self.form
        shows = [self.stage, form.cancel, self.gallery.thumbs]
        asked = form.draw.click(plainly(self.submit), [self.written, *form.inputs()], self.mine, **EVENT)
        followed = [
            asked.then(self.follow, self.mine, shows, **EVENT),
            page.load(self.follow, self.mine, shows, **EVENT),
        ]
        form.draw.click(None, cancels=followed, queue=False)
        form.cancel.click(self.cancel, self.mine, **EVENT)
        page.load(form.lists, outputs=[form.widgets["checkpoint"], form.addon], **EVENT)

    def submit(self, written: Written | None, *values: object) -> list[str]:
        """The ids of the jobs: one, or several where wildcards make the prompts differ."""
        asked = self.form.asked(*values)
        asked.title = title_of(asked.settings.prompt, written)
        return [
            ask(self.jobs, self.models, replace(asked, settings=one.settings)).id for one in spell_out(asked.settings)
        ]

    async def follow(self, ids: list[str]) -> AsyncIterator[tuple]:
        yield gr.skip(), gr.skip(), await asyncio.to_thread(self.gallery.html)
        async for job in follow(self.jobs, ids):
            gallery = await asyncio.to_thread(self.gallery.html) if job.has_ended else gr.skip()
            yield stage(job), gr.update(interactive=not job.has_ended), gallery

    def cancel(self, ids: list[str]) -> None:
        cancel(self.jobs, ids)

    def usual(self, checkpoint: str) -> tuple[int, int]:
        size = usual_size(self.models.checkpoint(checkpoint))
        return size, size

    def fit(self, checkpoint: str, event: gr.EventData) -> tuple[int, int]:
        return size_like(self.usual(checkpoint)[0], event.width, event.height)

    def write(self, prompt: str, negative_prompt: str, seed: str, checkpoint: str) -> tuple[str, str, Written]:
        """By a chat model where one is set, else in a style that the seed chooses."""
        if not prompt.strip():
            raise UserError("there is no idea yet: write a word or two as the prompt.")
        chosen = random_seed() if (given := seed_of(seed)) is None else given
        emoji = self.models.checkpoint(checkpoint) == BUNDLED
        written = write_prompts(prompt, find_endpoint(), chosen, emoji=emoji)
        if written.note:
            gr.Info(escape(written.note))
        return written.prompt, ", ".join(filter(None, [negative_prompt, written.negative_prompt])), written


def title_of(prompt: str, written: Written | None) -> str:
    """What was written with a prompt, as long as the prompt is still drawn: more may have been added to it."""
    return written.title if written is not None and written.prompt in prompt else ""
