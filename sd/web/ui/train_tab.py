"""The tab that trains: its form, and the losses and test images while it runs."""

import asyncio
from collections.abc import Callable
from html import escape

import gradio as gr

from sd.utils.errors import UserError
from sd.web.jobs.finetune import FineTuneRequest, default_steps, submit_finetune
from sd.web.jobs.job import TRAIN, Job, Missing
from sd.web.jobs.limits import decode_image
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.ui.components import followed, image_list
from sd.web.ui.follow import EVENT, PRESS, JobFollower, carried, show_errors
from sd.web.ui.form import Form, usual_size
from sd.web.ui.job_status import address_of, plain_status, queue, status_head
from sd.web.ui.job_status import cancel_button as cancel
from sd.web.ui.keep import keep_form, with_page

WIDTH, HEIGHT = 480, 160  # of the curves
NOTHING = '<p class="empty">Add 5 to 15 images of one thing or in one style, give it a name and press Train.</p>'


class TrainTab:
    """The tab, placed where it is created. form: of the other tab, whose model is trained."""

    def __init__(self, jobs: Jobs, models: Models, form: Form):
        self.jobs, self.models, self.form = jobs, models, form
        self.followed = JobFollower(jobs, TRAIN, training_panel)
        self.page = gr.Textbox(visible=False)
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=320):
                self.images = image_list("Images to train on, 5 to 15")
                with gr.Row():
                    info = "prompts use it: letters, digits, - and _"
                    self.name = gr.Textbox("", label="Name", placeholder="my-dog", info=info, min_width=120)
                    info = "a word or two; may stay empty"
                    self.class_word = gr.Textbox("", label="What it is", placeholder="dog", info=info, min_width=120)
                with gr.Row():
                    methods, kinds = [("LoRA", "lora"), ("Embedding", "ti")], [("Thing", "object"), ("Style", "style")]
                    self.method = gr.Radio(methods, value="lora", label="Method", min_width=120)
                    self.kind = gr.Radio(kinds, value="object", label="Subject", min_width=120)
                self.steps = gr.Textbox("", label="Training steps", placeholder=self.automatic("lora", ""))
                gr.HTML("The model is the one chosen under Generate.", elem_classes="hint")
                self.train = gr.Button("Train", variant="primary", size="lg", elem_id="train")
            with gr.Column(scale=6, min_width=320):
                self.stage = followed(TRAIN)

    def connect(self, page: gr.Blocks, tabs: gr.Tabs) -> None:
        widgets = self.form.widgets
        checkpoint = widgets["checkpoint"]
        fields = {"name": self.name, "class_word": self.class_word, "method": self.method, "kind": self.kind}
        fields["steps"] = self.steps
        given = [self.page, self.name, self.images, self.method, self.kind, self.class_word, self.steps, checkpoint]
        self.train.click(show_errors(self.submit), given, None, js=with_page(TRAIN), **PRESS)
        lists = self.form.listed()
        self.stage.input(self.refreshed, [checkpoint, widgets["vae"]], lists, **EVENT)
        tried = [widgets["prompt"], checkpoint, tabs]
        self.stage.select(show_errors(self.try_it), None, tried, **EVENT)
        shown = [self.method, checkpoint]
        gr.on(
            [self.method.change, checkpoint.change],
            lambda *chosen: gr.Textbox(placeholder=self.automatic(*chosen)),
            shown,
            self.steps,
            **EVENT,
        )
        keep_form(page, TRAIN, fields)

    def automatic(self, method: str, checkpoint: str) -> str:
        """Return the placeholder of the empty field for steps."""
        try:
            return f"automatic: {default_steps(method, usual_size(self.models.checkpoint(checkpoint)))}"
        except UserError:  # the model has gone
            return "automatic"

    def submit(self, page: str, name: str, urls: list[str], *values: object) -> None:
        method, kind, class_word, steps, checkpoint = values
        images = [decode_image(url) for url in urls]
        request = FineTuneRequest(
            name.strip(), images, method, kind, class_word.strip(), steps_of(steps), checkpoint, page
        )
        self.followed.add(submit_finetune(self.jobs, self.models, request))

    async def refreshed(self, checkpoint: str, vae: str) -> dict:
        """Return the lists with what has just been trained."""
        self.models.refresh()
        return await asyncio.to_thread(self.form.lists, checkpoint, vae)

    def try_it(self, event: gr.EventData) -> tuple[str, object, gr.Tabs]:
        """Open the other tab with a prompt for the result and the model that it was trained on. Raises Missing."""
        job = self.jobs.get(carried(event, "job", str))
        if "prompt" not in job.result:
            raise Missing("this training has no result to try.")
        known = job.request["checkpoint"] in self.models.names("checkpoint")
        return job.result["prompt"], job.request["checkpoint"] if known else gr.skip(), gr.Tabs(selected="generate")


def steps_of(text: str) -> int | None:
    """Return None, for the method's default, where the field is empty. Raises UserError."""
    try:
        return int(text) if text.strip() else None
    except ValueError as error:
        raise UserError(
            f"invalid number of training steps: {text[:30]!r}; use a whole number, or leave it empty for the default."
        ) from error


def training_panel(run: list[Job], before: Callable[[Job], int]) -> dict[str, str]:
    """Return HTML by place: progress, curves, the newest test images or the sheet of all, and how to use the result."""
    if not run:
        return {"head": NOTHING, "stop": "", "body": "", "queue": "", "made": ""}
    current = next((job for job in run if not job.has_ended), None)
    return {
        "head": status_head(run, current, before, training_status),
        "stop": cancel("Stop training", current) if current else "",
        "body": progress(current or run[-1]),
        "queue": queue(run, current, before),
        "made": "".join(training_result(job) for job in run if job.state == "done" and "say" in job.result),
    }


def training_status(job: Job, before: int = 0) -> str:
    if job.state == "running" and job.event.get("step", 0) == job.event.get("steps", 1):
        return "Choosing the best step"
    return plain_status(job, before)


def progress(job: Job) -> str:
    parts = [curves(job.event)] if {"losses", "held_out", "steps"} <= job.event.keys() else []
    if "sheet" in job.result:
        address = address_of(job, job.result["sheet"])
        parts.append(f'<img class="sheet" src="{address}" alt="Contact sheet, step by step">')
    elif {"preview", "shown"} <= job.event.keys():
        address = f"{address_of(job, job.event['preview'])}?{job.event['shown']}"
        parts.append(f'<img class="sheet" src="{address}" alt="Test images after step {job.event["shown"]}">')
    return "".join(parts)


def training_result(job: Job) -> str:
    """Return how to use the result in a prompt, which step's weights were taken, and a button to try it."""
    result = job.result
    taken = ""
    if {"step", "steps"} <= result.keys():
        sentences = [f"The weights after step {result['step']} of {result['steps']} were taken"]
        if "rule" in result:  # as `advice.best_step` gives it; results of earlier versions have none
            sentences = [
                f"{sentences[0]}: {result['rule']}",
                *(f"Warning: {one}" for one in result.get("warnings", ())),
                *(f"Note: {one}" for one in result.get("notes", ())),
            ]
        taken = escape(" ".join(one.rstrip(".") + "." for one in sentences))
    button = f'<button type="button" data-prompt="{job.id}">Try it</button>' if "prompt" in result else ""
    return (
        f'<div class="trained"><p><strong>Trained: use “{escape(result["say"])}” in a prompt.</strong></p>'
        f'<p class="hint">{taken}</p>{button}</div>'
    )


def curves(event: dict) -> str:
    """Return the loss on the training images and on those held out, as SVG."""
    losses, held_out = event["losses"], event["held_out"]
    values = [value for _, value in [*losses, *held_out]]
    low, high = min(values), max(values)

    def line(points: list[tuple[int, float]], name: str) -> str:
        places = [
            (step / event["steps"] * WIDTH, (high - value) / ((high - low) or 1) * HEIGHT) for step, value in points
        ]
        return f'<polyline class="{name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'

    return (
        f'<svg class="loss" viewBox="-44 -8 {WIDTH + 52} {HEIGHT + 30}" role="img" '
        f'aria-label="Loss, now {losses[-1][1]:.3f}">'
        f'<line x1="0" y1="{HEIGHT}" x2="{WIDTH}" y2="{HEIGHT}"/><line x1="0" y1="0" x2="0" y2="{HEIGHT}"/>'
        f'<text x="-6" y="10" text-anchor="end">{high:.3f}</text>'
        f'<text x="-6" y="{HEIGHT}" text-anchor="end">{low:.3f}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">{event["steps"]} steps</text>'
        f"{legend()}{line(losses, 'training')}{line(held_out, 'held-out')}</svg>"
    )


def legend() -> str:
    y = HEIGHT + 12
    return (
        f'<polyline class="training" points="0,{y} 24,{y}"/><text x="30" y="{y + 4}">training loss</text>'
        f'<polyline class="held-out" points="120,{y} 144,{y}"/><text x="150" y="{y + 4}">loss on held-out images</text>'
    )
