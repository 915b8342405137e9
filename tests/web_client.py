"""A server with a small model of random weights, for tests of the web."""

import base64
import io
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn
from fake_jobs import job_events
from fastapi.testclient import TestClient
from PIL import Image

from sd.pipeline.stable_diffusion import BUNDLED
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import Jobs
from sd.web.jobs.worker import JobRunner
from sd.web.server import create_app

HERE = "http://127.0.0.1"


class Web:
    """The parts of a server, in one process: `pipe` generates, folders lie below `folder`."""

    def __init__(self, folder, pipe, limit=64, **guard):
        self.models = Models(*(folder / name for name in ("weights", "weights/loras", "weights/embeddings")))
        for path in self.models.folders.values():
            path.mkdir(parents=True, exist_ok=True)
        pipe.path = BUNDLED  # as if it had been loaded from there, so that it stays
        pipe.adapters.models = self.models
        self.pipe, self.generator = pipe, ImageGenerator(self.models, pipe=pipe)
        self.jobs = Jobs(folder / "jobs", JobRunner(self.generator), limit)
        self.app = create_app(self.jobs, self.models, page=False, **guard)
        self.client = TestClient(self.app, base_url=HERE, raise_server_exceptions=False)

    def ended(self, job: dict) -> dict:
        """What GET /jobs/ID says once it has ended."""
        list(job_events(self.jobs, job["id"]))
        return self.client.get(f"/jobs/{job['id']}").json()


def post(web: Web, path: str, **body) -> dict:
    """The answer of the webui's API to a body that it must accept."""
    answer = web.client.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextmanager
def listening(app, port=0):
    """Serves the app on a real socket and yields its port; 0 for a free one."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, proxy_headers=False)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def base64_of(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def opened(text: str) -> Image.Image:
    """The image in an answer's base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))
