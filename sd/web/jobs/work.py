"""All that a worker can do, on one device, with one checkpoint loaded for all of it."""

from sd.web.jobs.finetune import Teacher
from sd.web.jobs.generate import Drawer
from sd.web.jobs.job import Job
from sd.web.jobs.queue import Tell


class Work:
    """A `Run` for jobs of every kind, whose drawer they share."""

    def __init__(self, drawer: Drawer):
        self.runs = {"draw": drawer, "teach": Teacher(drawer)}

    def __call__(self, job: Job, tell: Tell) -> dict:
        return self.runs[job.kind](job, tell)
