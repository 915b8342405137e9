"""Jobs over HTTP: POST /jobs, GET /jobs/ID, GET /jobs/ID/events, DELETE /jobs/ID, GET /jobs/ID/files/NAME.

Whatever goes wrong is answered as `problems` says.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields

from fastapi import APIRouter
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import ConfigDict, create_model

from sd.pipeline.settings import GenerationSettings
from sd.web.jobs.job import Job
from sd.web.jobs.limits import MAX_BODY, decode_picture
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.submit import GenerateRequest, submit_request
from sd.web.problems import PROBLEMS

NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


SETTINGS = {one.name: (one.type, one.default) for one in fields(GenerationSettings)}
Chosen = create_model("Chosen", **SETTINGS | {"prompt": (str, ...)})  # all but the prompt may be left out


class Draw(Chosen):
    """What to draw: the fields of `sd.pipeline.settings.GenerationSettings`, and what stands beside them.

    checkpoint: its name; the one to take unless told if "". vae: the name of a separate VAE, "" for none. image: base64
    or a data: URL, a picture to start from. mask: likewise, white where to draw anew.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=MAX_BODY)

    checkpoint: str = ""
    vae: str = ""
    image: str | None = None
    mask: str | None = None

    def asked(self) -> GenerateRequest:
        """Raises UserError. Pictures are decoded, which takes time."""
        image, mask = (None if text is None else decode_picture(text) for text in (self.image, self.mask))
        settings = GenerationSettings(**{field.name: getattr(self, field.name) for field in fields(GenerationSettings)})
        return GenerateRequest(settings, self.checkpoint, image, mask, vae=self.vae)


def jobs_router(jobs: Jobs, models: Models) -> APIRouter:
    """No handler waits for a worker or works long in the event loop, so that all answer while pictures are drawn."""
    router = APIRouter(tags=["jobs"], responses=PROBLEMS)

    @router.post("/jobs", status_code=202)
    async def submit(body: Draw) -> dict:
        """Asks for pictures; answers at once with the job, whose `id` the other addresses want."""
        job = await asyncio.to_thread(lambda: submit_request(jobs, models, body.asked()))
        return describe(jobs, job)

    @router.get("/jobs")
    async def newest() -> list[dict]:
        """The newest hundred, newest first."""
        return await asyncio.to_thread(lambda: [describe(jobs, job) for job in jobs.list()])

    @router.get("/jobs/{id}")
    async def state(id: str) -> dict:
        """How far it is, and in the end its files."""
        return describe(jobs, jobs.get(id))

    @router.get("/jobs/{id}/events", response_class=StreamingResponse)
    async def events(id: str) -> StreamingResponse:
        """The job after each step, as server-sent events, until it has ended."""
        jobs.get(id)
        return StreamingResponse(event_lines(jobs, id), media_type="text/event-stream", headers=NO_STORE)

    @router.delete("/jobs/{id}")
    async def cancel(id: str) -> dict:
        """Stops it at the end of its step. What has ended stays as it is."""
        return describe(jobs, jobs.cancel(id))

    @router.get("/jobs/{id}/files/{name}", response_class=FileResponse)
    async def file(id: str, name: str) -> FileResponse:
        """One of the job's own files, of those that its result names."""
        return FileResponse(jobs.get(id).file(name), headers=NO_STORE)

    return router


def describe(jobs: Jobs, job: Job) -> dict:
    """As the API shows it; ahead: how many jobs wait before it."""
    return job.public() | {"ahead": jobs.ahead(job)}


async def event_lines(jobs: Jobs, id: str) -> AsyncIterator[str]:
    async for event in jobs.changes(id):
        yield f"data: {json.dumps(event)}\n\n"
