"""The tab that looks inside a run: it records a trace of the form's prompt and shows it step by step."""

import threading
from collections.abc import Callable

import gradio as gr

from sd.cli.requests import expand_request
from sd.web.jobs.job import LOOK, Job, Missing
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.submit import submit_request
from sd.web.ui.components import followed
from sd.web.ui.control import unadded
from sd.web.ui.follow import EVENT, JobFollower, say, show_errors
from sd.web.ui.form import Form
from sd.web.ui.job_status import address_of, cancel_button, preview, queue, result_notes, status_head
from sd.web.ui.keep import with_page

NOTHING = '<p class="empty">Press Look inside to generate one image and see every step of it.</p>'
ABOUT = """
Generates one image with the settings under Generate and records what happened at each step: the noisy latent, the two
estimates, what each word does. It takes up to half as long again as the image alone.
"""


class LookTab:
    """The tab, placed where it is created. form: of the tab Generate, whose prompt and settings are used."""

    def __init__(self, jobs: Jobs, models: Models, form: Form):
        self.jobs, self.models, self.form = jobs, models, form
        self.followed = JobFollower(jobs, LOOK, self.panel)
        self.pressed: dict[str, tuple[tuple, Job]] = {}  # by page: the values of the last press, and its job
        self.lock = threading.Lock()
        self.page = gr.Textbox(visible=False)
        with gr.Row(elem_classes="together"):
            self.prompt = gr.Textbox(form.widgets["prompt"].value, label="Prompt", lines=1, scale=5, min_width=200)
            self.look = gr.Button("Look inside", variant="primary", size="lg", elem_id="look", min_width=140)
        gr.HTML(ABOUT, elem_classes="hint")
        self.stage = followed(LOOK)

    def connect(self, tab: gr.Tab) -> None:
        """Join the prompt with that of the form. tab: the one that this is placed in."""
        prompt = self.form.widgets["prompt"]
        # Not at each change of the form's: what a fast writer typed last would be overwritten by what came back.
        tab.select(None, prompt, self.prompt, js="(prompt) => prompt")
        self.prompt.input(None, self.prompt, prompt, js="(prompt) => prompt")
        given = [self.page, *self.form.control.chosen, *self.form.inputs()]
        self.look.click(show_errors(self.submit), given, None, js=with_page(LOOK), **EVENT)

    def submit(self, page: str, model: str | None, preprocessor: str, *values: object) -> None:
        """Submit one job, unless the same one of this page has not ended yet. Raises UserError.

        model, preprocessor: the choices under ControlNet, which take no part.
        """
        say([*unadded(model, preprocessor), *self.form.unused(*values)])
        with self.lock:
            known, job = self.pressed.get(page, ((), None))
            if job is not None and known == values and not job.has_ended:
                return
            request = self.form.request(*values)
            request.page, request.settings = page, next(iter(expand_request(request.settings))).settings
            job = submit_request(self.jobs, self.models, request, LOOK)
            self.pressed = {page: one for page, one in self.pressed.items() if not one[1].has_ended}
            self.pressed[page] = (values, job)
        self.followed.add(job)

    def panel(self, run: list[Job], before: Callable[[Job], int]) -> dict[str, str]:
        """Return HTML by place: progress, the queue, and the viewer of the newest trace."""
        if not run:
            return {"head": NOTHING, "stop": "", "body": "", "queue": "", "made": ""}
        current = next((job for job in run if not job.has_ended), None)
        done = [job for job in run if has_trace(job)]
        return {
            "head": status_head(run, current, before),
            "stop": cancel_button("Cancel", current) if current else "",
            "body": preview(current),
            "queue": queue(run, current, before),
            "made": viewer(done[-1], self.trace_before(done[-1])) + result_notes(done[-1:]) if done else "",
        }

    def trace_before(self, job: Job) -> Job | None:
        """Return the page's last job with a trace before this one."""
        with self.followed.lock:
            ids = self.followed.known(job.request["page"]).copy()
        for id in reversed(ids[: ids.index(job.id)]):
            try:
                if has_trace(other := self.jobs.get(id)):
                    return other
            except Missing:  # its folder was deleted
                continue
        return None


def has_trace(job: Job) -> bool:
    return job.state == "done" and "trace" in job.result


def viewer(job: Job, before: Job | None) -> str:
    """Return the viewer of a job's trace, with that of an earlier job to compare."""
    compared = f' data-before="{address_of(before, before.result["trace"])}"' if before else ""
    return f'<sd-inside data-traces="{address_of(job, job.result["trace"])}"{compared}></sd-inside>'
