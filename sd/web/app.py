"""The server: everything put together, closed unless it is opened."""

import argparse
import asyncio
import gc
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline

from sd.cli import add_ways_to_compute, device_of, dtype_of, optimizations_of
from sd.errors import UserError
from sd.image import check_outdir
from sd.optimize import checked
from sd.settings import VERSION
from sd.web.api import answer_invalid, answer_mistake, answer_user_error, jobs_router
from sd.web.drawing import Drawer
from sd.web.guard import LOOPBACK, Guard, parse_auth
from sd.web.jobs import WAITING, Jobs
from sd.web.models import Models
from sd.web.sdapi import sdapi_router
from sd.web.work import Work
from sd.web.worker import Isolated

STOP_AFTER = 3  # seconds that open connections are given at the end


def create_app(
    jobs: Jobs,
    models: Models,
    auth: tuple[str, str] | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
    page: bool = True,
) -> FastAPI:
    """The API and, unless `page` is False or Gradio is missing, the page. auth, hosts: see `guard.Guard`.

    Its end closes the jobs.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(jobs.close)

    about = {"title": "Stable Diffusion by hand", "version": VERSION.split()[-1]}
    app = FastAPIOffline(redoc_url=None, lifespan=lifespan, **about)  # ReDoc fetches a picture from elsewhere
    app.add_exception_handler(UserError, answer_user_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_mistake)
    app.include_router(jobs_router(jobs, models))
    app.include_router(sdapi_router(jobs, models))
    if page and find_spec("gradio") and find_spec("sd.web.page"):
        from sd.web.page import mount_page  # Gradio takes seconds to import and is not there in every installation

        app = mount_page(app, jobs, models)
    app.add_middleware(Guard, auth=auth, hosts=hosts)
    return app


def server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serves the page and the HTTP API, on this machine only unless told.")
    add = parser.add_argument
    add("--listen", default="127.0.0.1", metavar="HOST", help="where to listen (127.0.0.1); others want --auth")
    add("--port", type=int, default=7860, help="(7860)")
    add("--auth", metavar="USER:PASSWORD", help="let in only who knows these")
    add("--no-auth", action="store_true", help="let everybody in, from other machines too")
    add("--outdir", default="outputs", help="folder for the jobs and their pictures (outputs)")
    add("--device", action="append", help="cpu, cuda, cuda:1, mps; several times for several workers")
    add_ways_to_compute(parser)
    add("--queue", type=int, default=WAITING, help=f"how many jobs may wait ({WAITING})")
    return parser


def serve(args: argparse.Namespace) -> None:
    """Until Ctrl-C. Raises UserError before anything is opened that should not be."""
    auth = check_openness(args)
    listener = listen(args.listen, args.port)
    folder, models = check_outdir(Path(args.outdir) / "jobs"), Models()
    workers = workers_of(args, models)
    jobs = Jobs(folder, workers, args.queue)
    app = create_app(jobs, models, auth, LOOPBACK if is_loopback(args.listen) else None)
    never_collect_what_is_built()
    print(f"open http://{address(listener)} (the HTTP API is described at /docs); Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOP_AFTER)
    Server(config, jobs).run(sockets=[listener])


def workers_of(args: argparse.Namespace, models: Models) -> list[Isolated]:
    """One for each device. Raises UserError for a device, or patches for speed, that this machine has not."""
    devices = args.device or [None]
    for device in map(device_of, devices):
        checked(optimizations_of(args.optimize), device, dtype_of(args.precision, device))
    return [Isolated(Work, Drawer(models, device, args.precision, args.optimize)) for device in devices]


def never_collect_what_is_built() -> None:
    """The libraries and the page are 300,000 objects that stay to the end. Looking for garbage among them would stop
    all answers for 0.15 s and more, every few hundred pictures.
    """
    gc.collect()
    gc.freeze()


class Server(uvicorn.Server):
    """Closes the jobs before it waits for open connections: those that wait for pictures are answered then."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs):
        super().__init__(config)
        self.jobs = jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self.jobs.close)
        await super().shutdown(sockets)


def check_openness(args: argparse.Namespace) -> tuple[str, str] | None:
    """(user, password) if there is one. Raises UserError where the flags leave open who may come in."""
    if args.auth and args.no_auth:
        raise UserError("--auth and --no-auth contradict each other: give one.")
    if args.auth:
        return parse_auth(args.auth)
    if not is_loopback(args.listen) and not args.no_auth:
        raise UserError(
            f"--listen {args.listen} lets other machines in: add --auth user:password, or --no-auth if all may come."
        )
    return None


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """port: 0 for any that is free."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error}): choose another with --port.") from error


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
