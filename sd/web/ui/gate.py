"""The gate before Gradio: the addresses that the page uses, and events that it can have sent.

Gradio serves much that this page never asks for: uploads, files by path or URL, a proxy, a prediction API, a reload for
developers. All of it is unknown here. An event that no page of ours sends is refused in one sentence, before Gradio
meets it with an internal error.
"""

import json
import re
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from starlette.exceptions import HTTPException

from sd.web.problems import printable
from sd.web.ui.follow import INVALID, sentence

Asgi = Callable[[dict, Callable, Callable], Awaitable[None]]
PAGES = ("", "/", "/config", "/config/", "/theme.css", "/robots.txt", "/favicon.ico", "/manifest.json", "/pwa_icon")
API = "/gradio_api"
EVENTS = f"{API}/queue/join"
FEED = f"{API}/queue/data"
CALLS = (EVENTS, FEED, f"{API}/cancel", f"{API}/info", f"{API}/startup-events", f"{API}/app_id")
FOLDERS = ("/static/", "/assets/")
LONGEST_NAME = 200  # letters of a part of a path
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class PageGate:
    """The middleware. page: the Gradio app's Blocks, whose events are known."""

    def __init__(self, app: Asgi, page: gr.Blocks):
        self.app, self.page = app, page

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "websocket":
            raise HTTPException(404)
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            known = path in PAGES or path in CALLS or path.startswith(FOLDERS)
            if not known or max(map(len, path.split("/"))) > LONGEST_NAME:
                raise HTTPException(404)
            if path == FEED and not SESSION.fullmatch(session_of(scope)):
                raise HTTPException(422, INVALID)
            if path == EVENTS and scope["method"] == "POST":
                body = await whole_body(receive)
                if not is_event(body, self.page):
                    raise HTTPException(422, INVALID)
                receive = replayed(body, receive)
        await self.app(scope, receive, send)


def session_of(scope: dict) -> str:
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [""])[0]


async def whole_body(receive: Callable) -> bytes:
    """Return the request's body, whose length `security` bounds."""
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the request ended before its body.")
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def replayed(body: bytes, receive: Callable) -> Callable:
    """Return a `receive` that gives the body once more, then what comes after it."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict:
        return left.pop() if left else await receive()

    return again


def is_event(body: bytes, page: gr.Blocks) -> bool:
    """Return whether a body is an event of the page: one of its functions, with as many values as that one takes."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or type(event.get("fn_index")) is not int:
        return False
    function = page.fns.get(event["fn_index"])
    values = event.get("data")
    fits = function is not None and isinstance(values, list) and len(values) == len(function.inputs)
    session = event.get("session_hash")
    known = isinstance(session, str) and SESSION.fullmatch(session) is not None
    return fits and known


class Page(gr.Blocks):
    """Blocks whose events end in one sentence on the page and one line on the console, whatever values they hold."""

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            if error.print_exception:  # Gradio's own, on a value that no widget has
                print(describe_event_error(error), file=sys.stderr, flush=True)
                error.print_exception = False
            raise
        except Exception as error:
            print(describe_event_error(error), file=sys.stderr, flush=True)
            raise gr.Error(sentence(INVALID), print_exception=False) from error


def describe_event_error(error: Exception) -> str:
    """Return one line: where in this program an event failed, or else in which file of Gradio's, and why."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "sd" in Path(frame.filename).parts and frame.name != "process_api"]
    frame = (ours or list(frames))[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"page event failed ({place}): {type(error).__name__}: {printable(str(error))}"
