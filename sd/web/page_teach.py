"""The tab that teaches: a few pictures and a name; what is learnt shows while it is learnt."""

import asyncio
from collections.abc import AsyncIterator

import gradio as gr

from sd.web.job import Job
from sd.web.jobs import Jobs
from sd.web.limits import decode_picture
from sd.web.models import Models
from sd.web.page_follow import EVENT, cancel, follow, plainly
from sd.web.page_form import Form
from sd.web.page_parts import pictures
from sd.web.page_stage import address_of, frame, status
from sd.web.teaching import MOST_STEPS, Lesson, ask_to_teach

WIDTH, HEIGHT = 480, 160  # of the curves


class TeachTab:
    """Placed where it is made. form: the other tab's, whose lists gain what is taught and whose model is taught."""

    def __init__(self, jobs: Jobs, models: Models, form: Form):
        self.jobs, self.models, self.form = jobs, models, form
        self.mine = gr.BrowserState([], storage_key="sd-teaching", secret="sd")
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=420):
                self.pictures = pictures("Pictures to learn from, 5 to 15")
                with gr.Row():
                    self.name = gr.Textbox("", label="Name", placeholder="my-dog")
                    self.class_word = gr.Textbox("", label="What it is", placeholder="dog")
                with gr.Row():
                    self.method = gr.Radio([("LoRA", "lora"), ("Embedding", "ti")], value="lora", label="Method")
                    self.kind = gr.Radio([("Thing", "object"), ("Style", "style")], value="object", label="To learn")
                self.steps = gr.Number(
                    label="Teaching steps", precision=0, placeholder="as many as it takes", maximum=MOST_STEPS
                )
                with gr.Row():
                    self.teach = gr.Button("Teach", variant="primary", size="md", scale=2)
                    self.cancel = gr.Button("Stop teaching", variant="stop", size="md", interactive=False)
            with gr.Column(scale=6, min_width=420):
                self.stage = gr.HTML("<p>Give it some pictures and a name.</p>", elem_classes="now")

    def connect(self, page: gr.Blocks) -> None:
        given = [self.name, self.pictures, self.method, self.kind, self.class_word, self.steps]
        given.append(self.form.widgets["checkpoint"])
        shows = [self.stage, self.cancel, self.form.addon]
        asked = self.teach.click(plainly(self.submit), given, self.mine, **EVENT)
        followed = [
            asked.then(self.follow, self.mine, shows, **EVENT),
            page.load(self.follow, self.mine, shows, **EVENT),
        ]
        self.teach.click(None, cancels=followed, queue=False)
        self.cancel.click(lambda ids: cancel(self.jobs, ids), self.mine, **EVENT)

    def submit(self, name: str, urls: list[str], *values: object) -> list[str]:
        lesson = Lesson(name.strip(), [decode_picture(url) for url in urls], *values)
        return [ask_to_teach(self.jobs, self.models, lesson).id]

    async def follow(self, ids: list[str]) -> AsyncIterator[tuple]:
        yield gr.skip(), gr.skip(), gr.skip()  # to yield nothing at all would empty what is shown
        async for job in follow(self.jobs, ids):
            lists = gr.skip()
            if job.has_ended:
                self.models.refresh()
                lists = (await asyncio.to_thread(self.form.lists))[self.form.addon]
            yield lesson_stage(job), gr.update(interactive=not job.has_ended), lists


def lesson_stage(job: Job) -> str:
    """HTML: how far it is, the curves, the newest previews or the sheet of all of them."""
    parts = []
    if "losses" in job.event:
        parts.append(curves(job.event))
    if "sheet" in job.result:
        parts.append(
            f'<img class="sheet" src="{address_of(job, job.result["sheet"])}" alt="Contact sheet, step by step">'
        )
    elif "preview" in job.event:
        address = f"{address_of(job, job.event['preview'])}?{job.event['shown']}"
        parts.append(f'<img class="sheet" src="{address}" alt="Preview after step {job.event["shown"]}">')
    return frame(job, lesson_status(job), *parts)


def lesson_status(job: Job) -> str:
    if job.state == "done":
        return f"Learnt: say {job.result['say']} in a prompt"
    if job.state == "running" and job.event.get("step", 0) == job.event.get("steps", 1):
        return "Choosing the best step"
    return status(job)


def curves(event: dict) -> str:
    """The loss, and that of held-out pictures, as SVG."""
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
        f"{line(losses, 'learnt')}{line(held_out, 'held-out')}</svg>"
    )
