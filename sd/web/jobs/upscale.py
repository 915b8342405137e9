"""Enlarging uploaded images: at once with a filter, as a job with a model."""

import io
from dataclasses import asdict, dataclass
from itertools import count

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd.pipeline.infotext import quote
from sd.upscalers.upscale import OnTile, Upscaler, count_tiles, find_upscaler, upscale
from sd.utils.device import device_of
from sd.utils.files import replacing
from sd.utils.images import INFOTEXT_KEY, first_frame_notes, to_rgb
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.job import UPSCALE, Job
from sd.web.jobs.limits import MAX_PIXELS, TooLarge, check_image, image_size
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs, Tell
from sd.web.jobs.uploads import decodes_uploads

NO_UPSCALER = "None"
POSTPROCESSING = "postprocessing"  # the PNG text chunk where the webui keeps how an image was enlarged


@dataclass(frozen=True)
class Upscaling:
    """How to enlarge an image, as the webui's "extras" do.

    first, second: names of upscalers, or "None". visibility: the share of the second one's image, 0 to 1. factor: by
    how much; or size: width and height in pixels, which the image covers in its own shape. crop: whether what stands
    out of `size` is cut off.
    """

    first: str = NO_UPSCALER
    second: str = NO_UPSCALER
    visibility: float = 0.0
    factor: float = 2.0
    size: tuple[int, int] | None = None
    crop: bool = True

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Returns the size that an image of this size is enlarged to, before it is cropped."""
        factor = self.factor if self.size is None else max(self.size[0] / width, self.size[1] / height)
        return max(round(width * factor), 1), max(round(height * factor), 1)

    def upscalers(self, models: Models) -> list[Upscaler]:
        """Returns one upscaler, two, or none where the image stays as it is. Raises UserError for an unknown name."""
        names = [self.first, self.second]
        found = [None if is_none(one) else find_upscaler(one, models, [NO_UPSCALER]) for one in names]
        used = found[:1] if not self.visibility else found
        return [one for one in used if one is not None] if found[0] is not None else []

    def describe(self) -> str:
        """Returns the webui's line about an enlarged image; "" where it stays as it is."""
        if is_none(self.first):
            return ""
        facts: dict[str, object] = {"Postprocess upscale by": self.factor}
        if self.size is not None:
            width, height = self.size
            facts = {"Postprocess upscale to": f"{width}x{height}"}
            facts |= {"Postprocess crop to": f"{width}x{height}"} if self.crop else {}
        facts["Postprocess upscaler"] = self.first
        if self.visibility and not is_none(self.second):
            facts["Postprocess upscaler 2"] = self.second
        return ", ".join(f"{label}: {quote(str(value))}" for label, value in facts.items())


def is_none(name: str) -> bool:
    return name.strip().lower() in ("", NO_UPSCALER.lower())


def check_target(upscaling: Upscaling, data: bytes) -> None:
    """Raises UserError for an image that cannot be opened, TooLarge for one that would become too large."""
    width, height = upscaling.target(*image_size(data))
    if width * height > MAX_PIXELS:
        raise TooLarge(f"{width}x{height} is too large: {MAX_PIXELS >> 20} million pixels are allowed.")


def submit_upscaling(jobs: Jobs, upscaling: Upscaling, images: list[bytes]) -> Job:
    """Submits the images as one job. They and the upscalers' names must have been checked. Raises Busy."""
    files = dict(zip(image_names(len(images)), images))
    return jobs.submit(UPSCALE, {"upscaling": asdict(upscaling), "count": len(images)}, files)


def image_names(count: int) -> list[str]:
    """Returns the names of a job's input files."""
    return [f"image-{i:02}" for i in range(count)]


@decodes_uploads
def upscale_at_once(data: bytes, upscaling: Upscaling, upscalers: list[Upscaler]) -> tuple[bytes, list[str]]:
    """Returns an enlarged image as PNG, as `upscaled_png` does, without a model, and notes on it. Raises UserError."""
    image = check_image(data)
    return upscaled_png(image, upscaling, upscalers), first_frame_notes(image=[image])


def upscaled_png(
    image: Image.Image,
    upscaling: Upscaling,
    upscalers: list[Upscaler],
    device: torch.device | str = "cpu",
    on_tile: OnTile | None = None,
) -> bytes:
    """Returns an enlarged image as PNG, with its infotext and the webui's line about how it was enlarged."""
    held = image.info.get(INFOTEXT_KEY, "")
    chunks, file = PngInfo(), io.BytesIO()
    for key, text in ((INFOTEXT_KEY, held), (POSTPROCESSING, upscaling.describe())):
        if isinstance(text, str) and text:
            chunks.add_text(key, text)
    image = to_rgb(image)
    size = upscaling.target(*image.size)
    made = [upscale(image, one, *size, device, on_tile) for one in upscalers] or [image]
    blended = made[0] if len(made) == 1 else Image.blend(made[0], made[1], upscaling.visibility)
    if upscalers and upscaling.size is not None and upscaling.crop:
        blended = crop_center(blended, *upscaling.size)
    blended.save(file, format="PNG", pnginfo=chunks)
    return file.getvalue()


def crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@dataclass
class UpscaleRunner:
    """A `Run` for jobs of the kind "upscale", on the generator's device."""

    generator: ImageGenerator

    def __call__(self, job: Job, tell: Tell) -> dict:
        """Returns {"files", "images" (the same), "notes"}; a step is a tile. A stop keeps what is finished."""
        upscaling, device = Upscaling(**job.request["upscaling"]), device_of(self.generator.device)
        files = [job.folder / name for name in image_names(job.request["count"])]
        result: dict = {"files": [], "images": [], "notes": []}
        with self.generator.guarded():
            upscalers = upscaling.upscalers(self.generator.models)
            sizes = [image_size(file.read_bytes()) for file in files]
            tiles = [count_tiles(one, size, upscaling.target(*size)) for one in upscalers for size in sizes]
            step = count(1)

            def on_tile() -> None:
                tell({"step": next(step), "steps": sum(tiles)})

            for i, file in enumerate(files):
                image = check_image(file.read_bytes())
                notes = list(dict.fromkeys([*result["notes"], *first_frame_notes(image=[image])]))
                png = upscaled_png(image, upscaling, upscalers, device, on_tile)
                with replacing(job.folder / f"{i:05}.png") as part:
                    part.write_bytes(png)
                result = {key: [*result[key], f"{i:05}.png"] for key in ("files", "images")} | {"notes": notes}
                tell({"result": result})  # so that a stop loses none
        return result
