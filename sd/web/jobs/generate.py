"""A job of the kind "draw", in the worker: pictures, saved one by one, so that what was made before a stop is there."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from sd.cli.requests import GenerationRequest
from sd.optimization.registry import optimizations_of
from sd.pipeline.infotext import with_setting
from sd.pipeline.mask import stretch
from sd.pipeline.settings import GenerationSettings
from sd.pipeline.stable_diffusion import GenerationOutput, StableDiffusion
from sd.utils.device import device_of, dtype_of
from sd.utils.files import save_png, write_png
from sd.utils.image_grid import grid
from sd.utils.images import open_image, to_rgb
from sd.web.jobs.job import Cancelled, Interrupted, Job, Skipped
from sd.web.jobs.masks import MaskOptions, fill_masked, prepare_mask, put_back, region_of
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Tell

PREVIEW_AFTER = 1.0  # seconds before the first preview
PREVIEW_SHARE = 0.1  # of the time, at most


@dataclass
class Prepared:
    """What a job starts from. whole, region: the picture and the part of it that is drawn, where it is only a part."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    whole: Image.Image | None = None
    whole_mask: Image.Image | None = None
    region: tuple[int, int, int, int] | None = None

    def finish(self, drawn: Image.Image) -> Image.Image:
        return drawn if self.region is None else put_back(self.whole, drawn, self.whole_mask, self.region)


@dataclass
class Drawer:
    """A `Run` that keeps the checkpoint it drew with last.

    models: the three folders. device: None to choose. precision, optimizations: as the drawing scripts' flags say them.
    """

    models: Models = field(default_factory=Models)
    device: str | None = None
    precision: str = "auto"
    optimizations: str | None = None
    pipe: StableDiffusion | None = None

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Its result: "files", "images" (of them, the pictures), "seeds", "infotexts", "settings" as drawn, "notes"."""
        request = job.request
        settings = GenerationSettings(**request["settings"])
        pipe = self.load(request["checkpoint"], request.get("vae", ""))
        start = prepare(job.folder, request, settings, pipe.image_size)
        settings = pipe.resolve_size(settings, start.image)
        made = {
            "files": [],
            "images": [],
            "seeds": [],
            "infotexts": [],
            "settings": vars(settings),
            "notes": list(pipe.notes),
        }
        try:
            self.draw(pipe, settings, start, job, Teller(tell, pipe, job.folder), made)
        except Cancelled:
            pass  # the server knows; what is made stays
        except BaseException:
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # after running out of memory the next job finds it free
            raise
        return made

    def draw(
        self,
        pipe: StableDiffusion,
        settings: GenerationSettings,
        start: Prepared,
        job: Job,
        teller: "Teller",
        made: dict,
    ) -> None:
        prefix = GenerationRequest(settings, job.request["title"]).prefix
        parts = list(portions(settings, 1 if pipe.device.type == "cpu" else job.request["batch_size"]))
        for index, part in enumerate(parts):
            teller.before, teller.parts, teller.x0 = index, len(parts), None
            try:
                pictures = pipe.generate(part, start.image, start.mask, on_step=teller)
            except Skipped:
                continue
            except Interrupted:
                self.save(unfinished(pipe, part, start, teller), start, job, prefix, made)
                raise
            self.save(pictures, start, job, prefix, made)

    def save(self, pictures: GenerationOutput, start: Prepared, job: Job, prefix: str, made: dict) -> None:
        made["notes"] += [note for note in pictures.notes if note not in made["notes"]]
        for picture, seed, text in zip(pictures.images, pictures.seeds, pictures.infotexts):
            name = save_png(start.finish(picture), job.folder, text, prefix).name
            made["files"].append(name)
            made["images"].append(name)
            made["seeds"].append(seed)
            made["infotexts"].append(text)

    def load(self, name: str, vae: str = "") -> StableDiffusion:
        """The pipeline of that checkpoint and VAE, each by its name; the one before is let go first, so that two never
        fill the memory."""
        path = self.models.checkpoint(name)
        separate = self.models.vae(vae, path)
        if self.pipe is None or (self.pipe.path, self.pipe.vae_path) != (path, separate):
            self.pipe = None
            gc.collect()
            device = device_of(self.device)
            dtype = dtype_of(self.precision, device)
            self.pipe = StableDiffusion.from_pretrained(path, device, dtype, separate or "none")
            self.pipe.optimizations = optimizations_of(self.optimizations)
            self.pipe.adapters.models = self.models
        return self.pipe


class Teller:
    """An `on_step` that counts the steps over all parts of a job and, now and then, shows what is coming."""

    def __init__(self, tell: Tell, pipe: StableDiffusion, folder: Path):
        self.tell, self.pipe, self.folder = tell, pipe, folder
        self.before, self.parts = 0, 1
        self.x0, self.reached = None, ""  # the images of this part as the last step has them; which step that was
        self.next_preview = time.monotonic() + PREVIEW_AFTER

    def __call__(self, done: int, total: int, x0: torch.Tensor) -> None:
        self.x0, self.reached = x0, f"{done} of {total}"
        event = {"step": self.before * total + done, "steps": self.parts * total}
        began = time.monotonic()
        if began >= self.next_preview and done < total:
            write_png(grid(self.pipe.preview(x0)), self.folder / "preview.png")
            event["preview"] = "preview.png"
            took = time.monotonic() - began
            self.next_preview = began + max(took / PREVIEW_SHARE, PREVIEW_AFTER)
        self.tell(event)


def unfinished(pipe: StableDiffusion, part: GenerationSettings, start: Prepared, teller: Teller) -> GenerationOutput:
    """The images of a part that was stopped, as its last step has them; none where there was no step."""
    if teller.x0 is None:
        return GenerationOutput([], [], [], torch.zeros(0))
    texts = pipe.infotexts(part, start.image is not None)
    texts = [with_setting(text, "Interrupted at step", teller.reached) for text in texts]
    return GenerationOutput(pipe.preview(teller.x0), part.seeds(), texts, teller.x0)


def portions(settings: GenerationSettings, batch_size: int) -> Iterator[GenerationSettings]:
    """The same pictures, `batch_size` at a time."""
    seeds, variations = settings.seeds(), settings.variation_seeds()
    for i in range(0, settings.num_images, batch_size):
        count = min(batch_size, settings.num_images - i)
        yield settings.replace(seed=seeds[i], variation_seed=variations[i], num_images=count)


def prepare(folder: Path, request: dict, settings: GenerationSettings, image_size: int) -> Prepared:
    """The job's `image` and `mask` as the pipeline takes them. image_size: pixels, where no size is asked for."""
    if not (folder / "image").exists():
        return Prepared()
    image = to_rgb(open_image(folder / "image"))
    width, height = settings.width or image.width // 8 * 8, settings.height or image.height // 8 * 8
    if not (folder / "mask").exists():
        return Prepared(resize(image, request["resize_mode"], width, height))
    options = MaskOptions(**request["mask_options"])
    mask = prepare_mask(stretch(open_image(folder / "mask"), *image.size), options)
    drawn_from = fill_masked(image, mask) if options.fill else image
    if not options.only_masked:
        sized = stretch(mask, width, height) if request["resize_mode"] == "stretch" else mask
        return Prepared(resize(drawn_from, request["resize_mode"], width, height), sized)
    region = region_of(mask, options.padding, width, height)
    return Prepared(drawn_from.crop(region), mask.crop(region), image, mask, region)


def resize(image: Image.Image, mode: str, width: int, height: int) -> Image.Image:
    """mode: "stretch", or "crop", which the pipeline does itself."""
    return image.resize((width, height), Image.Resampling.LANCZOS) if mode == "stretch" else image
