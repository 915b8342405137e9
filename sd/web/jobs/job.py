"""One job, its folder, and what can become of it.

outputs/jobs/20261120-143000-250031-5f0c/job.json      what was asked for, its state, what came of it
                                         00000.png     what it made

queued -> running -> done | failed | cancelled          or "interrupted" where the program ended before the job
"""

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from sd.utils.errors import NO_MEMORY, UserError, is_out_of_memory

ENDED = ("done", "failed", "cancelled", "interrupted")
JOB_ID = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{4}")


class Busy(UserError):
    """The queue is full."""


class Missing(UserError):
    """There is no such job, or no such file in it."""


class JobFailed(Exception):
    """A job failed through no fault of whoever asked for it. Its text is one sentence."""


class Cancelled(KeyboardInterrupt):
    """Raised inside a job that somebody wants to stop. Not an Exception, so that only who means it catches it."""


class Interrupted(Cancelled):
    """Raised inside a job: stop, and keep the image that is being made as far as it has come."""


class Skipped(Cancelled):
    """Raised inside a job: leave this picture and go on with the next."""


@dataclass(eq=False)
class Job:
    """progress: 0 to 1. eta: seconds still to go, None while unknown. Times are seconds since 1970.

    event: what was last told, such as {"step": 3, "steps": 20, "preview": "preview.png"}. result: what came of it;
    its "files" are the names of files in the job's folder. error: one sentence; mendable: whoever asked can do
    something about it.
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
    mendable: bool = False

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def public(self) -> dict:
        """All of it but the folder's place on this machine, fit for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}

    def save(self) -> None:
        """Into its folder, in one step: a reader sees the old state or the new, never half of one."""
        part = self.folder / ".job.json.part"
        part.write_text(json.dumps(self.public(), indent=1, default=str), encoding="utf-8")
        part.replace(self.folder / "job.json")

    def file(self, name: str) -> Path:
        """One of its own files, of those that it names. Raises Missing for whatever else."""
        path = self.folder / name
        named = name in [*self.result.get("files", ()), self.event.get("preview")]
        if not named or path.is_symlink() or not path.is_file():
            raise Missing(f"job {self.id} has no file of that name.")
        return path

    def forget(self, name: str) -> None:
        """Takes one of its images out of its result, for good. Raises Missing for whatever else."""
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
    """Day, time, microseconds and something random: such ids sort by time."""
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"


def load_job(folder: Path) -> Job:
    """Raises Missing where the folder holds no job."""
    try:
        return Job(folder=folder, **json.loads((folder / "job.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Missing(f"there is no job {folder.name}.") from error


def explain(failure: BaseException) -> tuple[str, bool]:
    """A failed job's `error` and `mendable`."""
    text = str(failure).strip().split("\n")[0]
    if isinstance(failure, UserError):
        return str(failure), True
    if is_out_of_memory(failure):
        return NO_MEMORY, True
    if isinstance(failure, JobFailed):
        return str(failure), False
    return f"the job failed by a mistake in this program: {type(failure).__name__}: {text}", False
