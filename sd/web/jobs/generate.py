"""A generation job in the worker: saves each image at once, so that a stop loses none."""

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
from sd.evaluation.grids.grid import Grid, check_loras, grid_sheet, plan_grid
from sd.optimization.registry import parse_names
from sd.pipeline.infotext import with_setting
from sd.pipeline.inputs.masked import prepare_masked
from sd.pipeline.inputs.outpaint import extend_image
from sd.pipeline.mask import stretch_mask, stretch_notes
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import GenerationOutput, StableDiffusion
from sd.utils.device import device_of, dtype_of
from sd.utils.errors import DiskError
from sd.utils.files import Signature, save_png, signature_of, write_png
from sd.utils.image_grid import grid
from sd.utils.images import first_frame_notes, open_image, to_rgb
from sd.web.jobs.job import Cancelled, Interrupted, Job, JobFailed, Skipped
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Tell

PREVIEW_AFTER = 1.0  # seconds before the first preview
PREVIEW_SHARE = 0.1  # of the time, at most


@dataclass
class InitInputs:
    """The inputs of a job.

    control_images: one for each ControlNet, or one for all. region_masks: one for each region of the prompt. notes:
    sentences on what is not used of the image and the mask.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    control_images: list[Image.Image] = field(default_factory=list)
    region_masks: list[Image.Image] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    files: "Signature" = ()  # of the loaded models; () for a pipeline that was given

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Return {"files", "images" (those of the files), "seeds", "infotexts", "settings" (as used), "notes"}."""
        settings, axes = GenerationSettings(**job.request["settings"]), job.request.get("axes", ())
        grid = plan_grid(settings, axes, (job.folder / "image").exists()) if any(axes) else None
        with self.guarded():
            pipe, start, result = self.load_inputs(job, *(next(iter(grid.by_model())) if grid else (None, None)))
            reporter = StepReporter(tell, pipe, job.folder)
            with suppress(Cancelled):  # the finished images stay
                if grid:
                    del pipe  # so that it can be released before the next checkpoint is loaded
                    self.generate_grid(grid, job, reporter, result)
                else:
                    self.generate(pipe, GenerationSettings(**result["settings"]), start, job, reporter, result)
        return result

    def load_inputs(
        self, job: Job, ckpt: str | None = None, vae: str | None = None
    ) -> tuple[StableDiffusion, InitInputs, dict]:
        """Load what a job names: the pipeline, its images, and the result so far: settings as used, and no images.

        ckpt, vae: names in place of the job's, as cells of a grid have them.
        """
        settings, pipe = GenerationSettings(**job.request["settings"]), self.load_for(job.request, ckpt, vae)
        start = prepare_inputs(job.folder, job.request, settings, pipe.image_size)
        settings = pipe.resolve_size(settings, start.image)
        result: dict = {"files": [], "images": [], "seeds": [], "infotexts": []}
        return pipe, start, result | {"settings": vars(settings), "notes": [*pipe.notes, *start.notes]}

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Release memory where a job fails within the context, and check at its end that no model's file changed."""
        try:
            yield
        except Cancelled:
            raise
        except BaseException:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # after running out of memory the next job finds it free
            self.check_files()
            raise
        self.check_files()

    def check_files(self) -> None:
        """Raise JobFailed where a file of the loaded models was overwritten in place: its mapping changed with it."""
        for path, node, size, changed in self.files:
            now = signature_of(path)
            if now and now[0][1] == node and now[0][2:] != (size, changed):
                self.pipe = None
                raise JobFailed(
                    f"{path.name} was overwritten while it was in use, so these images may be wrong: send the request "
                    "again, and replace model files by renaming a new file over them."
                )

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
        with pipe.keep_prompt_loras():
            for index, part in enumerate(parts):
                reporter.before, reporter.parts, reporter.x0 = index, len(parts), None
                try:
                    output = pipe.generate(
                        *(part, start.image, start.mask, reporter),
                        control_images=start.control_images,
                        region_masks=start.region_masks,
                    )
                except Skipped:
                    continue
                except Interrupted:
                    self.save_images(unfinished_images(pipe, part, start, reporter), job, prefix, result)
                    raise
                self.save_images(output, job, prefix, result, reporter.tell)

    def generate_grid(self, grid: Grid, job: Job, reporter: "StepReporter", result: dict) -> None:
        """Generate the cells of a grid; a skipped one stays empty. The sheet comes first among the images."""
        reporter.whole = sum(point.settings.steps for point in grid.points)
        images: dict[int, Image.Image] = {}
        try:
            for models, indices in grid.by_model().items():
                del reporter.pipe
                reporter.pipe = self.load_for(job.request, *models)
                check_loras(reporter.pipe, [grid.points[index] for index in indices])
                with reporter.pipe.keep_prompt_loras():
                    for index in indices:
                        with suppress(Skipped):
                            images[index] = self.generate_cell(grid.points[index].settings, job, reporter, result)
                        reporter.finished += grid.points[index].settings.steps
        finally:
            if images:
                self.save_sheet(grid, images, job, result)

    def generate_cell(
        self, settings: GenerationSettings, job: Job, reporter: "StepReporter", result: dict
    ) -> Image.Image:
        """Generate and save one cell of a grid, and return its image."""
        pipe = reporter.pipe
        start = prepare_inputs(job.folder, job.request, settings, pipe.image_size)
        reporter.x0, reporter.weight = None, settings.steps
        prefix = GenerationRequest(settings, job.request["title"]).prefix
        try:
            output = pipe.generate(
                *(settings, start.image, start.mask, reporter),
                control_images=start.control_images,
                region_masks=start.region_masks,
            )
        except Interrupted:
            self.save_images(unfinished_images(pipe, settings, start, reporter), job, prefix, result)
            raise
        self.save_images(output, job, prefix, result, reporter.tell)
        return output.images[0]

    def save_sheet(self, grid: Grid, images: dict[int, Image.Image], job: Job, result: dict) -> None:
        """Save the sheet of a grid, and put it before the images, which are sorted by their places in it."""
        unfinished = len(result["images"]) - len(images)  # an interrupted one, behind the others
        order = [*images, *[len(grid.points)] * unfinished]
        for key in ("images", "seeds", "infotexts"):
            result[key] = [one for _, one in sorted(zip(order, result[key]), key=lambda pair: pair[0])]
        text = grid.infotext(result["infotexts"][0])
        name = save_png(grid_sheet(grid, images), job.folder, text, "xyz-").name
        first = {"files": name, "images": name, "seeds": result["seeds"][0], "infotexts": text}
        for key, value in first.items():
            result[key].insert(0, value)
        result["sheet"] = name

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

    def load_for(self, request: dict, ckpt: str | None = None, vae: str | None = None) -> StableDiffusion:
        """Return the pipeline of a job. ckpt, vae: where a cell of a grid has its own."""
        return self.load(ckpt or request["checkpoint"], vae or request.get("vae", ""), request.get("prediction", ""))

    def load(self, name: str, vae: str = "", prediction: str = "") -> StableDiffusion:
        """Return the pipeline of a checkpoint and a VAE, each by its name. prediction: "" as the checkpoint is marked.

        The last one is released first, so that memory never holds two. A file that has changed is loaded again.
        Raises UserError.
        """
        path = self.models.checkpoint(name)
        separate = self.models.vae(vae, path)
        wanted = (path, separate, prediction or None)
        files = signature_of(path, separate)
        is_same = self.pipe and (self.pipe.path, self.pipe.vae_path, self.pipe.chosen_prediction) == wanted
        if self.pipe is None or not is_same or (self.files and self.files != files):
            self.pipe, self.files = None, files
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
        self.before, self.parts = 0, 1  # batches of one request
        self.finished, self.weight, self.whole = 0, 0, 0  # steps of a grid: of finished cells, of this one, of all
        self.x0: torch.Tensor | None = None  # the last step's prediction for this batch
        self.reached = ""  # which step that was
        self.next_preview = time.monotonic() + PREVIEW_AFTER

    def __call__(self, done: int, total: int, x0: torch.Tensor) -> None:
        self.x0, self.reached = x0, f"{done} of {total}"
        event: dict[str, Any] = {"step": self.before * total + done, "steps": self.parts * total}
        if self.whole:
            event = {"step": self.finished + done * self.weight // total, "steps": self.whole}
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
    texts = pipe.infotexts(part, start.image is not None, len(start.region_masks))
    texts = [with_setting(text, "Interrupted at step", reporter.reached) for text in texts]
    masked = prepare_masked(*extend_image(pipe.resolve_size(part, start.image), start.image, start.mask))
    images = masked.finish(pipe.preview(reporter.x0))
    return GenerationOutput(images, part.seeds(), texts, reporter.x0)


def split_into_batches(settings: GenerationSettings, batch_size: int) -> Iterator[GenerationSettings]:
    """Yield settings that generate the same images, `batch_size` at a time."""
    seeds, variations = settings.seeds(), settings.variation_seeds()
    for i in range(0, settings.num_images, batch_size):
        count = min(batch_size, settings.num_images - i)
        yield settings.replace(seed=seeds[i], variation_seed=variations[i], num_images=count)


def prepare_inputs(folder: Path, request: dict, settings: GenerationSettings, image_size: int) -> InitInputs:
    """Return the job's images as the pipeline takes them. image_size: the model's own, in pixels."""
    controls = [open_image(path) for path in sorted(folder.glob("control-*"))]
    regions = [open_image(path) for path in sorted(folder.glob("region-*"))]
    if not (folder / "image").exists():
        return InitInputs(None, None, controls, regions)
    opened = open_image(folder / "image")
    opened_mask = open_image(folder / "mask") if (folder / "mask").exists() else None
    notes = first_frame_notes(init_image=[opened], mask=[opened_mask])
    image = to_rgb(opened)
    width, height = settings.width or image.width // 8 * 8, settings.height or image.height // 8 * 8
    if opened_mask is None:
        return InitInputs(resize(image, request["resize_mode"], width, height), None, controls, regions, notes)
    notes += stretch_notes(opened_mask, image)
    mask = stretch_mask(opened_mask, *image.size)
    if request["resize_mode"] == "stretch" and not settings.only_masked:
        image, mask = resize(image, "stretch", width, height), stretch_mask(mask, width, height)
    return InitInputs(image, mask, controls, regions, notes)


def resize(image: Image.Image, mode: str, width: int, height: int) -> Image.Image:
    """Resize an image for the mode "stretch"; the pipeline itself crops for "crop"."""
    return image.resize((width, height), Image.Resampling.LANCZOS) if mode == "stretch" else image
