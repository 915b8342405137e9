"""The state from which a run resumes after a kill, in one file that is complete at every moment."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sd.utils.errors import UserError
from sd.utils.files import replacing, write_torch


class TrainingState:
    """The contents of a checkpoint and the file that holds them: the step, and the `state_dict` of each of `parts`.

    Only the networks in `parts` are written: the state of an adapter's run holds the adapter and not its base model.
    """

    def __init__(self, run: Path, parts: dict[str, Any], settings: Any):
        self.path = run / "state.pt"
        self.parts, self.settings = parts, settings
        self.step = 0
        self.saved_step: int | None = None  # of the file
        self.saved_at = time.monotonic()

    def age(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.monotonic() - self.saved_at

    def save(self) -> None:
        """Write the state beside the file, then rename it: a kill at any moment leaves a complete file, the old one or
        the new.

        Raises UserError where the disk is full or the folder not writable; the old file remains.
        """
        contents = {"step": self.step, "settings": asdict(self.settings)}
        contents |= {name: part.state_dict() for name, part in self.parts.items()}
        with replacing(self.path) as part:
            write_torch(contents, part)
        self.saved_at, self.saved_step = time.monotonic(), self.step

    def resume(self) -> None:
        """Restore everything from the file; change nothing where there is no file.

        Raises UserError where the file is damaged or was written with other settings.
        """
        if not self.path.exists():
            return
        saved = read_state(self.path)
        if missing := self.parts.keys() - saved.keys():
            raise UserError(f"{self.path} has no {min(missing)}: resume with the settings that the run started with.")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} does not match these settings: resume with the settings of the first start, or delete "
                "the folder."
            ) from error
        self.step = self.saved_step = saved["step"]

    def describe_saved(self) -> str:
        """Return in words from which step the run can resume."""
        return "nothing was saved yet" if self.saved_step is None else f"{self.path} keeps step {self.saved_step}"


def read_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Return what `TrainingState.save` wrote; with `mmap`, tensors stay in the file until they are used.

    Raises UserError where the file is damaged.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(saved["step"], int):
            raise TypeError("no step")
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise UserError(
            f"{path} is damaged, so that this run cannot resume: delete that file to start again from step 0, "
            "or give another --run-dir."
        ) from error
    return saved


def completed_steps(run: Path) -> int:
    """Return the number of steps that the run in this folder has made. Raises UserError where its state is damaged."""
    path = run / "state.pt"
    return read_state(path, mmap=True)["step"] if path.exists() else 0
