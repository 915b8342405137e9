"""The server: the API and the page behind access control, on this machine only by default."""

import argparse
import asyncio
import errno
import gc
import logging
import multiprocessing
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from sd.checkpoints.model_files import read_by
from sd.cli.args import add_compute_flags
from sd.cli.parser import ArgumentParser
from sd.optimization.registry import parse_names, resolve_names
from sd.pipeline.settings import VERSION
from sd.utils.device import device_of, dtype_of
from sd.utils.errors import UserError
from sd.utils.files import check_outdir
from sd.web.a1111.api import sdapi_router
from sd.web.jobs.api import jobs_router
from sd.web.jobs.file_reader import FileReader
from sd.web.jobs.generate import ImageGenerator
from sd.web.jobs.model_index import Models
from sd.web.jobs.queue import WAITING, Jobs
from sd.web.jobs.uploads import decode_by
from sd.web.jobs.worker import JobRunner, WorkerProcess
from sd.web.live.routes import live_router
from sd.web.problems import add_error_handlers
from sd.web.proxies import ProxyHeaders, is_loopback_address, parse_root_path
from sd.web.security import LOOPBACK, Guard, parse_auth, parse_origins

STOP_AFTER = 3  # seconds that open connections are given at the end


def create_app(
    jobs: Jobs,
    models: Models,
    auth: tuple[str, str] | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
    page: bool = True,
    origins: tuple[str, ...] = (),
    root_path: str = "",
) -> FastAPI:
    """Return the app: the API and, unless `page` is False or Gradio is missing, the page. Its end closes the jobs.

    auth, hosts, origins: see `security.Guard`. root_path: see `proxies.ProxyHeaders`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(jobs.close)

    about = {"title": "Stable Diffusion by hand", "version": VERSION.split()[-1]}
    # ReDoc fetches an image from elsewhere. JSON without a Content-Type is accepted; `security` says why that is safe.
    app = FastAPIOffline(redoc_url=None, lifespan=lifespan, strict_content_type=False, **about)
    add_error_handlers(app)
    app.include_router(jobs_router(jobs, models))
    app.include_router(sdapi_router(jobs, models))
    app.include_router(live_router())
    if page and find_spec("gradio") and find_spec("sd.web.ui.page"):
        from sd.web.ui.page import mount_page  # Gradio takes seconds to import and is not there in every installation

        app = mount_page(app, jobs, models)
    app.add_middleware(Guard, auth=auth, hosts=hosts, origins=origins)
    if origins:
        add_cors(app, origins)
    app.add_middleware(ProxyHeaders, root_path=root_path)
    return app


def add_cors(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Answer preflight requests, which carry no password, before `Guard` requires one."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        allow_credentials="*" not in origins,  # a browser sends its stored password to sites named one by one only
        allow_private_network=True,
    )


def server_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Serve the page and the HTTP API, on this machine only by default.")
    add = parser.add_argument
    add(
        "--listen",
        default="127.0.0.1",
        metavar="HOST",
        help="address to listen on (default: 127.0.0.1); others require --auth",
    )
    add("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    add("--auth", metavar="USER:PASSWORD", help="require this user and password")
    add("--no-auth", action="store_true", help="allow every client without a password, from other machines too")
    add_web_flags(parser)
    add("--outdir", default="outputs", help="folder for the jobs and their images (default: outputs)")
    add(
        "--device",
        action="append",
        help="cpu, cuda, cuda:1 or mps; repeatable, one worker each (default: a GPU, else cpu)",
    )
    add_compute_flags(parser)
    add("--queue", type=int, default=WAITING, help=f"how many jobs may wait (default: {WAITING})")
    return parser


def add_web_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--cors-allow-origins",
        action="append",
        default=[],
        metavar="ORIGINS",
        help="allow pages of other sites to use the API: http://localhost:5173,https://sd.example, or * (none)",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name of this server (repeatable)",
    )
    add(
        "--root-path",
        default="",
        metavar="/PATH",
        help="path under which a reverse proxy serves this server, such as /sd",
    )


def serve(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises UserError before it listens."""
    auth = check_access(args)
    origins, root_path = parse_origins(args.cors_allow_origins), parse_root_path(args.root_path)
    listener = listen(args.listen, args.port)
    folder, models = check_outdir(Path(args.outdir) / "jobs"), Models()
    workers = make_workers(args, models)
    read_outside(models)
    jobs = Jobs(folder, workers, args.queue)
    app = create_app(jobs, models, auth, allowed_hosts(args), origins=origins, root_path=root_path)
    freeze_garbage_collector()
    print(f"open http://{address(listener)} (the HTTP API is described at /docs); Ctrl-C ends it.", flush=True)
    logging.getLogger("uvicorn.error").addFilter(is_worth_logging)
    # `proxies` reads the headers of a proxy.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOP_AFTER, proxy_headers=False)
    with suppress(KeyboardInterrupt):  # uvicorn raises it once more when it has ended
        Server(config, jobs).run(sockets=[listener])


def read_outside(models: Models) -> None:
    """Let other processes read the files of models and decode uploaded images."""
    reader = FileReader()
    models.reader = reader
    read_by(reader)
    decode_by([reader, FileReader()])  # a file that holds the first one does not hold the images


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Filter out uvicorn's traceback for each connection that is open when the server ends."""
    cut_off = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and not record.getMessage().startswith("Cancel ")


def allowed_hosts(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the names for `security.Guard`; None for any where other machines may connect."""
    if not is_loopback(args.listen):
        return None
    return (*LOOPBACK, args.listen.lower(), *(name.lower() for name in args.allow_host))


def make_workers(args: argparse.Namespace, models: Models) -> list[WorkerProcess]:
    """Return one worker for each device. Raises UserError for a device or optimization that is not available."""
    devices = args.device or [None]
    for device in map(device_of, devices):
        resolve_names(parse_names(args.optimize), device, dtype_of(args.precision, device))
    return [
        WorkerProcess(JobRunner, ImageGenerator(models, device, args.precision, args.optimize)) for device in devices
    ]


def freeze_garbage_collector() -> None:
    """Exclude everything built so far from garbage collection.

    The libraries and the page are 300,000 permanent objects. Scanning them would delay all answers by 0.15 s and more,
    every few hundred images.
    """
    gc.collect()
    gc.freeze()


class Server(uvicorn.Server):
    """Closes the jobs before it waits for open connections, so that requests that wait for images are answered.

    A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, jobs: Jobs):
        super().__init__(config)
        self.jobs = jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        print("ending; Ctrl-C again ends at once.", flush=True)
        await asyncio.to_thread(self.jobs.close, STOP_AFTER)
        await super().shutdown(sockets)
        kill_workers()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            kill_workers()
            os._exit(128 + sig)
        super().handle_exit(sig, frame)


def kill_workers() -> None:
    """Kill the workers, since one in a long step would outlive the server."""
    for process in multiprocessing.active_children():
        process.kill()


def check_access(args: argparse.Namespace) -> tuple[str, str] | None:
    """Return (user, password) or None. Raises UserError where the flags do not say who may connect."""
    if args.auth and args.no_auth:
        raise UserError("--auth and --no-auth contradict each other: give one.")
    if args.auth:
        return parse_auth(args.auth)
    if not is_loopback(args.listen) and not args.no_auth:
        raise UserError(
            f"--listen {args.listen} admits other machines: add --auth user:password, or --no-auth to admit everyone."
        )
    return None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address or a host name."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return host == "localhost"
    return all(is_loopback_address(str(address[0])) for *_, address in found)


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket. port: 0 for a free one. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use already: choose another with --port.") from error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host}, port {port} ({reason}): choose another with --port.") from error


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
