"""A job of the kind "teach": training an embedding or a LoRA that prompts can name on a few images."""

import math
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache

from sd.pipeline.settings import check_whole
from sd.tokenizer import Tokenizer
from sd.training.finetune.finetune import finetune
from sd.training.finetune.recipes import KINDS, LARGE, SMALL, TINY, recipe_for
from sd.utils.errors import UserError
from sd.web.jobs.generate import Drawer
from sd.web.jobs.job import Cancelled, Job, Skipped
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs, Tell

METHODS = {"ti": "embedding", "lora": "LoRA"}  # DreamBooth makes a whole checkpoint: scripts/train_dreambooth.py
FEWEST, MOST = 2, 30  # pictures
MOST_STEPS = 5000
NAME = re.compile(r"[A-Za-z0-9][\w-]{1,39}", re.ASCII)
POINTS = 80  # of a curve


@dataclass
class Lesson:
    """name: of what is learnt, the word that prompts say too. class_word: what kind of thing it is, or "".

    steps: None for the method's own. pictures: files, as bytes, that `limits` has checked. page: the open page that
    asks, which shows its own jobs; "" for the API.
    """

    name: str
    pictures: list[bytes]
    method: str = "lora"
    kind: str = "object"
    class_word: str = ""
    steps: int | None = None
    checkpoint: str = ""
    page: str = ""


def ask_to_teach(jobs: Jobs, models: Models, lesson: Lesson) -> Job:
    """A new job of the kind "teach". Raises UserError for what cannot be trained, Busy where the queue is full."""
    check_lesson(models, lesson)
    request = {key: value for key, value in asdict(lesson).items() if key != "pictures"}
    with jobs.changed:  # so that of two requests at the same moment the second sees the first
        check_no_other_trains(jobs, lesson)
        return jobs.submit("teach", request, {f"photo-{i:02}": data for i, data in enumerate(lesson.pictures)})


def check_lesson(models: Models, lesson: Lesson) -> None:
    if lesson.method not in METHODS or lesson.kind not in KINDS:
        raise UserError("choose a LoRA or an embedding, of an object or a style.")
    if not NAME.fullmatch(lesson.name):
        raise UserError("give it a name of 2 to 40 letters, digits, - and _, such as my-dog.")
    if lesson.method == "ti" and is_known_word(lesson.name):
        raise UserError(f"the model knows the word {lesson.name} already: choose another, such as my-{lesson.name}.")
    if lesson.name in models.names(METHODS[lesson.method]):
        raise UserError(f"there is a {METHODS[lesson.method]} named {lesson.name} already: choose another name.")
    if not FEWEST <= len(lesson.pictures) <= MOST:
        raise UserError(f"{images_given(len(lesson.pictures))}: 5 to 15 are best, {FEWEST} to {MOST} will do.")
    if lesson.steps is not None:
        check_whole("number of training steps", lesson.steps, 1, MOST_STEPS)
    if not re.fullmatch(r"[\w -]{0,40}", lesson.class_word):
        raise UserError("say in a word or two what kind of thing it is, such as dog.")
    models.checkpoint(lesson.checkpoint)


def check_no_other_trains(jobs: Jobs, lesson: Lesson) -> None:
    """Raises UserError where a job that waits or runs is going to write the file that this one would write."""
    for job in jobs.live.values():
        same = job.kind == "teach" and (job.request["name"], job.request["method"]) == (lesson.name, lesson.method)
        if same and not job.has_ended:
            raise UserError(f"{lesson.name} is being trained already: wait for it, cancel it, or choose another name.")


def images_given(count: int) -> str:
    return "no image was given" if count == 0 else "1 image was given" if count == 1 else f"{count} images were given"


def usual_steps(method: str, image_size: int) -> int:
    """How many steps a method trains for on a model made for that size when nobody says otherwise."""
    return (TINY if image_size <= SMALL else LARGE)[method]["steps"]


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """One for the whole server: it takes a moment to make."""
    return Tokenizer()


def is_known_word(name: str) -> bool:
    """Whether the vocabulary has a token for exactly this word, so that it cannot stand for something new."""
    return len(tokenizer().encode(name)) == 1


class Teacher:
    """A `Run`, with the checkpoint that the drawer has loaded, which is afterwards as it was."""

    def __init__(self, drawer: Drawer):
        self.drawer = drawer

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Its result: "files", "sheet" (of them), "say" (what a prompt says to use it), "prompt" (one to try it with),
        "step" (the one whose weights were taken), "steps" (of all).
        """
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
            result = finetune(
                method, photos, name, pipe, recipe, Reporter(job, tell), job.folder / "run", output, quiet
            )
        except KeyboardInterrupt as stop:  # the loop's own, once it has stopped
            raise Cancelled from stop
        self.drawer.models.refresh()
        shutil.copyfile(result.sheet, job.folder / "sheet.png")
        tag = "" if method == "ti" else f" <lora:{name}:1>"
        return {
            "files": ["sheet.png"],
            "sheet": "sheet.png",
            "say": recipe.phrase + tag,
            "prompt": recipe.prompts[0].replace("{}", recipe.phrase) + tag,
            "step": result.best_step,
            "steps": recipe.steps,
            "rule": result.rule,
            "warnings": list(result.warnings),
        }


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
