"""The addresses of the page /live: the page, its scripts, onnxruntime-web, the model's files, and tokens."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from sd.checkpoints.discovery import BUNDLED
from sd.pipeline.onnx_export import NETWORKS
from sd.utils.files import cache_dir
from sd.web.jobs.job import Missing
from sd.web.live.model import LiveModel

HERE = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript"}
WASM = "ort-wasm-simd-threaded.wasm"  # stored compressed
SCRIPTS = ("live.css", "live.js", "noise.js", "sampler.js", "worker.js")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", WASM)
NO_CACHE = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
LONGEST = 10_000  # characters of a prompt


class Prompts(BaseModel):
    """The body of POST /live/tokens."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=LONGEST)
    negative_prompt: str = Field("", max_length=LONGEST)


def live_router(model: LiveModel | None = None) -> APIRouter:
    """Return the routes. model: the bundled one, exported into the cache folder, if None."""
    router = APIRouter(include_in_schema=False, prefix="/live")
    live = model or LiveModel(BUNDLED, cache_dir() / "live")

    @router.get("")
    def page() -> FileResponse:
        return FileResponse(HERE / "browser" / "live.html", media_type="text/html", headers=NO_CACHE)

    @router.get("/model.json")
    def about() -> dict:
        return live.about()

    @router.get("/model/{version}/{name}.onnx")
    def network(version: str, name: str) -> FileResponse:
        if name not in NETWORKS or version != live.version():
            raise Missing("this model's file has changed or was never there: reload the page.")
        return FileResponse(live.folder() / f"{name}.onnx", media_type="application/octet-stream", headers=FOR_EVER)

    @router.post("/tokens")
    def tokens(prompts: Prompts) -> dict:
        rows, cut = live.tokenize([prompts.negative_prompt, prompts.prompt])
        return {"ids": rows, "cut": cut}

    @router.get("/{name}")
    def file(name: str) -> FileResponse:
        if name == WASM:
            headers = NO_CACHE | {"Content-Encoding": "gzip"}
            return FileResponse(HERE / "onnxruntime" / f"{WASM}.gz", media_type="application/wasm", headers=headers)
        if name not in SCRIPTS + RUNTIME:
            raise Missing("the page /live has no such file.")
        path = HERE / ("onnxruntime" if name in RUNTIME else "browser") / name
        return FileResponse(path, media_type=TYPES[path.suffix], headers=NO_CACHE)

    return router
