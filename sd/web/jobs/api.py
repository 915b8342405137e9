"""Jobs over HTTP: POST /jobs, GET /jobs/ID, GET /jobs/ID/events, DELETE /jobs/ID, GET /jobs/ID/files/NAME.

Errors are answered as in `sd.web.problems`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import ConfigDict, Field, create_model

from sd.control.units import MAX_UNITS
from sd.pipeline.sampling.conditioning import MAX_PARTS
from sd.pipeline.settings import GenerationSettings
from sd.web.jobs.job import Job
from sd.web.jobs.limits import MAX_BODY, decode_image
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.submit import GenerateRequest, submit_request
from sd.web.problems import PROBLEMS

NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


SETTINGS: dict[str, Any] = {one.name: (one.type, one.default) for one in fields(GenerationSettings)}
# Only the prompt is required. Any: the fields are known only at run time.
SettingsBody: Any = create_model("SettingsBody", **SETTINGS | {"prompt": (str, ...)})


class GenerateBody(SettingsBody):
    """The body of POST /jobs: the fields of `sd.pipeline.settings.GenerationSettings`, and those beside them.

    checkpoint: its name, "" for the default. vae: the name of a separate VAE, "" for the default. prediction: what a
    checkpoint without marks predicts, such as "v". image: an input image as base64 or a data: URL. mask: likewise,
    white where to generate. control_images: likewise, one for each ControlNet in `control`, or one for all.
    region_masks: likewise, one for each region of the prompt, white where it works. axes: up to three axes of an X/Y/Z
    grid, such as "steps=10, 20".
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=MAX_BODY)

    checkpoint: str = ""
    vae: str = ""
    prediction: str = ""
    image: str | None = None
    mask: str | None = None
    control_images: list[str] = Field([], max_length=MAX_UNITS)
    axes: list[str] = Field([], max_length=3)
    region_masks: list[str] = Field([], max_length=MAX_PARTS)

    def to_request(self) -> GenerateRequest:
        """Convert to a request. Decodes images, which takes time. Raises UserError."""
        image, mask = (None if text is None else decode_image(text) for text in (self.image, self.mask))
        settings = GenerationSettings(**{field.name: getattr(self, field.name) for field in fields(GenerationSettings)})
        control_images = [decode_image(text) for text in self.control_images]
        return GenerateRequest(
            *(settings, self.checkpoint, image, mask),
            vae=self.vae,
            prediction=self.prediction,
            control_images=control_images,
            axes=self.axes,
            region_masks=[decode_image(text) for text in self.region_masks],
        )


def jobs_router(jobs: Jobs, models: Models) -> APIRouter:
    """Return the routes. No handler blocks the event loop, so that all answer while images are generated."""
    router = APIRouter(tags=["jobs"], responses=PROBLEMS)

    @router.post("/jobs", status_code=202)
    async def submit(body: GenerateBody) -> dict:
        """Queue a job; answers at once with the job, whose `id` the other addresses take."""
        job = await asyncio.to_thread(lambda: submit_request(jobs, models, body.to_request()))
        return describe(jobs, job)

    @router.get("/jobs")
    async def newest() -> list[dict]:
        """List the newest hundred jobs, newest first."""
        return await asyncio.to_thread(lambda: [describe(jobs, job) for job in jobs.list()])

    @router.get("/jobs/{id}")
    async def state(id: str) -> dict:
        """Show a job: its progress, and in the end its files."""
        return describe(jobs, jobs.get(id))

    @router.get("/jobs/{id}/events", response_class=StreamingResponse)
    async def events(id: str) -> StreamingResponse:
        """Stream the job after each step, as server-sent events, until it has ended."""
        jobs.get(id)
        return StreamingResponse(event_lines(jobs, id), media_type="text/event-stream", headers=NO_STORE)

    @router.delete("/jobs/{id}")
    async def cancel(id: str) -> dict:
        """Stop a job after its current step; an ended job stays as it is."""
        return describe(jobs, jobs.cancel(id))

    @router.get("/jobs/{id}/files/{name}", response_class=FileResponse)
    async def file(id: str, name: str) -> FileResponse:
        """Download one of the files that the job's result names."""
        return FileResponse(jobs.get(id).file(name), headers=NO_STORE)

    return router


def describe(jobs: Jobs, job: Job) -> dict:
    """Return the job as JSON values, with "ahead": how many waiting jobs come before it."""
    return job.public() | {"ahead": jobs.ahead(job)}


async def event_lines(jobs: Jobs, id: str) -> AsyncIterator[str]:
    async for event in jobs.changes(id):
        yield f"data: {json.dumps(event)}\n\n"
