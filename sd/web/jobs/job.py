"""A job, its folder and its states.

outputs/jobs/20261120-143000-250031-5f0c/job.json      its request, state and result
                                         00000.png     an image that it generated

queued -> running -> done | failed | cancelled          or "interrupted" where the server ended first
"""

import json
import re
import secrets
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sd.utils.errors import NO_MEMORY, REMEDIES, DiskError, UserError, is_out_of_memory
from sd.web.jobs.job_file import plain, read_job_file

# Of `Job.kind` in job.json and the HTTP API; old clients know them.
GENERATE, TRAIN, LOOK, UPSCALE = "draw", "teach", "look", "upscale"
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
    returned, or what there is of it so far; its "files" are names of files in the job's folder. error: one sentence;
    user_error: whether another request can avoid it; disk_error: whether the server's disk was at fault.
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
    disk_error: bool = False

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
        try:
            part.write_text(json.dumps(self.public(), indent=1, default=str), encoding="utf-8")
            part.replace(self.folder / "job.json")
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise

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
        (self.folder / name).unlink(missing_ok=True)  # first, since a full disk may have no room for the list
        self.save()


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


class Failure(NamedTuple):
    """Why a job failed: one sentence, and the job's `user_error` and `disk_error`."""

    sentence: str
    user_error: bool
    disk_error: bool = False

    def to_exception(self) -> Exception:
        """Return what `explain_failure` takes back to this failure."""
        if self.disk_error:
            return DiskError(self.sentence, OSError())
        return UserError(self.sentence) if self.user_error else JobFailed(self.sentence)


def explain_failure(failure: BaseException) -> Failure:
    """Return why a job failed."""
    text = str(failure).strip().split("\n")[0]
    if isinstance(failure, DiskError):
        return Failure(str(failure), False, True)
    if isinstance(failure, UserError):
        return Failure(str(failure), True)
    if is_out_of_memory(failure):
        return Failure(NO_MEMORY, True)
    if isinstance(failure, OSError):
        return Failure(disk_sentence(failure), False, True)
    if isinstance(failure, JobFailed):
        return Failure(str(failure), False)
    return Failure(f"the job failed by a mistake in this program: {type(failure).__name__}: {text}", False)


def disk_sentence(error: OSError) -> str:
    """Return a sentence for a fault of the disk that names no path, since users of other machines read it."""
    remedy = REMEDIES.get(error.errno, "check the disk") if error.errno is not None else "check the disk"
    return f"the server could not read or write one of its files ({error.strerror or type(error).__name__}): {remedy}."
