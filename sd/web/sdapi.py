"""AUTOMATIC1111's HTTP API, /sdapi/v1/..., for the clients that people already have."""

import asyncio
import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel

from sd.errors import UserError
from sd.infotext import parse_infotext, read_infotext
from sd.samplers import SAMPLERS
from sd.settings import HIRES_UPSCALERS, SCHEDULE_LABELS
from sd.styles import read_styles
from sd.web.api import PROBLEMS
from sd.web.asking import ask
from sd.web.job import Job, Missing
from sd.web.jobs import Jobs
from sd.web.limits import decode_picture
from sd.web.models import Models
from sd.web.options import Options
from sd.web.webui import ImageToImage, TextToImage, asked_of, info_of

# What clients look up and is not to be had here.
EMPTY: dict[str, Any] = {
    "upscalers": [],
    "latent-upscale-modes": [{"name": label} for label in HIRES_UPSCALERS.values()],
    "sd-vae": [],
    "sd-modules": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "extensions": [],
    "cmd-flags": {"api": True},
}


class Picture(BaseModel):
    image: str


class Server:
    """What the handlers share."""

    def __init__(self, jobs: Jobs, models: Models):
        self.jobs, self.models, self.options = jobs, models, Options(models)

    async def draw(self, body: TextToImage) -> dict:
        """Asks for the pictures and waits for them, as the webui does; the job is one like all others."""
        job = await asyncio.to_thread(self.ask, body)
        async for _ in self.jobs.changes(job.id):
            pass
        job = self.jobs.get(job.id)
        if job.state == "failed":
            raise HTTPException(422 if job.mendable else 500, job.error)
        if job.state == "interrupted":
            raise HTTPException(503, job.error)
        return await asyncio.to_thread(answer_of, job, body)

    def ask(self, body: TextToImage) -> Job:
        options = self.options.with_changes(body.override_settings)
        job = ask(self.jobs, self.models, asked_of(body, options))
        if not body.override_settings_restore_afterwards:
            self.options.set(body.override_settings)
        return job

    def progress(self, job: Job | None) -> dict:
        """As the webui tells it. current_image is filled in by who has time to read it."""
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
            "current_task": job.id if job else None,
        }


def answer_of(job: Job, body: TextToImage) -> dict:
    """Of a cancelled job what was finished before."""
    result = job.result or {"images": [], "seeds": [], "infotexts": [], "settings": job.request["settings"]}
    images = [encode(job.folder / name) for name in result["images"]] if body.send_images else []
    parameters = body.model_dump(include=set(type(body).model_fields))
    if not getattr(body, "include_init_images", False):
        parameters |= {"init_images": None, "mask": None}
    return {"images": images, "parameters": parameters, "info": json.dumps(info_of(result, body))}


def encode(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def read_settings(text: str) -> dict:
    """The settings in a picture's file, given in base64; none is no error here."""
    data = decode_picture(text)
    try:
        infotext = read_infotext(io.BytesIO(data))
    except UserError:
        return {"info": "", "items": {}, "parameters": {}}
    return {"info": infotext, "items": {"parameters": infotext}, "parameters": parse_infotext(infotext)}


def sdapi_router(jobs: Jobs, models: Models) -> APIRouter:
    server = Server(jobs, models)
    previews = ThreadPoolExecutor(1)  # of its own: in the common one they would wait behind fifty new jobs
    router = APIRouter(prefix="/sdapi/v1", tags=["webui"], responses=PROBLEMS)

    @router.post("/txt2img")
    async def txt2img(body: TextToImage) -> dict:
        return await server.draw(body)

    @router.post("/img2img")
    async def img2img(body: ImageToImage) -> dict:
        return await server.draw(body)

    @router.get("/progress")
    async def progress(skip_current_image: bool = False) -> dict:
        job = jobs.current()
        answer = server.progress(job)
        if job and not skip_current_image and "preview" in job.event:
            path = job.folder / job.event["preview"]
            answer["current_image"] = await asyncio.get_running_loop().run_in_executor(previews, encode, path)
        return answer

    @router.post("/interrupt")
    async def interrupt() -> dict:
        if job := jobs.current():
            jobs.cancel(job.id)
        return {}

    @router.post("/skip")
    async def skip() -> dict:
        if job := jobs.current():
            jobs.skip(job.id)
        return {}

    @router.post("/png-info")
    async def png_info(body: Picture) -> dict:
        return await asyncio.to_thread(read_settings, body.image)

    add_options(router, server)
    add_lists(router, models)
    return router


def add_options(router: APIRouter, server: Server) -> None:
    @router.get("/options")
    async def get_options() -> dict:
        return server.options.all()

    @router.post("/options")
    async def set_options(changes: dict[str, Any]) -> None:
        server.options.set(changes)


def add_lists(router: APIRouter, models: Models) -> None:
    @router.get("/sd-models")
    async def sd_models() -> list[dict]:
        more = {"hash": None, "sha256": None, "config": None}
        found = models.names("checkpoint").items()
        return [{"title": path.name, "model_name": name, "filename": path.name} | more for name, path in found]

    @router.get("/samplers")
    async def samplers() -> list[dict]:
        return [{"name": one.label, "aliases": [name], "options": {}} for name, one in SAMPLERS.items()]

    @router.get("/schedulers")
    async def schedulers() -> list[dict]:
        more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        labels = ["Automatic", *SCHEDULE_LABELS.values()]
        return [{"name": label.lower().replace(" ", "_"), "label": label} | more for label in labels]

    @router.get("/prompt-styles")
    async def prompt_styles() -> list[dict]:
        return [style._asdict() for style in (await asyncio.to_thread(read_styles)).values()]

    @router.get("/loras")
    async def loras() -> list[dict]:
        found = models.names("LoRA").items()
        return [{"name": name, "alias": name, "path": path.name, "metadata": {}} for name, path in found]

    @router.get("/embeddings")
    async def embeddings() -> dict:
        return await asyncio.to_thread(models.describe_embeddings)

    @router.post("/refresh-checkpoints")
    @router.post("/refresh-loras")
    @router.post("/refresh-embeddings")
    @router.post("/refresh-vae")
    async def refresh() -> None:
        models.refresh()

    @router.get("/{what}")
    async def others(what: str) -> Any:
        if what not in EMPTY:
            raise Missing(f"GET /sdapi/v1/{what[:50]} is not supported here.")
        return EMPTY[what]

    @router.post("/{what}")
    async def other_work(what: str) -> None:
        raise Missing(f"POST /sdapi/v1/{what[:50]} is not supported here.")
