"""The gallery: all images, newest first, and their settings back into the form."""

import base64

import gradio as gr

from sd.web.jobs.job import Job, Missing
from sd.web.jobs.limits import decode_image, uploaded_infotext
from sd.web.jobs.queue import Jobs
from sd.web.ui.components import gallery, settings_file
from sd.web.ui.follow import EVENT, carried, say, show_errors
from sd.web.ui.form import Form
from sd.web.ui.job_status import images_of, thumb
from sd.web.ui.keep import open_used

MAX_SHOWN = 60  # images


class Gallery:
    """The gallery, placed where it is created. Its images are files of jobs, so it survives a restart of the server."""

    def __init__(self, jobs: Jobs, form: Form):
        self.jobs, self.form = jobs, form
        gr.Markdown("### Gallery")
        self.images = gallery()
        self.file = settings_file()
        self.connect()

    def connect(self) -> None:
        start = [self.form.widgets["painted"], self.form.start]
        filled = self.images.select(show_errors(self.fill_from_image), None, self.form.inputs(), **EVENT)
        self.images.edit(show_errors(self.as_init_image), None, start, **EVENT)
        from_file = self.file.upload(show_errors(self.fill_from_file), self.file, self.form.inputs(), **EVENT)
        for event in (filled, from_file):
            open_used(event, self.form.used_folds())

    def find(self, picked: str) -> tuple[Job, str]:
        """Return the job and the file name of "job/file". Raises Missing."""
        id, _, name = picked.partition("/")
        job = self.jobs.get(id)
        if not job.file(name).is_file():
            raise Missing("image not found: it was deleted.")
        return job, name

    def fill_from_image(self, event: gr.EventData) -> dict:
        job, name = self.find(carried(event, "image", str))
        return self.fill(uploaded_infotext(job.file(name).read_bytes(), name))

    def fill_from_file(self, url: str, event: gr.EventData) -> dict:
        return self.fill(uploaded_infotext(decode_image(url), carried(event, "name", str)))

    def fill(self, text: str) -> dict:
        filled, notes = self.form.fill(text)
        say(notes)
        return filled

    def as_init_image(self, event: gr.EventData) -> tuple[dict, gr.Accordion]:
        job, name = self.find(carried(event, "image", str))
        image = base64.b64encode(job.file(name).read_bytes()).decode()
        return {"image": f"data:image/png;base64,{image}", "mask": ""}, gr.Accordion(open=True)

    def html(self) -> str:
        thumbs = [thumb(job, name, text) for job in self.jobs.list() for name, text in images_of(job)]
        return "".join(thumbs[:MAX_SHOWN]) or "<p>What you generate stays here.</p>"
