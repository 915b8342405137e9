"""All that a worker can do, on one device, with one checkpoint loaded for all of it."""

from sd.web.drawing import Drawer
from sd.web.job import Job
from sd.web.jobs import Tell
from sd.web.teaching import Teacher


class Work:
    """A `Run` for jobs of every kind, whose drawer they share."""

    def __init__(self, drawer: Drawer):
        self.runs = {"draw": drawer, "teach": Teacher(drawer)}

    def __call__(self, job: Job, tell: Tell) -> dict:
        return self.runs[job.kind](job, tell)
