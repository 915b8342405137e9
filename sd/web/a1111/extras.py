"""The webui's "extras", /sdapi/v1/extra-single-image and extra-batch-images: enlarging images.

Filters work at once. What takes a model is a job in the queue, so that it is on the worker's device, can be
interrupted, and shows its progress.
"""

import asyncio
import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from sd.upscalers.upscale import Upscaler
from sd.utils.errors import UserError
from sd.web.a1111.body import WebuiBody
from sd.web.a1111.waiting import wait_for_job
from sd.web.jobs.limits import MAX_IMAGES, decode_image
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.upscale import Upscaling, check_target, submit_upscaling, upscale_at_once
from sd.web.problems import PROBLEMS

STOPPED = "the job was cancelled before the images were enlarged: send the request again."


class UpscaleRequest(WebuiBody):
    """The fields of both bodies.

    resize_mode: 0 upscales by upscaling_resize, 1 to upscaling_resize_w and _h. upscaler_2 is blended over the first
    with extras_upscaler_2_visibility.
    """

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


def extras_router(jobs: Jobs, models: Models) -> APIRouter:
    router = APIRouter(prefix="/sdapi/v1", tags=["webui"], responses=PROBLEMS)

    @router.post("/extra-single-image")
    async def extra_single_image(body: UpscaleOneRequest) -> dict[str, Any]:
        images, notes = await enlarge_all(jobs, models, body, [body.image])
        return {"html_info": html_info(body, notes), "image": images[0]}

    @router.post("/extra-batch-images")
    async def extra_batch_images(body: UpscaleManyRequest) -> dict[str, Any]:
        images, notes = await enlarge_all(jobs, models, body, [one.data for one in body.imageList])
        return {"html_info": html_info(body, notes), "images": images}

    return router


async def enlarge_all(
    jobs: Jobs, models: Models, body: UpscaleRequest, texts: list[str]
) -> tuple[list[str], dict[str, None]]:
    """Returns the enlarged images in base64, each with its infotext, and notes. Raises UserError.

    texts: the images in base64.
    """
    upscaling = upscaling_of(body)
    upscalers = await asyncio.to_thread(upscaling.upscalers, models)
    images = [await asyncio.to_thread(checked_image, upscaling, upscalers, text) for text in texts]
    if not any(isinstance(one, Path) for one in upscalers):
        pairs = [await asyncio.to_thread(upscale_at_once, image, upscaling, upscalers) for image in images]
        made, notes = [png for png, _ in pairs], [note for _, some in pairs for note in some]
    else:
        job = await asyncio.to_thread(submit_upscaling, jobs, upscaling, images)
        job = await wait_for_job(jobs, job.id)
        if job.state == "cancelled":
            raise HTTPException(503, STOPPED)
        made = [await asyncio.to_thread(job.file(name).read_bytes) for name in job.result["images"]]
        notes = job.result["notes"]
    return [base64.b64encode(png).decode() for png in made], dict.fromkeys(notes)


def upscaling_of(body: UpscaleRequest) -> Upscaling:
    """Returns what a body asks for. Raises UserError for what is not supported."""
    if body.gfpgan_visibility or body.codeformer_visibility:
        raise UserError("restoring faces is not supported here: leave gfpgan_visibility and codeformer_visibility out.")
    size = (body.upscaling_resize_w, body.upscaling_resize_h) if body.resize_mode == 1 else None
    names, visibility = (body.upscaler_1, body.upscaler_2), body.extras_upscaler_2_visibility
    return Upscaling(*names, visibility, body.upscaling_resize, size, body.upscaling_crop)


def checked_image(upscaling: Upscaling, upscalers: list[Upscaler], text: str) -> bytes:
    """Returns the file in a base64 text. Raises UserError and TooLarge."""
    data = decode_image(text)
    if upscalers:
        check_target(upscaling, data)
    return data


def html_info(body: UpscaleRequest, notes: Iterable[str]) -> str:
    """Returns the webui's line about the enlarged images as HTML, and the notes."""
    return "".join(f"<p>{escape(line)}</p>" for line in (upscaling_of(body).describe(), *notes) if line)
