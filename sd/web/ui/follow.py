"""Shared code of both tabs: errors as one sentence, and the jobs of each open page, polled over HTTP.

Every open page has an id, which it keeps over a reload and which its jobs carry. What a page shows depends on the jobs
alone, so a reload, a lost connection or a restart of the server loses nothing, and no page shows another page's jobs.
"""

import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from html import escape
from typing import TypeVar

import gradio as gr
from fastapi import APIRouter, Response

from sd.utils.errors import UserError
from sd.web.jobs.job import Job, Missing
from sd.web.jobs.queue import Jobs

# Events of the page are not part of the HTTP API, and none waits for another.
EVENT = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
PRESS = EVENT | {"trigger_mode": "multiple"}  # each press counts
PAGE = re.compile(r"[a-z0-9]{8,40}")  # a page's id
SCANNED = 200  # newest jobs that are searched for those of a page after a restart
PAGES = 500  # whose job ids are kept in memory
INVALID = "the page sent something that this server does not understand: reload the page."

Show = Callable[[list[Job], Callable[[Job], int]], dict[str, str]]
T = TypeVar("T")


def show_errors(handler: Callable) -> Callable:
    """Wrap an event handler so that its UserError is shown on the page."""

    @functools.wraps(handler)
    def handle(*args: object) -> object:
        try:
            return handler(*args)
        except UserError as error:
            raise gr.Error(escape(sentence(str(error))), print_exception=False) from error

    return handle


def carried(event: gr.EventData, name: str, kind: type[T]) -> T:
    """Return the value of a type that a script of the page sent with an event. Raises UserError for any other value.

    An event's data is whatever JSON a client sends, so that `event.name` fails on a number, and on a text.
    """
    data = vars(event).get("_data")
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        raise UserError(INVALID)
    return value


def say(notes: Iterable[str]) -> None:
    """Show each note on the page for some seconds, as text: it may quote a file."""
    for note in notes:
        gr.Info(escape(sentence(note)))


def sentence(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


class JobFollower:
    """The jobs of a kind by page. show(run, before) returns the parts of what a page shows, as HTML."""

    def __init__(self, jobs: Jobs, kind: str, show: Show):
        self.jobs, self.kind, self.show = jobs, kind, show
        self.ids: OrderedDict[str, list[str]] = OrderedDict()  # by page, oldest job first
        self.lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Add a job that its page has just submitted."""
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
        """Return the page's newest jobs, oldest first, as far back as each overlapped in the queue with the next."""
        if not PAGE.fullmatch(page):
            return []
        with self.lock:
            ids = self.known(page).copy()
        run: list[Job] = []
        for id in reversed(ids):
            try:
                job = self.jobs.get(id)
            except Missing:  # its folder was deleted
                continue
            if run and job.has_ended and job.ended < run[-1].created:
                break
            run.append(job)
        return run[::-1]

    def now(self, page: str) -> dict:
        """Return what the page shows: "parts" (HTML by place), "live" (whether more is to come), "ended" (job ids)."""
        run = self.run(page)
        ended = [job.id for job in run if job.has_ended]
        return {"parts": self.show(run, self.jobs.jobs_before), "live": len(ended) < len(run), "ended": ended}


def page_router(jobs: Jobs, followed: list[JobFollower], gallery: Callable[[], str]) -> APIRouter:
    """Return the routes that the page's own scripts use."""
    router = APIRouter(include_in_schema=False, prefix="/page")
    by_kind = {one.kind: one for one in followed}

    @router.get("/jobs/{kind}")
    def now(kind: str, page: str = "") -> dict:
        if kind not in by_kind:
            raise Missing("unknown kind of job.")
        return by_kind[kind].now(page)

    @router.get("/gallery")
    def images() -> dict:
        return {"html": gallery()}

    @router.delete("/images/{id}/{name}")
    def delete(id: str, name: str) -> Response:
        jobs.delete_image(id, name)
        return Response(status_code=204)

    return router
