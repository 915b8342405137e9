"""The webui's "extras": upscaling without a model, /sdapi/v1/extra-single-image and extra-batch-images."""

import base64
import io
from typing import Any

from fastapi import APIRouter
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from sd.utils.errors import UserError
from sd.utils.images import INFOTEXT_KEY, to_rgb
from sd.web.jobs.limits import MAX_BODY, MAX_IMAGES, MAX_PIXELS, TooLarge, check_image, decode_image
from sd.web.jobs.uploads import decodes_uploads
from sd.web.problems import PROBLEMS

UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


class UpscaleRequest(BaseModel):
    """The fields of both bodies.

    resize_mode: 0 upscales by upscaling_resize, 1 to upscaling_resize_w and _h. upscaler_2 is blended over the first
    with extras_upscaler_2_visibility.
    """

    model_config = ConfigDict(allow_inf_nan=False, str_max_length=MAX_BODY)

    resize_mode: int = Field(0, ge=0, le=1)
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0
    upscaling_resize: float = Field(2.0, gt=0, le=64)
    upscaling_resize_w: int = Field(512, ge=1, le=16384)
    upscaling_resize_h: int = Field(512, ge=1, le=16384)
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = Field(0.0, ge=0, le=1)


class UpscaleOneRequest(UpscaleRequest):
    image: str


class FileOf(BaseModel):
    data: str
    name: str = ""


class UpscaleManyRequest(UpscaleRequest):
    imageList: list[FileOf] = Field(max_length=MAX_IMAGES)


def extras_router() -> APIRouter:
    router = APIRouter(prefix="/sdapi/v1", tags=["webui"], responses=PROBLEMS)

    @router.post("/extra-single-image")
    async def extra_single_image(body: UpscaleOneRequest) -> dict[str, Any]:
        return {"html_info": "", "image": await run_in_threadpool(upscale_file, body, body.image)}

    @router.post("/extra-batch-images")
    async def extra_batch_images(body: UpscaleManyRequest) -> dict[str, Any]:
        images = [await run_in_threadpool(upscale_file, body, one.data) for one in body.imageList]
        return {"html_info": "", "images": images}

    return router


def upscale_file(body: UpscaleRequest, text: str) -> str:
    """Return an upscaled PNG in base64, with the settings in the image. text: the image in base64. Raises UserError."""
    options = UpscaleRequest(**body.model_dump(include=set(UpscaleRequest.model_fields)))  # without other images
    return base64.b64encode(upscale_image(decode_image(text), options)).decode()


@decodes_uploads
def upscale_image(data: bytes, body: UpscaleRequest) -> bytes:
    """Return an upscaled PNG, with the settings in the image. Raises UserError."""
    image = check_image(data)
    held = image.info.get(INFOTEXT_KEY, "")
    file = io.BytesIO()
    text_chunks = PngInfo()
    if isinstance(held, str) and held:
        text_chunks.add_text(INFOTEXT_KEY, held)
    upscale(to_rgb(image), body).save(file, format="PNG", pnginfo=text_chunks)
    return file.getvalue()


def upscale(image: Image.Image, body: UpscaleRequest) -> Image.Image:
    """Return the image upscaled. Raises UserError for what needs a model, TooLarge."""
    if body.gfpgan_visibility or body.codeformer_visibility:
        raise UserError("restoring faces is not supported here: leave gfpgan_visibility and codeformer_visibility out.")
    first, second = (find_upscaler(name) for name in (body.upscaler_1, body.upscaler_2))
    if first is None:
        return image
    size = size_of(image, body)
    if size[0] * size[1] > MAX_PIXELS:
        raise TooLarge(f"{size[0]}x{size[1]} is too large: {MAX_PIXELS >> 20} million pixels are allowed.")
    upscaled = image.resize(size, first)
    if second is not None and body.extras_upscaler_2_visibility:
        upscaled = Image.blend(upscaled, image.resize(size, second), body.extras_upscaler_2_visibility)
    return crop(upscaled, body) if body.resize_mode == 1 and body.upscaling_crop else upscaled


def find_upscaler(name: str) -> Image.Resampling | None:
    for known, how in UPSCALERS.items():
        if name.lower() == known.lower():
            return how
    raise UserError(
        f"the upscaler {name[:100]!r} is not used for a finished image: choose from {', '.join(UPSCALERS)}; a model of "
        "weights/upscalers/ serves a second pass, as hr_upscaler."
    )


def size_of(image: Image.Image, body: UpscaleRequest) -> tuple[int, int]:
    """Return the size; in mode 1 the smallest of the image's aspect ratio that covers the requested size."""
    factor = body.upscaling_resize
    if body.resize_mode == 1:
        factor = max(body.upscaling_resize_w / image.width, body.upscaling_resize_h / image.height)
    return max(round(image.width * factor), 1), max(round(image.height * factor), 1)


def crop(image: Image.Image, body: UpscaleRequest) -> Image.Image:
    """Crop the center to the requested size."""
    width, height = body.upscaling_resize_w, body.upscaling_resize_h
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
