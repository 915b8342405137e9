"""A job of the kind "teach": from a few pictures to an embedding or a LoRA that prompts can name."""

import math
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass

from sd.errors import UserError
from sd.settings import check_whole
from sd.training.personalize import teach
from sd.training.recipes import KINDS, recipe_for
from sd.web.drawing import Drawer
from sd.web.job import Cancelled, Job, Skipped
from sd.web.jobs import Jobs, Tell
from sd.web.models import Models

METHODS = {"ti": "embedding", "lora": "LoRA"}  # DreamBooth makes a whole checkpoint: scripts/train_dreambooth.py
FEWEST, MOST = 2, 30  # pictures
MOST_STEPS = 5000
NAME = re.compile(r"[A-Za-z0-9][\w-]{1,39}", re.ASCII)
POINTS = 80  # of a curve


@dataclass
class Lesson:
    """name: of what is learnt, the word that prompts say too. class_word: what kind of thing it is, or "".

    steps: None for the method's own. pictures: files, as bytes, that `limits` has checked.
    """

    name: str
    pictures: list[bytes]
    method: str = "lora"
    kind: str = "object"
    class_word: str = ""
    steps: int | None = None
    checkpoint: str = ""


def ask_to_teach(jobs: Jobs, models: Models, lesson: Lesson) -> Job:
    """A new job of the kind "teach". Raises UserError for what cannot be taught, Busy where the queue is full."""
    if lesson.method not in METHODS or lesson.kind not in KINDS:
        raise UserError("choose a LoRA or an embedding, of an object or a style.")
    if not NAME.fullmatch(lesson.name):
        raise UserError("give it a name of 2 to 40 letters, digits, - and _, such as my-dog.")
    if lesson.name in models.names(METHODS[lesson.method]):
        raise UserError(f"there is a {METHODS[lesson.method]} named {lesson.name} already: choose another name.")
    if not FEWEST <= len(lesson.pictures) <= MOST:
        raise UserError(f"{len(lesson.pictures)} pictures were given: 5 to 15 are best, {FEWEST} to {MOST} will do.")
    if lesson.steps is not None:
        check_whole("number of steps", lesson.steps, 1, MOST_STEPS)
    if not re.fullmatch(r"[\w -]{0,40}", lesson.class_word):
        raise UserError("say in a word or two what kind of thing it is, such as dog.")
    models.checkpoint(lesson.checkpoint)
    request = {key: value for key, value in asdict(lesson).items() if key != "pictures"}
    return jobs.submit("teach", request, {f"photo-{i:02}": data for i, data in enumerate(lesson.pictures)})


class Teacher:
    """A `Run`, with the checkpoint that the drawer has loaded, which is afterwards as it was."""

    def __init__(self, drawer: Drawer):
        self.drawer = drawer

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Its result: "files", "sheet" (of them), "say" (what a prompt says to use it), "step" (the one taken)."""
        asked = job.request
        method, name, kind = asked["method"], asked["name"], METHODS[asked["method"]]
        photos = job.folder / "photos"
        photos.mkdir()
        for path in sorted(job.folder.glob("photo-*")):
            path.rename(photos / f"{path.name}.png")  # whatever it is: what opens it looks inside
        pipe = self.drawer.load(asked["checkpoint"])
        given = {"kind": asked["kind"], "class_word": asked["class_word"] or None, "steps": asked["steps"]}
        recipe = recipe_for(method, pipe, name, **given)
        output = self.drawer.models.folders[kind] / f"{name}.safetensors"
        try:
            result = teach(method, photos, name, pipe, recipe, Reporter(job, tell), job.folder / "run", output, quiet)
        except KeyboardInterrupt as stop:  # the loop's own, once it has stopped
            raise Cancelled from stop
        self.drawer.models.refresh()
        shutil.copyfile(result.sheet, job.folder / "sheet.png")
        say = recipe.said if method == "ti" else f"{recipe.said} <lora:{name}:1>"
        return {"files": ["sheet.png"], "sheet": "sheet.png", "say": say, "step": result.advised_step}


class Reporter:
    """An `on_event` that adds what the page shows: the curves so far, and the newest preview beside the job."""

    def __init__(self, job: Job, tell: Tell):
        self.job, self.tell = job, tell
        self.losses: list[float] = []
        self.held_out: list[tuple[int, float]] = []

    def __call__(self, event: dict) -> None:
        self.losses.append(event["loss"])
        told = {"step": event["step"], "steps": event["steps"], "losses": smooth(self.losses)}
        if event["held_out"] is not None:
            self.held_out.append((event["step"], event["held_out"]))
        if event["preview"] is not None:
            shutil.copyfile(event["preview"], self.job.folder / "preview.png")
            told |= {"preview": "preview.png", "shown": event["step"]}
        with suppress(Skipped):  # there is no next picture to go on with
            self.tell(told | {"held_out": self.held_out})


def smooth(values: list[float]) -> list[tuple[int, float]]:
    """(step, mean of the steps up to it) at POINTS places at most."""
    width = math.ceil(len(values) / POINTS)
    parts = [(i, values[i : i + width]) for i in range(0, len(values), width)]
    return [(i + len(part), round(sum(part) / len(part), 5)) for i, part in parts]


def quiet(sentence: str) -> None:
    """What a script would print is on the page."""
