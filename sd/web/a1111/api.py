"""AUTOMATIC1111's HTTP API, /sdapi/v1/..., for existing clients."""

import asyncio
import base64
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from sd.pipeline.infotext import parse_infotext
from sd.utils.errors import UserError
from sd.web.a1111.body import WebuiBody
from sd.web.a1111.controlnet import controlnet_router
from sd.web.a1111.extras import extras_router
from sd.web.a1111.lists import connect_router, lists_router
from sd.web.a1111.options import Options
from sd.web.a1111.schema import ImageToImage, TextToImage, request_from_body, response_info
from sd.web.a1111.scripts import is_without_images
from sd.web.a1111.waiting import wait_for_job
from sd.web.jobs.job import Interrupted, Job
from sd.web.jobs.limits import decode_image, uploaded_infotext
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.submit import submit_request
from sd.web.problems import PROBLEMS, report

MOST_TASKS = 1000  # ids of `force_task_id` that are kept


class PngInfoBody(BaseModel):
    image: str


class Task(WebuiBody):
    """The body of /internal/progress. id_task: the force_task_id of a request. live_preview: whether to send one."""

    id_task: str = ""
    id_live_preview: int = -1
    live_preview: bool = True


class Server:
    """The state that the handlers share."""

    def __init__(self, jobs: Jobs, models: Models):
        self.jobs, self.models, self.options = jobs, models, Options(models)
        self.tasks: OrderedDict[str, str] = OrderedDict()  # force_task_id -> the job's id
        self.previews = ThreadPoolExecutor(1)  # of its own, so that previews do not wait behind new jobs

    async def generate(self, body: TextToImage, request: Request) -> dict:
        """Queue a job and wait for its images, as the webui does."""
        job, ignored, notes = await asyncio.to_thread(self.submit, body)
        job = await wait_for_job(self.jobs, job.id)
        notes = [*notes, *job.result.get("notes", [])]
        if ignored:
            report(request.scope, f"ignored unknown fields: {', '.join(ignored)}")
        for note in notes:
            report(request.scope, f"note: {note}")
        return await asyncio.to_thread(answer_of, job, body, ignored, notes)

    def submit(self, body: TextToImage) -> tuple[Job, list[str], list[str]]:
        """Queue a job; return it, the names of the ignored fields, and notes. Raises UserError."""
        options, notes = self.options.with_changes(body.override_settings)
        request, ignored, more = request_from_body(body, options)
        job = submit_request(self.jobs, self.models, request)
        if not body.override_settings_restore_afterwards:
            self.options.set(body.override_settings)
        if body.force_task_id:
            self.tasks[body.force_task_id[:200]] = job.id
            while len(self.tasks) > MOST_TASKS:
                self.tasks.popitem(last=False)
        return job, ignored, [*notes, *more]

    def progress(self, job: Job | None) -> dict:
        """Return the webui's progress answer; the caller adds current_image."""
        event = job.event if job else {}
        return {
            "progress": job.progress if job else 0.0,
            "eta_relative": (job.eta or 0.0) if job else 0.0,
            "state": {
                "skipped": False,
                "interrupted": False,
                "stopping_generation": False,
                "job": job.id if job else "",
                "job_count": len(self.jobs.live),
                "job_timestamp": job.id[:15].replace("-", "") if job else "0",
                "job_no": 0,
                "sampling_step": event.get("step", 0),
                "sampling_steps": event.get("steps", 0),
            },
            "current_image": None,
            "textinfo": None,
        }

    async def task(self, body: Task) -> dict:
        """Return the webui's progress answer for one task."""
        id = self.tasks.get(body.id_task, "")
        job = self.jobs.get(id) if id else None
        preview = await self.preview(job) if job and body.live_preview and not job.has_ended else None
        return {
            "active": bool(job) and job.state == "running",
            "queued": bool(job) and job.state == "queued",
            "completed": bool(job) and job.has_ended,
            "progress": job.progress if job else None,
            "eta": job.eta if job else None,
            "live_preview": preview and f"data:image/png;base64,{preview}",
            "id_live_preview": job.event.get("step", -1) if job and preview else body.id_live_preview,
            "textinfo": "Waiting..." if not job or job.state == "queued" else None,
        }

    async def preview(self, job: Job | None) -> str | None:
        """Return the job's preview in base64, or None."""
        if job is None or "preview" not in job.event:
            return None
        path = job.folder / job.event["preview"]
        return await asyncio.get_running_loop().run_in_executor(self.previews, encode, path)


def answer_of(job: Job, body: TextToImage, ignored: list[str], notes: list[str]) -> dict:
    """Return the webui's answer; a cancelled job's has the images that were finished."""
    result = job.result or {"images": [], "seeds": [], "infotexts": [], "settings": job.request["settings"]}
    shown = result["images"][: 1 if is_without_images(body.script_name, body.script_args) else None]
    images = [encode(job.folder / name) for name in shown] if body.send_images else []
    parameters = body.model_dump(include=set(type(body).model_fields))
    if not getattr(body, "include_init_images", False):
        parameters |= {"init_images": None, "mask": None}
    return {"images": images, "parameters": parameters, "info": json.dumps(response_info(result, body, ignored, notes))}


def encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def read_settings(text: str) -> dict:
    """Return the settings in an image, given in base64; an image without settings is no error."""
    data = decode_image(text)
    try:
        infotext = uploaded_infotext(data)
    except UserError:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": infotext, "items": {"parameters": infotext}, "parameters": parse_infotext(infotext)}


def sdapi_router(jobs: Jobs, models: Models) -> APIRouter:
    server = Server(jobs, models)
    router = APIRouter(prefix="/sdapi/v1", tags=["webui"], responses=PROBLEMS)
    add_images(router, server)
    add_running(router, server)
    add_options(router, server)
    whole = APIRouter()
    extensions = (extras_router(jobs, models), controlnet_router(models), task_router(server))
    for one in (router, *extensions, connect_router(jobs), lists_router(jobs, models)):
        whole.include_router(one)
    return whole


def add_images(router: APIRouter, server: Server) -> None:
    @router.post("/txt2img")
    async def txt2img(body: TextToImage, request: Request) -> dict:
        return await server.generate(body, request)

    @router.post("/img2img")
    async def img2img(body: ImageToImage, request: Request) -> dict:
        return await server.generate(body, request)

    @router.post("/png-info")
    async def png_info(body: PngInfoBody) -> dict:
        return await asyncio.to_thread(read_settings, body.image)


def add_running(router: APIRouter, server: Server) -> None:
    jobs = server.jobs

    @router.get("/progress")
    async def progress(skip_current_image: bool = False) -> dict:
        job = jobs.current()
        answer = server.progress(job)
        if not skip_current_image:
            answer["current_image"] = await server.preview(job)
        return answer

    @router.post("/interrupt")
    async def interrupt() -> dict:
        """Stop the running job; its answer has the finished images and the unfinished one."""
        if job := jobs.current():
            jobs.cancel(job.id, Interrupted)
        return {}

    @router.post("/skip")
    async def skip() -> dict:
        if job := jobs.current():
            jobs.skip(job.id)
        return {}


def add_options(router: APIRouter, server: Server) -> None:
    @router.get("/options")
    async def get_options() -> dict:
        return server.options.all()

    @router.post("/options")
    async def set_options(changes: dict[str, Any]) -> None:
        server.options.set(changes)


def task_router(server: Server) -> APIRouter:
    router = APIRouter(prefix="/internal", tags=["webui"], responses=PROBLEMS)

    @router.post("/progress")
    async def task_progress(body: Task) -> dict:
        return await server.task(body)

    return router
