"""What both tabs do alike: errors as one sentence, and the jobs of each open page, followed over HTTP.

Every open page has a name of its own, which it keeps over a reload and which its jobs carry. So what a page shows is
read off the jobs alone: nothing is lost by a reload, a cut line or a restart of the server, and no page shows another's
jobs.
"""

import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from html import escape

import gradio as gr
from fastapi import APIRouter, Response

from sd.utils.errors import UserError
from sd.web.jobs.job import Job, Missing
from sd.web.jobs.queue import Jobs

# An event of the page is not a part of the HTTP API, and none waits for another.
EVENT = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
PRESS = EVENT | {"trigger_mode": "multiple"}  # pressed twice, it happens twice
PAGE = re.compile(r"[a-z0-9]{8,40}")  # a page's name for itself
SCANNED = 200  # newest jobs among which those of a page are looked for after a restart
PAGES = 500  # whose jobs are remembered

Show = Callable[[list[Job], Callable[[Job], int]], dict[str, str]]


def show_errors(handler: Callable) -> Callable:
    """The handler, whose UserError is shown on the page."""

    @functools.wraps(handler)
    def handle(*args: object) -> object:
        try:
            return handler(*args)
        except UserError as error:
            raise gr.Error(escape(sentence(str(error))), print_exception=False) from error

    return handle


def sentence(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


class JobFollower:
    """Which jobs are whose. kind: of the jobs. show(run, before) gives the parts of what a page shows, as HTML."""

    def __init__(self, jobs: Jobs, kind: str, show: Show):
        self.jobs, self.kind, self.show = jobs, kind, show
        self.ids: OrderedDict[str, list[str]] = OrderedDict()  # by page, oldest job first
        self.lock = threading.Lock()

    def add(self, job: Job) -> None:
        """A job that its page has just asked for."""
        with self.lock:
            known = self.known(job.request["page"])
            if job.id not in known:
                known.append(job.id)
                known.sort()

    def known(self, page: str) -> list[str]:
        if page not in self.ids:
            found = [job.id for job in self.jobs.list(SCANNED) if self.is_of(job, page)]
            self.ids[page] = found[::-1]
            while len(self.ids) > PAGES:
                self.ids.popitem(last=False)
        self.ids.move_to_end(page)
        return self.ids[page]

    def is_of(self, job: Job, page: str) -> bool:
        return job.kind == self.kind and job.request.get("page") == page

    def run(self, page: str) -> list[Job]:
        """The page's newest jobs, oldest first, as far back as each was in the queue together with the next."""
        if not PAGE.fullmatch(page):
            return []
        with self.lock:
            ids = self.known(page).copy()
        run: list[Job] = []
        for id in reversed(ids):
            try:
                job = self.jobs.get(id)
            except Missing:  # somebody deleted its folder
                continue
            if run and job.has_ended and job.ended < run[-1].created:
                break
            run.append(job)
        return run[::-1]

    def now(self, page: str) -> dict:
        """What the page is to show: parts (HTML by place), whether more is to come, and what has ended."""
        run = self.run(page)
        ended = [job.id for job in run if job.has_ended]
        return {"parts": self.show(run, self.jobs.jobs_before), "live": len(ended) < len(run), "ended": ended}


def page_router(jobs: Jobs, followed: list[JobFollower], gallery: Callable[[], str]) -> APIRouter:
    """What the page's own scripts ask for."""
    router = APIRouter(include_in_schema=False, prefix="/page")
    by_kind = {one.kind: one for one in followed}

    @router.get("/jobs/{kind}")
    def now(kind: str, page: str = "") -> dict:
        if kind not in by_kind:
            raise Missing("there is no such kind of job.")
        return by_kind[kind].now(page)

    @router.get("/gallery")
    def images() -> dict:
        return {"html": gallery()}

    @router.delete("/images/{id}/{name}")
    def delete(id: str, name: str) -> Response:
        jobs.delete_image(id, name)
        return Response(status_code=204)

    return router
