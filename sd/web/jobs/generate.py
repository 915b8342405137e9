"""A generation job in the worker: saves each image at once, so that a stop loses none. The API names it "draw"."""

import copy
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sd.cli.requests import GenerationRequest
from sd.optimization.registry import parse_names
from sd.pipeline.infotext import with_setting
from sd.pipeline.inputs.masked import prepare_masked
from sd.pipeline.mask import stretch_mask
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import GenerationOutput, StableDiffusion
from sd.utils.device import device_of, dtype_of
from sd.utils.errors import DiskError
from sd.utils.files import save_png, write_png
from sd.utils.image_grid import grid
from sd.utils.images import open_image, to_rgb
from sd.web.jobs.job import Cancelled, Interrupted, Job, Skipped
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Tell

PREVIEW_AFTER = 1.0  # seconds before the first preview
PREVIEW_SHARE = 0.1  # of the time, at most


@dataclass
class InitInputs:
    """The inputs of a job. control_images: one for each ControlNet, or one for all."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    control_images: list[Image.Image] = field(default_factory=list)


@dataclass
class ImageGenerator:
    """A `Run` that generates images and keeps the last checkpoint loaded.

    models: the folders of models. device: None to choose one. precision, optimizations: the values of the scripts'
    flags --precision and --optimize.
    """

    models: Models = field(default_factory=Models)
    device: str | None = None
    precision: str = "auto"
    optimizations: str | None = None
    pipe: StableDiffusion | None = None

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Return {"files", "images" (those of the files), "seeds", "infotexts", "settings" (as used), "notes"}."""
        with self.opened(job) as (pipe, start, result), suppress(Cancelled):  # the finished images stay
            settings = GenerationSettings(**result["settings"])
            self.generate(pipe, settings, start, job, StepReporter(tell, pipe, job.folder), result)
        return result

    @contextmanager
    def opened(self, job: Job) -> Iterator[tuple[StableDiffusion, InitInputs, dict]]:
        """Load what a job names, and release the memory where it fails within the context.

        Yields the pipeline, the inputs, and the result so far, with the settings as used and without images.
        """
        request = job.request
        settings = GenerationSettings(**request["settings"])
        pipe = self.load(request["checkpoint"], request.get("vae", ""), request.get("prediction", ""))
        start = prepare_inputs(job.folder, request, settings, pipe.image_size)
        start.control_images = [open_image(path) for path in sorted(job.folder.glob("control-*"))]
        settings = pipe.resolve_size(settings, start.image)
        result: dict = {"files": [], "images": [], "seeds": [], "infotexts": []}
        try:
            yield pipe, start, result | {"settings": vars(settings), "notes": list(pipe.notes)}
        except Cancelled:
            raise
        except BaseException:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # after running out of memory the next job finds it free
            raise

    def generate(
        self,
        pipe: StableDiffusion,
        settings: GenerationSettings,
        start: InitInputs,
        job: Job,
        reporter: "StepReporter",
        result: dict,
    ) -> None:
        prefix = GenerationRequest(settings, job.request["title"]).prefix
        parts = list(split_into_batches(settings, 1 if pipe.device.type == "cpu" else job.request["batch_size"]))
        for index, part in enumerate(parts):
            reporter.before, reporter.parts, reporter.x0 = index, len(parts), None
            try:
                output = pipe.generate(part, start.image, start.mask, reporter, control_images=start.control_images)
            except Skipped:
                continue
            except Interrupted:
                self.save_images(unfinished_images(pipe, part, start, reporter), job, prefix, result)
                raise
            self.save_images(output, job, prefix, result, reporter.tell)

    def save_images(
        self, output: GenerationOutput, job: Job, prefix: str, result: dict, tell: Tell | None = None
    ) -> None:
        """Save images, and add each to the result at once. tell: records the result after each; None after a stop."""
        result["notes"] += [note for note in output.notes if note not in result["notes"]]
        for image, seed, text in zip(output.images, output.seeds, output.infotexts):
            name = save_png(image, job.folder, text, prefix).name
            result["files"].append(name)
            result["images"].append(name)
            result["seeds"].append(seed)
            result["infotexts"].append(text)
            if tell is not None:
                tell({"result": copy.deepcopy(result)})

    def load(self, name: str, vae: str = "", prediction: str = "") -> StableDiffusion:
        """Return the pipeline of a checkpoint and a VAE, each by its name. prediction: "" as the checkpoint is marked.

        The last one is released first, so that memory never holds two. Raises UserError.
        """
        path = self.models.checkpoint(name)
        separate = self.models.vae(vae, path)
        wanted = (path, separate, prediction or None)
        if self.pipe is None or (self.pipe.path, self.pipe.vae_path, self.pipe.chosen_prediction) != wanted:
            self.pipe = None
            gc.collect()
            device = device_of(self.device)
            dtype = dtype_of(self.precision, device)
            self.pipe = StableDiffusion.from_pretrained(path, device, dtype, separate or "none", prediction or None)
            self.pipe.set_optimizations(parse_names(self.optimizations))
            self.pipe.adapters.models = self.models
        return self.pipe


class StepReporter:
    """An `on_step` that counts the steps over all batches of a job and writes a preview from time to time."""

    def __init__(self, tell: Tell, pipe: StableDiffusion, folder: Path):
        self.tell, self.pipe, self.folder = tell, pipe, folder
        self.before, self.parts = 0, 1
        self.x0: torch.Tensor | None = None  # the last step's prediction for this batch
        self.reached = ""  # which step that was
        self.next_preview = time.monotonic() + PREVIEW_AFTER

    def __call__(self, done: int, total: int, x0: torch.Tensor) -> None:
        self.x0, self.reached = x0, f"{done} of {total}"
        event: dict[str, Any] = {"step": self.before * total + done, "steps": self.parts * total}
        began = time.monotonic()
        if began >= self.next_preview and done < total:
            with suppress(DiskError):  # an image that cannot be saved ends the job, a preview does not
                write_png(grid(self.pipe.preview(x0)), self.folder / "preview.png")
                event["preview"] = "preview.png"
            took = time.monotonic() - began
            self.next_preview = began + max(took / PREVIEW_SHARE, PREVIEW_AFTER)
        self.tell(event)


def unfinished_images(
    pipe: StableDiffusion, part: GenerationSettings, start: InitInputs, reporter: StepReporter
) -> GenerationOutput:
    """Return the images of a stopped batch as of its last step; none where there was no step."""
    if reporter.x0 is None:
        return GenerationOutput([], [], [], torch.zeros(0))
    texts = pipe.infotexts(part, start.image is not None)
    texts = [with_setting(text, "Interrupted at step", reporter.reached) for text in texts]
    masked = prepare_masked(pipe.resolve_size(part, start.image), start.image, start.mask)
    images = masked.finish(pipe.preview(reporter.x0))
    return GenerationOutput(images, part.seeds(), texts, reporter.x0)


def split_into_batches(settings: GenerationSettings, batch_size: int) -> Iterator[GenerationSettings]:
    """Yield settings that generate the same images, `batch_size` at a time."""
    seeds, variations = settings.seeds(), settings.variation_seeds()
    for i in range(0, settings.num_images, batch_size):
        count = min(batch_size, settings.num_images - i)
        yield settings.replace(seed=seeds[i], variation_seed=variations[i], num_images=count)


def prepare_inputs(folder: Path, request: dict, settings: GenerationSettings, image_size: int) -> InitInputs:
    """Return the job's `image` and `mask` as the pipeline takes them. image_size: the model's own, in pixels."""
    if not (folder / "image").exists():
        return InitInputs()
    image = to_rgb(open_image(folder / "image"))
    width, height = settings.width or image.width // 8 * 8, settings.height or image.height // 8 * 8
    if not (folder / "mask").exists():
        return InitInputs(resize(image, request["resize_mode"], width, height))
    mask = stretch_mask(open_image(folder / "mask"), *image.size)
    if request["resize_mode"] == "stretch" and not settings.only_masked:
        return InitInputs(resize(image, "stretch", width, height), stretch_mask(mask, width, height))
    return InitInputs(image, mask)


def resize(image: Image.Image, mode: str, width: int, height: int) -> Image.Image:
    """Resize an image for the mode "stretch"; the pipeline itself crops for "crop"."""
    return image.resize((width, height), Image.Resampling.LANCZOS) if mode == "stretch" else image
