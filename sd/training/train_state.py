"""What a run needs to go on after a kill, in one file that is whole at every moment."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sd.utils.errors import UserError
from sd.utils.files import replacing, write_torch


class TrainingState:
    """What a checkpoint holds, and the file that holds it: the step, and the `state_dict` of each of `parts`.

    Of a network only what is handed in is written: an adapter's run keeps the adapter and not what it is in.
    """

    def __init__(self, run: Path, parts: dict[str, Any], settings: Any):
        self.path = run / "state.pt"
        self.parts, self.settings = parts, settings
        self.step = 0
        self.saved_step: int | None = None  # of the file
        self.saved = time.monotonic()

    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved

    def save(self) -> None:
        """Write beside, then rename: a kill at any moment leaves a whole file, the old one or the new.

        Raises UserError where the disk is full or the place not writable; the old one is there still.
        """
        contents = {"step": self.step, "settings": asdict(self.settings)}
        contents |= {name: part.state_dict() for name, part in self.parts.items()}
        with replacing(self.path) as beside:
            write_torch(contents, beside)
        self.saved, self.saved_step = time.monotonic(), self.step

    def resume(self) -> None:
        """Everything as the file has it; as it is where there is no file."""
        if not self.path.exists():
            return
        saved = read_state(self.path)
        if missing := self.parts.keys() - saved.keys():
            raise UserError(f"{self.path} has no {min(missing)}: go on with the settings it was begun with.")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} does not fit these settings: go on with those it was begun with, or delete the folder."
            ) from error
        self.step = self.saved_step = saved["step"]

    def kept(self) -> str:
        """Where to go on from, in words."""
        return "nothing was saved yet" if self.saved_step is None else f"{self.path} keeps step {self.saved_step}"


def read_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    """What `TrainingState.save` wrote; with `mmap` left in the file until it is used.

    Raises UserError where it is damaged.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(saved["step"], int):
            raise TypeError("no step")
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise UserError(
            f"{path} is damaged, so that this run cannot go on: delete that file to start again from step 0, "
            "or give another --run-dir."
        ) from error
    return saved


def steps_done(run: Path) -> int:
    """How many steps the run in this folder has made. Raises UserError where that is damaged."""
    path = run / "state.pt"
    return read_state(path, mmap=True)["step"] if path.exists() else 0
