"""From what somebody asks for to a job in the queue: all that can be said against it is said before it waits."""

from dataclasses import asdict, dataclass, field

from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.web.jobs.job import Job
from sd.web.jobs.limits import check_picture, check_settings
from sd.web.jobs.masks import MaskOptions
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs


@dataclass
class GenerateRequest:
    """settings: as for a pipeline; LoRAs are named in its prompt, <lora:name:0.8>, embeddings stand in it as words.

    checkpoint: its name, "" for the one to take unless told. vae: a separate VAE's name, "" for the one that belongs to
    the checkpoint, "None" for the checkpoint's own. image, mask: files, as bytes, that `limits` has checked.
    batch_size: pictures at once on a GPU. resize_mode: "crop" fits a picture of another shape by cutting, "stretch" by
    distorting. title: names the files, "" for a number alone. page: the open page that asks, which shows its own
    jobs; "" for the API.
    """

    settings: GenerationSettings
    checkpoint: str = ""
    image: bytes | None = None
    mask: bytes | None = None
    batch_size: int = 4
    resize_mode: str = "crop"
    mask_options: MaskOptions = field(default_factory=MaskOptions)
    title: str = ""
    vae: str = ""
    page: str = ""


def submit_request(jobs: Jobs, models: Models, asked: GenerateRequest) -> Job:
    """A new job of the kind "draw". Raises UserError for what cannot be drawn, Busy where the queue is full."""
    settings = asked.settings if asked.image is None else with_picture_size(asked.settings, asked.image)
    check_settings(settings)
    models.check_tags(settings.prompt)
    models.vae(asked.vae, models.checkpoint(asked.checkpoint))
    if asked.mask is not None and asked.image is None:
        raise UserError("a mask was given without a picture: give the picture that it belongs to as well.")
    if asked.image is not None and settings.hires_scale > 1:
        raise UserError("a second, larger pass is for pictures from text: leave out hires or the picture.")
    request = {
        "settings": asdict(settings),
        "checkpoint": asked.checkpoint,
        "vae": asked.vae,
        "batch_size": asked.batch_size,
        "resize_mode": asked.resize_mode,
        "mask_options": asdict(asked.mask_options),
        "title": asked.title,
        "page": asked.page,
    }
    files = {"image": asked.image, "mask": asked.mask}
    return jobs.submit("draw", request, {name: data for name, data in files.items() if data is not None})


def with_picture_size(settings: GenerationSettings, image: bytes) -> GenerationSettings:
    """With the picture's own size, cut to multiples of 8, where none is asked for."""
    if settings.width is not None and settings.height is not None:
        return settings
    width, height = check_picture(image).size
    return settings.replace(
        width=max(width // 8 * 8, 8) if settings.width is None else settings.width,
        height=max(height // 8 * 8, 8) if settings.height is None else settings.height,
    )
