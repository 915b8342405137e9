"""All that a worker can do, on one device, with one checkpoint loaded for all of it."""

from sd.web.drawing import Drawer
from sd.web.job import Job
from sd.web.jobs import Tell
from sd.web.models import Models
from sd.web.teaching import Teacher


class Work:
    """A `Run` for jobs of every kind. device, precision, optimizations: as `Drawer` has them."""

    def __init__(
        self,
        models: Models,
        device: str | None = None,
        precision: str = "auto",
        optimizations: str | None = None,
    ):
        drawer = Drawer(models, device, precision, optimizations)
        self.runs = {"draw": drawer, "teach": Teacher(drawer)}

    def __call__(self, job: Job, tell: Tell) -> dict:
        return self.runs[job.kind](job, tell)
