"""Errors as HTTP answers: one sentence in the four keys of the webui's errors, and a line on the console.

    {"error": "UserError", "detail": "one sentence.", "body": "", "errors": "one sentence."}

Most clients hide the sentence, so the console shows it as well.
"""

import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from sd.utils.errors import DiskError, UserError
from sd.web.jobs.job import Busy, Missing, disk_sentence
from sd.web.jobs.limits import TooLarge

STATUSES = {Busy: 503, Missing: 404, TooLarge: 413, DiskError: 503}  # of a UserError; 422 otherwise
NO_ROOM = 507  # for a disk that is full
NO_OBJECT = ("missing", "model_attributes_type", "dict_type")  # pydantic's words for it, said of a whole body
LONGEST = 300  # characters of a path or a sentence on the console


class Problem(BaseModel):
    """An error as an HTTP answer. detail: one sentence, what is wrong and what to do. error: the kind of error."""

    error: str
    detail: str
    body: str = ""
    errors: str = ""


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 403, 404, 413, 422, 503, NO_ROOM)
}


def problem_content(kind: str, sentence: str) -> dict[str, str]:
    """Return the answer's JSON. The sentence may quote the request, which may hold invalid Unicode."""
    text = sentence.encode("utf-8", "replace").decode()
    return {"error": kind, "detail": text, "body": "", "errors": text}


def report(scope: MutableMapping[str, Any], text: str) -> None:
    """Print one line about a request: the client, the address and the text."""
    client = (scope.get("client") or ("unknown",))[0]
    words = [client, scope.get("method", "WebSocket"), scope.get("path", ""), text]
    print(*(printable(word) for word in words), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return the text without control characters, cut to LONGEST characters."""
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def problem(
    request: Request, status: int, kind: str, sentence: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    report(request.scope, f"refused ({status}): {sentence}")
    headers = ({"Retry-After": "5"} if status == 503 else {}) | dict(headers or {})
    return JSONResponse(problem_content(kind, sentence), status, headers)


def status_of(error: UserError) -> int:
    if isinstance(error, DiskError) and error.is_full:
        return NO_ROOM
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 422)


async def answer_user_error(request: Request, error: UserError) -> JSONResponse:
    return problem(request, status_of(error), type(error).__name__, str(error))


async def answer_os_error(request: Request, error: OSError) -> JSONResponse:
    return await answer_user_error(request, DiskError(disk_sentence(error), error))


async def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
    return problem(request, error.status_code, "HTTPException", http_sentence(request, error), error.headers)


def http_sentence(request: Request, error: HTTPException) -> str:
    """Return the error's own detail, or a full sentence for the framework's messages on unknown addresses."""
    address = f"{request.method} {request.url.path[:100]}"
    if (error.status_code, error.detail) == (404, "Not Found"):
        return f"unknown address: {address}; /docs lists the addresses of this server."
    if (error.status_code, error.detail) == (405, "Method Not Allowed"):
        return f"unsupported method: {address}; /docs lists the methods of each address."
    if (error.status_code, error.detail) == (400, "There was an error parsing the body"):
        return "the request's body is no JSON in UTF-8: encode it so, and send it with Content-Type: application/json."
    return str(error.detail)


async def answer_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer the first of FastAPI's validation errors as a sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    sentence = f"{place}: {first['msg']}.".removeprefix(": ")
    if first["type"] == "extra_forbidden":
        sentence = f"unknown field {place[:100]!r}: /docs lists the fields of each address."
    if first["type"] == "json_invalid" or (not place and first["type"] in NO_OBJECT):
        sentence = "the request holds no JSON object: send one, with Content-Type: application/json."
    return problem(request, 422, "RequestValidationError", sentence)


async def answer_bug(request: Request, error: Exception) -> JSONResponse:
    return problem(request, 500, type(error).__name__, f"internal error: {type(error).__name__}.")


def add_error_handlers(app: FastAPI) -> None:
    handlers: dict[type[Exception], Callable[..., Any]] = {
        UserError: answer_user_error,
        OSError: answer_os_error,
        HTTPException: answer_http_error,
        RequestValidationError: answer_invalid,
        Exception: answer_bug,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
