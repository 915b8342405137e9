"""A fine-tuning job: trains an embedding or a LoRA on a few images."""

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
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.job import TRAIN, Cancelled, Job, Skipped
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs, Tell

METHODS = {"ti": "embedding", "lora": "LoRA"}  # DreamBooth trains a whole checkpoint: scripts/train_dreambooth.py
MIN_IMAGES, MAX_IMAGES = 2, 30
MAX_STEPS = 5000
NAME = re.compile(r"[A-Za-z0-9][\w-]{1,39}", re.ASCII)
CURVE_POINTS = 80
NOTE = "note: "  # the beginning of a message of the training that the page repeats: the others are its progress


@dataclass
class FineTuneRequest:
    """A request to fine-tune.

    name: of the result, and the word that prompts use. class_word: what the subject is, such as "dog", or "". steps:
    None for the method's default. images: files, as bytes, that `limits` has checked. page: the open page that sent
    the request and shows the job; "" for the API.
    """

    name: str
    images: list[bytes]
    method: str = "lora"
    kind: str = "object"
    class_word: str = ""
    steps: int | None = None
    checkpoint: str = ""
    page: str = ""


def submit_finetune(jobs: Jobs, models: Models, request: FineTuneRequest) -> Job:
    """Queue a fine-tuning job. Raises UserError for what cannot be trained, Busy where the queue is full."""
    check_finetune(models, request)
    values = {key: value for key, value in asdict(request).items() if key != "images"}
    with jobs.changed:  # so that of two requests at the same moment the second sees the first
        check_not_training(jobs, request)
        return jobs.submit(TRAIN, values, {f"photo-{i:02}": data for i, data in enumerate(request.images)})


def check_finetune(models: Models, request: FineTuneRequest) -> None:
    if request.method not in METHODS or request.kind not in KINDS:
        raise UserError("unknown method or kind; choose lora or ti, and object or style.")
    if not NAME.fullmatch(request.name):
        raise UserError("invalid name: use 2 to 40 letters, digits, - and _, such as my-dog.")
    if request.method == "ti" and is_known_word(request.name):
        raise UserError(f"the model knows the word {request.name} already: choose another, such as my-{request.name}.")
    if request.name in models.names(METHODS[request.method]):
        raise UserError(f"there is a {METHODS[request.method]} named {request.name} already: choose another name.")
    if not MIN_IMAGES <= len(request.images) <= MAX_IMAGES:
        raise UserError(f"{count_images(len(request.images))}: 5 to 15 are best, {MIN_IMAGES} to {MAX_IMAGES} will do.")
    if request.steps is not None:
        check_whole("steps", request.steps, 1, MAX_STEPS)
    if not re.fullmatch(r"[\w -]{0,40}", request.class_word):
        raise UserError("invalid class word: use a word or two for what it is, such as dog.")
    models.checkpoint(request.checkpoint)


def check_not_training(jobs: Jobs, request: FineTuneRequest) -> None:
    """Raises UserError where a waiting or running job is going to write the same file."""
    for job in jobs.live.values():
        same = job.kind == TRAIN and (job.request["name"], job.request["method"]) == (request.name, request.method)
        if same and not job.has_ended:
            raise UserError(f"{request.name} is being trained already: wait for it, cancel it, or choose another name.")


def count_images(count: int) -> str:
    return "no image was given" if count == 0 else "1 image was given" if count == 1 else f"{count} images were given"


def default_steps(method: str, image_size: int) -> int:
    """Return how many steps a method trains by default on a model of that image size in pixels."""
    return (TINY if image_size <= SMALL else LARGE)[method]["steps"]


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """Return the server's one tokenizer, which takes a moment to load."""
    return Tokenizer()


def is_known_word(name: str) -> bool:
    """Return whether the vocabulary has a token for exactly this word, so that it cannot name something new."""
    return len(tokenizer().encode(name)) == 1


class FineTuner:
    """A `Run` that fine-tunes with the generator's loaded checkpoint, which is unchanged afterwards."""

    def __init__(self, generator: ImageGenerator):
        self.generator = generator

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Return {"files", "sheet" (one of them), "say" (what a prompt needs to use the result), "prompt" (to try it),
        "step" (whose weights were taken), "steps" (of the whole training), "rule", "warnings", "notes"}.
        """
        request = job.request
        method, name, kind = request["method"], request["name"], METHODS[request["method"]]
        photos = job.folder / "photos"
        photos.mkdir()
        for path in sorted(job.folder.glob("photo-*")):
            path.rename(photos / f"{path.name}.png")  # in any format: it is opened by its content
        pipe = self.generator.load(request["checkpoint"])
        given = {"kind": request["kind"], "class_word": request["class_word"] or None, "steps": request["steps"]}
        recipe = recipe_for(method, pipe, name, **given)
        output = self.generator.models.folders[kind] / f"{name}.safetensors"
        messages: list[str] = []
        try:
            result = finetune(
                method,
                photos,
                name,
                pipe,
                recipe,
                TrainingReporter(job, tell),
                job.folder / "run",
                output,
                messages.append,
            )
        except KeyboardInterrupt as stop:  # the loop's own, once it has stopped
            raise Cancelled from stop
        self.generator.models.refresh()
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
            "notes": [one.removeprefix(NOTE) for one in messages if one.startswith(NOTE)],
        }


class TrainingReporter:
    """An `on_event` that adds what the page shows: the loss curves so far and the newest preview."""

    def __init__(self, job: Job, tell: Tell):
        self.job, self.tell = job, tell
        self.losses: list[float] = []
        self.held_out: list[tuple[int, float]] = []

    def __call__(self, event: dict) -> None:
        self.losses.append(event["loss"])
        values = {"step": event["step"], "steps": event["steps"], "losses": smooth_losses(self.losses)}
        if event["held_out"] is not None:
            self.held_out.append((event["step"], event["held_out"]))
        if event["preview"] is not None:
            shutil.copyfile(event["preview"], self.job.folder / "preview.png")
            values |= {"preview": "preview.png", "shown": event["step"]}
        with suppress(Skipped):  # a training has no next image to continue with
            self.tell(values | {"held_out": self.held_out})


def smooth_losses(values: list[float]) -> list[tuple[int, float]]:
    """Return (step, mean loss of the steps up to it), CURVE_POINTS of them at most."""
    width = math.ceil(len(values) / CURVE_POINTS)
    parts = [(i, values[i : i + width]) for i in range(0, len(values), width)]
    return [(i + len(part), round(sum(part) / len(part), 5)) for i, part in parts]
