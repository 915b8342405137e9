"""The webui's "extras": an image enlarged without a model, /sdapi/v1/extra-single-image and extra-batch-images."""

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
from sd.web.problems import PROBLEMS

UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


class UpscaleRequest(BaseModel):
    """resize_mode: 0 enlarges by upscaling_resize, 1 to upscaling_resize_w and _h. upscaler_2 is blended over the first
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


def upscale_file(asked: UpscaleRequest, text: str) -> str:
    """A PNG in base64, with the settings that the image held. text: the image in base64."""
    image = check_image(decode_image(text))
    held = image.info.get(INFOTEXT_KEY, "")
    file = io.BytesIO()
    text_chunks = PngInfo()
    if isinstance(held, str) and held:
        text_chunks.add_text(INFOTEXT_KEY, held)
    enlarge(to_rgb(image), asked).save(file, format="PNG", pnginfo=text_chunks)
    return base64.b64encode(file.getvalue()).decode()


def enlarge(image: Image.Image, asked: UpscaleRequest) -> Image.Image:
    """Raises UserError for what needs a model."""
    if asked.gfpgan_visibility or asked.codeformer_visibility:
        raise UserError("restoring faces is not supported here: leave gfpgan_visibility and codeformer_visibility out.")
    first, second = (find_upscaler(name) for name in (asked.upscaler_1, asked.upscaler_2))
    if first is None:
        return image
    size = size_of(image, asked)
    if size[0] * size[1] > MAX_PIXELS:
        raise TooLarge(f"{size[0]}x{size[1]} is too large here: {MAX_PIXELS >> 20} million pixels are allowed.")
    enlarged = image.resize(size, first)
    if second is not None and asked.extras_upscaler_2_visibility:
        enlarged = Image.blend(enlarged, image.resize(size, second), asked.extras_upscaler_2_visibility)
    return crop(enlarged, asked) if asked.resize_mode == 1 and asked.upscaling_crop else enlarged


def find_upscaler(name: str) -> Image.Resampling | None:
    for known, how in UPSCALERS.items():
        if name.lower() == known.lower():
            return how
    raise UserError(f"there is no upscaler {name[:100]!r} here: use {', '.join(UPSCALERS)}.")


def size_of(image: Image.Image, asked: UpscaleRequest) -> tuple[int, int]:
    """In mode 1 the smallest of the image's shape that covers the size asked for."""
    factor = asked.upscaling_resize
    if asked.resize_mode == 1:
        factor = max(asked.upscaling_resize_w / image.width, asked.upscaling_resize_h / image.height)
    return max(round(image.width * factor), 1), max(round(image.height * factor), 1)


def crop(image: Image.Image, asked: UpscaleRequest) -> Image.Image:
    """The middle, of the size asked for."""
    width, height = asked.upscaling_resize_w, asked.upscaling_resize_h
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
