"""job.json, checked as it is read: a damaged or foreign file is no job, and never breaks a list of jobs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sd.utils.files import encodable

LARGEST = 1 << 24  # bytes: 64 images with prompts of 8,000 letters of 12 bytes need 13 MB
DEEPEST = 16  # levels of lists and objects; what this server writes has 4


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    return type(value) is int


def list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def is_curve(value: Any) -> bool:
    return list_of(lambda pair: isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)))(value)


Checks = dict[str, Callable[[Any], bool]]
STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
JOB: Checks = {
    "id": is_text,
    "kind": is_text,
    "request": lambda value: isinstance(value, dict),
    "state": lambda value: value in STATES,
    "created": is_number,
    "started": lambda value: value is None or is_number(value),
    "ended": lambda value: value is None or is_number(value),
    "progress": is_number,
    "eta": lambda value: value is None or is_number(value),
    "event": lambda value: isinstance(value, dict),
    "result": lambda value: isinstance(value, dict),
    "error": is_text,
}
REQUEST: Checks = {
    "settings": lambda value: isinstance(value, dict) and is_text(value.get("prompt", "")),
    "name": is_text,
    "page": is_text,
    "checkpoint": is_text,
}
EVENT: Checks = {
    "step": is_whole,
    "steps": lambda value: is_whole(value) and value > 0,
    "preview": is_text,
    "shown": is_whole,
    "losses": lambda value: is_curve(value) and bool(value),
    "held_out": is_curve,
}
TEXTS = ("files", "images", "infotexts", "notes", "warnings")
RESULT: Checks = dict.fromkeys(TEXTS, list_of(is_text)) | dict.fromkeys(
    ("sheet", "say", "prompt", "rule", "trace"), is_text
)
RESULT |= {"seeds": list_of(is_whole), "step": is_whole, "steps": is_whole}


def read_job_file(path: Path) -> dict:
    """Returns the values of a job.json, all of the types that a job has, and all texts encodable.

    Raises OSError where it cannot be read, and ValueError where it is not a job of this program.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError("too large")
    try:
        values = plain(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None))
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(values, dict) or JOB.keys() - values.keys():
        raise ValueError("not a job")
    for found, checks in ((values, JOB), (values["request"], REQUEST), (values["event"], EVENT)):
        check_types(found, checks)
    check_types(values["result"], RESULT)
    if values["state"] == "done" and None in (values["started"], values["ended"]):
        raise ValueError("a job that is done without its times")
    return values


def check_types(values: dict, checks: Checks) -> None:
    for name, check in checks.items():
        if name in values and not check(values[name]):
            raise ValueError(f"{name} is malformed")


def plain(value: Any, depth: int = 0) -> Any:
    """Returns JSON values with every text encodable. Raises ValueError for values nested too deep."""
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable(str(key)): plain(one, depth + 1) for key, one in value.items()}
    return [plain(one, depth + 1) for one in value] if isinstance(value, (list, tuple)) else value
