"""Submission of requests as jobs: a request is checked completely before it is queued."""

from dataclasses import asdict, dataclass, field, replace

from sd.checkpoints.predictions import EPS, choose_prediction
from sd.control.units import check_image_count, parse_units
from sd.evaluation.grids.axes import Point
from sd.evaluation.grids.grid import plan_grid
from sd.pipeline.inputs.control import find_models
from sd.pipeline.inputs.regions import check_regions
from sd.pipeline.inputs.second_pass import hires_upscaler
from sd.pipeline.inputs.sizes import check_inputs
from sd.pipeline.settings import GenerationSettings
from sd.utils.errors import UserError
from sd.utils.images import cut_size
from sd.web.jobs.job import GENERATE, LOOK, Job
from sd.web.jobs.limits import MAX_IMAGES, check_settings, image_size
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs


@dataclass
class GenerateRequest:
    """A request to generate images, from the page or from an API.

    settings: as for a pipeline; LoRAs are named in its prompt, <lora:name:0.8>, embeddings are words of it.
    checkpoint: its name, "" for the default one. vae: the name of a separate VAE, "" for the one that belongs to the
    checkpoint, "None" for the checkpoint's own. prediction: what the checkpoint predicts, for one without marks,
    or "". image, mask: the bytes of files that `limits` has checked.
    batch_size: images at once on a GPU. resize_mode: "crop" cuts an image of another shape, "stretch" distorts it.
    title: the beginning of the files' names, "" for a number alone. page: the open page that made the request and shows
    its jobs; "" for an API. control_images: files like `image`, of the ControlNets in the settings. region_masks:
    likewise, of the prompt's regions. axes: up to three axes of an X/Y/Z grid, such as "steps=10, 20"; "" for one that
    is not used.
    """

    settings: GenerationSettings
    checkpoint: str = ""
    image: bytes | None = None
    mask: bytes | None = None
    batch_size: int = 4
    resize_mode: str = "crop"
    title: str = ""
    vae: str = ""
    prediction: str = ""
    page: str = ""
    control_images: list[bytes] = field(default_factory=list)
    axes: list[str] = field(default_factory=list)
    region_masks: list[bytes] = field(default_factory=list)


def submit_request(jobs: Jobs, models: Models, request: GenerateRequest, kind: str = GENERATE) -> Job:
    """Submits a new job. Raises UserError for what cannot be generated, Busy where the queue is full.

    kind: GENERATE for images, LOOK for one image with its trace, for which the axes of a grid are left out.
    """
    settings = request.settings if request.image is None else with_image_size(request.settings, request.image)
    choose_prediction(EPS, request.prediction or None)
    if kind == LOOK:
        request = replace(request, axes=[])
    grid = plan_grid(settings, request.axes, request.image is not None) if any(request.axes) else None
    if grid and len(grid.points) > MAX_IMAGES:
        raise UserError(
            f"a grid of {len(grid.points)} images is too large for one job: {MAX_IMAGES} are allowed; "
            "scripts/xyz_grid.py has more."
        )
    for point in grid.points if grid else [Point(settings)]:
        check_point(models, request, point)
    check_inputs(settings, request.image, request.mask)
    description = {
        "settings": asdict(settings),
        "checkpoint": request.checkpoint,
        "vae": request.vae,
        "prediction": request.prediction,
        "batch_size": request.batch_size,
        "resize_mode": request.resize_mode,
        "title": request.title,
        "page": request.page,
    }
    if grid:
        description["axes"] = ["" if axis is None else str(axis) for axis in grid.axes]
    files = {"image": request.image, "mask": request.mask}
    files |= {f"control-{i}": data for i, data in enumerate(request.control_images)}
    files |= {f"region-{i:02}": data for i, data in enumerate(request.region_masks)}
    return jobs.submit(kind, description, {name: data for name, data in files.items() if data is not None})


def check_point(models: Models, request: GenerateRequest, point: Point) -> None:
    """Raises UserError where the settings of an image exceed the limits, or name what is not there."""
    check_settings(point.settings)
    models.check_tags(point.settings.prompt)
    check_control(models, replace(request, settings=point.settings))
    check_regions(point.settings, len(request.region_masks))
    hires_upscaler(point.settings, models, by_path=False)
    models.vae(point.vae or request.vae, models.checkpoint(point.ckpt or request.checkpoint))


def check_control(models: Models, request: GenerateRequest) -> None:
    """Raises UserError for a ControlNet that is not in the folder, and for another number of images than they need."""
    units = parse_units(request.settings.control)
    find_models(units, models, by_path=False)
    check_image_count(units, len(request.control_images), request.image is not None)


def with_image_size(settings: GenerationSettings, image: bytes) -> GenerationSettings:
    """Returns the settings with the image's own size, cut to multiples of 8, where they have none."""
    if settings.width is not None and settings.height is not None:
        return settings
    width, height = cut_size(*image_size(image))
    return settings.replace(
        width=width if settings.width is None else settings.width,
        height=height if settings.height is None else settings.height,
    )
