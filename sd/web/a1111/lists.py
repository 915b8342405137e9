"""The webui's lists of models, samplers and the like, and its server state, which clients ask for first.

No answer contains a path of this machine.
"""

import asyncio
import os
from typing import Any

from fastapi import APIRouter

from sd.checkpoints.hashing import known_hash
from sd.pipeline.sampler_names import ALL_SAMPLERS
from sd.pipeline.settings import HIRES_UPSCALERS, SCHEDULE_LABELS, VERSION
from sd.prompts.styles import read_styles
from sd.upscalers.upscale import FILTERS
from sd.web.a1111.options import model_name_of, title_of
from sd.web.a1111.scripts import OUTPAINTING, XYZ
from sd.web.jobs.job import Missing
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.problems import PROBLEMS

# Lists that never change here, most of them empty.
EMPTY: dict[str, Any] = {
    "sd-modules": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "scripts": {"txt2img": [XYZ], "img2img": [OUTPAINTING, XYZ]},
    "script-info": [],
    "extensions": [],
    "cmd-flags": {"api": True},
}
SCALES = {"None": 1}  # the webui's values, 4 for all others
NO_LATENT = tuple(FILTERS)  # upscalers of the second pass that work on the image


def lists_router(jobs: Jobs, models: Models) -> APIRouter:
    """Return the routes; the last one takes every other address below /sdapi/v1."""
    router = APIRouter(prefix="/sdapi/v1", tags=["webui"], responses=PROBLEMS)
    add_models(router, models)
    add_sampling_lists(router, models)
    add_state(router, jobs)
    add_others(router)
    return router


def add_models(router: APIRouter, models: Models) -> None:
    @router.get("/sd-models")
    async def sd_models() -> list[dict]:
        return await asyncio.to_thread(describe_checkpoints, models)

    @router.get("/sd-vae")
    async def sd_vae() -> list[dict]:
        found = models.names("VAE") if "VAE" in models.folders else {}
        return [{"model_name": path.name, "filename": path.name} for path in found.values()]

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


def describe_checkpoints(models: Models) -> list[dict]:
    """Return the webui's list of checkpoints, with hashes that are known; computing one takes seconds for each file."""
    described = []
    for name, path in models.names("checkpoint").items():
        title, sha256 = title_of(models, name), known_hash(path)
        described.append(
            {
                "title": f"{title} [{sha256[:10]}]" if sha256 else title,
                "model_name": model_name_of(title),
                "hash": sha256[:10] or None,
                "sha256": sha256 or None,
                "filename": title,
                "config": None,
            }
        )
    return described


def add_sampling_lists(router: APIRouter, models: Models) -> None:
    @router.get("/samplers")
    async def samplers() -> list[dict]:
        return [
            {"name": one.label, "aliases": [name, f"k_{name}"], "options": {}} for name, one in ALL_SAMPLERS.items()
        ]

    @router.get("/schedulers")
    async def schedulers() -> list[dict]:
        more = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        labels = ["Automatic", *SCHEDULE_LABELS.values()]
        return [{"name": label.lower().replace(" ", "_"), "label": label} | more for label in labels]

    @router.get("/upscalers")
    async def upscalers() -> list[dict]:
        more = {"model_name": None, "model_path": None, "model_url": None}
        found = list(await asyncio.to_thread(models.names, "upscaler"))
        names = ["None", *(name.title() for name in FILTERS), *found]
        return [{"name": name} | more | {"scale": SCALES.get(name, 4)} for name in names]

    @router.get("/latent-upscale-modes")
    async def latent_upscale_modes() -> list[dict]:
        return [{"name": label} for name, label in HIRES_UPSCALERS.items() if name not in NO_LATENT]

    @router.get("/prompt-styles")
    async def prompt_styles() -> list[dict]:
        return [style._asdict() for style in (await asyncio.to_thread(read_styles)).values()]


def add_state(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/memory")
    async def memory() -> dict:
        return {"ram": ram(), "cuda": {"error": "unavailable"}}

    @router.post("/unload-checkpoint")
    async def unload_checkpoint() -> dict:
        """Free the memory of every idle worker; the next request loads the checkpoint again."""
        await asyncio.to_thread(jobs.free_memory)
        return {}

    @router.post("/reload-checkpoint")
    async def reload_checkpoint() -> dict:
        """Do nothing, since each request loads its checkpoint."""
        return {}


def ram() -> dict:
    """Return the memory in bytes, in the webui's keys."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return {"error": "unavailable"}
    return {"free": free, "used": total - free, "total": total}


def add_others(router: APIRouter) -> None:
    @router.get("/{what}")
    async def others(what: str) -> Any:
        if what not in EMPTY:
            raise Missing(f"GET /sdapi/v1/{what[:50]} is not supported here.")
        return EMPTY[what]

    @router.post("/{what}")
    async def other_work(what: str) -> None:
        raise Missing(f"POST /sdapi/v1/{what[:50]} is not supported here.")


def connect_router(jobs: Jobs) -> APIRouter:
    """Return the routes beside /sdapi by which clients detect a webui."""
    router = APIRouter(tags=["webui"], responses=PROBLEMS)

    @router.get("/internal/ping")
    async def ping() -> dict:
        return {}

    @router.get("/internal/sysinfo")
    async def sysinfo() -> dict:
        return {"Version": VERSION}

    @router.get("/app_id")
    @router.get("/app_id/")
    async def app_id() -> dict:
        return {"app_id": os.getpid()}

    @router.get("/queue/status")
    async def queue_status() -> dict:
        waiting = len(jobs.waiting)
        return {"msg": "estimation", "rank": waiting, "queue_size": waiting, "avg_event_process_time": None}

    @router.get("/login_check")
    @router.get("/login_check/")
    @router.get("/user")
    @router.get("/user/")
    async def user() -> None:
        return None

    @router.get("/token")
    @router.get("/token/")
    async def token() -> dict:
        return {"token": None, "user": None}

    return router
