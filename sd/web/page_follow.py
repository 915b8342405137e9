"""What all tabs do alike: mistakes as one sentence, jobs followed until they end, jobs cancelled."""

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from html import escape

import gradio as gr

from sd.errors import UserError
from sd.web.job import Job, Missing
from sd.web.jobs import Jobs

# An event of the page is not a part of the HTTP API, and none waits for another.
EVENT = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}


def plainly(handler: Callable) -> Callable:
    """The handler, whose UserError is shown on the page."""

    @functools.wraps(handler)
    def handle(*args: object) -> object:
        try:
            return handler(*args)
        except UserError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    return handle


async def follow(jobs: Jobs, ids: list[str]) -> AsyncIterator[Job]:
    """Each of the jobs after each change, one job after the other; those that are no more are passed over."""
    for id in ids:
        with suppress(Missing):
            async for _ in jobs.changes(id):
                yield jobs.get(id)


def cancel(jobs: Jobs, ids: list[str]) -> None:
    for id in ids:
        with suppress(Missing):
            jobs.cancel(id)
