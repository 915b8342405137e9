"""A job, its folder and its states.

outputs/jobs/20261120-143000-250031-5f0c/job.json      its request, state and result
                                         00000.png     an image that it generated

queued -> running -> done | failed | cancelled          or "interrupted" where the server ended first
"""

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from sd.utils.errors import NO_MEMORY, UserError, is_out_of_memory
from sd.web.jobs.job_file import plain, read_job_file

USER_ERROR_KEY = "mendable"  # the key of `Job.user_error` in job.json and in the HTTP API, unchanged for old clients
ENDED = ("done", "failed", "cancelled", "interrupted")
JOB_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{4}")


class Busy(UserError):
    """The queue is full."""


class Missing(UserError):
    """The job, or the file in its folder, does not exist."""


class JobFailed(Exception):
    """A job failed through no fault of its request. Its text is one sentence."""


class Cancelled(KeyboardInterrupt):
    """Raised inside a job to stop it. It is no Exception, so that only code that names it catches it."""


class Interrupted(Cancelled):
    """Raised inside a job to stop it and keep the unfinished image."""


class Skipped(Cancelled):
    """Raised inside a job to skip the current image and continue with the next."""


@dataclass(eq=False)
class Job:
    """A job's request, state and result.

    progress: 0 to 1. eta: remaining seconds, None while unknown. created, started, ended: seconds since 1970.
    event: the last progress event, such as {"step": 3, "steps": 20, "preview": "preview.png"}. result: what the job
    returned; its "files" are names of files in the job's folder. error: one sentence; user_error: whether another
    request can avoid it.
    """

    id: str
    kind: str
    request: dict
    folder: Path
    state: str = "queued"
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    progress: float = 0.0
    eta: float | None = None
    event: dict = field(default_factory=dict)
    result: dict = field(default_factory=dict)
    error: str = ""
    user_error: bool = False

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def public(self) -> dict:
        """Return everything but the folder's path, as JSON values that can be encoded."""
        values = plain({key: value for key, value in asdict(self).items() if key != "folder"})
        return values | {USER_ERROR_KEY: values.pop("user_error")}

    def save(self) -> None:
        """Write job.json atomically, so that a reader sees the old state or the new one."""
        part = self.folder / ".job.json.part"
        part.write_text(json.dumps(self.public(), indent=1, default=str), encoding="utf-8")
        part.replace(self.folder / "job.json")

    def file(self, name: str) -> Path:
        """Return the path of a file that the job names as its own. Raises Missing for any other name."""
        path = self.folder / name
        named = name in [*self.result.get("files", ()), self.event.get("preview")]
        if not named or path.is_symlink() or not path.is_file():
            raise Missing(f"job {self.id} has no file of that name.")
        return path

    def delete_image(self, name: str) -> None:
        """Delete an image and its entries in the result. Raises Missing for any other name."""
        images = self.result.get("images", [])
        if name not in images:
            raise Missing(f"job {self.id} has no image of that name.")
        place = images.index(name)
        for key in ("images", "seeds", "infotexts"):
            if key in self.result:
                self.result[key] = [one for i, one in enumerate(self.result[key]) if i != place]
        self.result["files"] = [one for one in self.result["files"] if one != name]
        self.save()
        (self.folder / name).unlink(missing_ok=True)


def new_id() -> str:
    """Return an id of date, time, microseconds and a random part; such ids sort by time."""
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"


def load_job(folder: Path) -> Job:
    """Read a job from its folder. Raises Missing where the folder holds none, or a damaged one."""
    try:
        values = read_job_file(folder / "job.json")
        user_error = bool(values.pop(USER_ERROR_KEY, False))
        return Job(**values | {"id": folder.name, "folder": folder, "user_error": user_error})
    except (OSError, ValueError, TypeError) as error:
        raise Missing(f"job not found: {folder.name}.") from error


def explain_failure(failure: BaseException) -> tuple[str, bool]:
    """Return a failed job's `error` and `user_error`."""
    text = str(failure).strip().split("\n")[0]
    if isinstance(failure, UserError):
        return str(failure), True
    if is_out_of_memory(failure):
        return NO_MEMORY, True
    if isinstance(failure, JobFailed):
        return str(failure), False
    return f"the job failed by a mistake in this program: {type(failure).__name__}: {text}", False
