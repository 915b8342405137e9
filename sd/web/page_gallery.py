"""What was drawn: all pictures, newest first, the settings of the one picked, and these back into the form."""

import base64
import io

import gradio as gr

from sd.infotext import read_infotext
from sd.web.job import Job, Missing
from sd.web.jobs import Jobs
from sd.web.limits import decode_picture
from sd.web.page_follow import EVENT, plainly
from sd.web.page_form import Form
from sd.web.page_parts import settings_file, shown
from sd.web.page_stage import address_of, thumb

MOST = 60  # pictures shown


class Gallery:
    """Placed where it is made. Its pictures are jobs' files, so a server that starts anew shows them again."""

    def __init__(self, jobs: Jobs, form: Form):
        self.jobs, self.form = jobs, form
        with gr.Group(visible=False) as self.detail:
            self.picture = gr.HTML(elem_classes="picked")
            self.text = gr.Textbox(label="Settings of this picture", lines=4, interactive=False, buttons=["copy"])
            with gr.Row():
                self.use = gr.Button("Use these settings", size="md", min_width=120)
                self.start = gr.Button("Start from this picture", size="md", min_width=120)
                self.close = gr.Button("Close", size="md", min_width=80)
        gr.Markdown("### Gallery")
        self.thumbs = shown("gallery")
        self.file = settings_file()
        self.picked = gr.State("")
        self.connect()

    def connect(self) -> None:
        widgets = self.form.widgets
        self.pick_from(self.thumbs)
        self.close.click(lambda: gr.Group(visible=False), outputs=self.detail, **EVENT)
        self.use.click(plainly(self.form.fill), self.text, self.form.inputs(), **EVENT)
        self.file.upload(plainly(self.fill_from_file), self.file, self.form.inputs(), **EVENT)
        self.start.click(plainly(self.as_start), self.picked, [widgets["painted"], self.form.start], **EVENT)

    def pick_from(self, place: gr.HTML) -> None:
        """Lets the pictures in another place be picked as well."""
        place.select(plainly(self.pick), None, [self.picked, self.detail, self.picture, self.text], **EVENT)

    def pick(self, event: gr.EventData) -> tuple:
        job, name = self.find(event.picture)
        image = f'<img src="{address_of(job, name)}" alt="The picture picked">'
        return event.picture, gr.Group(visible=True), image, read_infotext(job.file(name))

    def find(self, picked: str) -> tuple[Job, str]:
        """picked: "job/file". Raises Missing."""
        id, _, name = picked.partition("/")
        job = self.jobs.get(id)
        if not job.file(name).is_file():
            raise Missing("this picture is no longer there.")
        return job, name

    def as_start(self, picked: str) -> tuple[dict, gr.Accordion]:
        job, name = self.find(picked)
        picture = base64.b64encode(job.file(name).read_bytes()).decode()
        return {"picture": f"data:image/png;base64,{picture}", "mask": ""}, gr.Accordion(open=True)

    def fill_from_file(self, url: str) -> dict:
        return self.form.fill(read_infotext(io.BytesIO(decode_picture(url))))

    def html(self) -> str:
        pictures = [
            thumb(job, name, text)
            for job in self.jobs.list()
            for name, text in zip(job.result.get("images", ()), job.result.get("infotexts", ()))
        ]
        return "".join(pictures[:MOST]) or "<p>What you draw stays here.</p>"
