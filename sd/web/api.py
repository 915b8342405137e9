"""Jobs over HTTP: POST /jobs, GET /jobs/ID, GET /jobs/ID/events, DELETE /jobs/ID, GET /jobs/ID/files/NAME.

Whatever goes wrong is answered with {"detail": "one sentence."}.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, create_model

from sd.errors import UserError
from sd.settings import Settings
from sd.web.asking import Asked, ask
from sd.web.job import Busy, Job, Missing
from sd.web.jobs import Jobs
from sd.web.limits import MAX_BODY, TooLarge, decode_picture
from sd.web.models import Models

STATUSES = {Busy: 503, Missing: 404, TooLarge: 413}  # of a UserError; 422 otherwise
NO_OBJECT = ("missing", "model_attributes_type", "dict_type")  # pydantic's words for it, said of a whole body
NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Problem(BaseModel):
    """One sentence: what is wrong and what to do."""

    detail: str


PROBLEMS = {status: {"model": Problem} for status in (400, 401, 403, 404, 413, 422, 503)}


SETTINGS = {one.name: (one.type, one.default) for one in fields(Settings)}
Chosen = create_model("Chosen", **SETTINGS | {"prompt": (str, ...)})  # all but the prompt may be left out


class Draw(Chosen):
    """What to draw: the fields of `sd.settings.Settings`, and what stands beside them.

    checkpoint: its name; the one to take unless told if "". image: base64 or a data: URL, a picture to start from.
    mask: likewise, white where to draw anew.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=MAX_BODY)

    checkpoint: str = ""
    image: str | None = None
    mask: str | None = None

    def asked(self) -> Asked:
        """Raises UserError. Pictures are decoded, which takes time."""
        image, mask = (None if text is None else decode_picture(text) for text in (self.image, self.mask))
        settings = Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})
        return Asked(settings, self.checkpoint, image, mask)


def jobs_router(jobs: Jobs, models: Models) -> APIRouter:
    """No handler waits for a worker or works long in the event loop, so that all answer while pictures are drawn."""
    router = APIRouter(tags=["jobs"], responses=PROBLEMS)

    @router.post("/jobs", status_code=202)
    async def submit(body: Draw) -> dict:
        """Asks for pictures; answers at once with the job, whose `id` the other addresses want."""
        job = await asyncio.to_thread(lambda: ask(jobs, models, body.asked()))
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


def status_of(error: UserError) -> int:
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 422)


def problem(status: int, sentence: str) -> JSONResponse:
    """The sentence may quote what was sent, and that may hold what is no text."""
    headers = {"Retry-After": "5"} if status == 503 else {}
    return JSONResponse({"detail": sentence.encode("utf-8", "replace").decode()}, status, headers)


async def answer_user_error(_: Request, error: UserError) -> JSONResponse:
    return problem(status_of(error), str(error))


async def answer_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """FastAPI's list of all that is wrong, as a sentence about the first."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "json_invalid" or (not place and first["type"] in NO_OBJECT):
        return problem(422, "the request holds no JSON object: send one, and say Content-Type: application/json.")
    return problem(422, f"{place}: {first['msg']}.".removeprefix(": "))


async def answer_mistake(_: Request, error: Exception) -> JSONResponse:
    return problem(500, f"a mistake in this program: {type(error).__name__}.")
