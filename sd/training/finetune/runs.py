"""A run's folder: the identity of the run, so that nothing else resumes in it, and the partial files of killed
processes.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sd.checkpoints.hashing import model_hash
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.data.image_folder import ImageFolder
from sd.training.finetune.recipes import Recipe
from sd.training.finetune.validation import step_files, step_of
from sd.training.train_state import completed_steps
from sd.utils.errors import UserError
from sd.utils.files import remove_orphans, replacing

LASTING = (
    *("kind", "word", "class_word", "init", "vectors", "rank", "alpha", "targets", "size", "seed", "prompts"),
    *("guidance_scale", "preview_steps", "max_token_length", "file_format"),
)
OLD_KEYS = {"dialect": "file_format"}  # in notes of runs that earlier versions started
LABELS = {
    "model_hash": "base model (its content differs)",
    "model": "base model",
    "pictures": "set of images",
    "scenes": "number of scenes",
}


def content_hash(pipe: StableDiffusion) -> str:
    """Return the hash of the checkpoint's content: the ten digits of `model_hash`, of a folder those of all its
    weights; "" if unknown.
    """
    path = Path(pipe.path) if pipe.path else None
    if path is None or not path.is_dir():
        return model_hash(path) if path else ""
    files = sorted(one for one in path.glob("*/*") if one.suffix in (".safetensors", ".bin"))
    listed = [f"{one.relative_to(path).as_posix()} {model_hash(one)}" for one in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:10]


def printable(text: str) -> str:
    """Escape a file name that is not UTF-8, which can neither be printed nor stored in JSON."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def run_identity(
    method: str, name: str, pipe: StableDiffusion, recipe: Recipe, folder_images: ImageFolder, folder: Path
) -> dict:
    """Return what must not change when a run resumes; learning rates, steps and the like may."""
    identity: dict[str, Any] = {"method": method, "name": name, "model_hash": content_hash(pipe)}
    identity |= {"model": Path(pipe.path).name if pipe.path else ""}
    identity |= {"prediction": pipe.prediction.name}
    names = [
        image.path.relative_to(folder) if folder in image.path.parents else image.path for image in folder_images.images
    ]
    identity |= {"pictures": [printable(path.as_posix()) for path in names]}
    return json.loads(json.dumps(identity | {key: value for key, value in asdict(recipe).items() if key in LASTING}))


def read_note(note: Path) -> dict:
    """Return the contents of `run.json`, or {} if there is none. Raises UserError where it is damaged."""
    if not note.exists():
        return {}
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table")
        return {OLD_KEYS.get(key, key): value for key, value in found.items()}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{note} is damaged, so that this run cannot be identified: give another --run-dir, or delete "
            f"{note.parent} to start again."
        ) from error


def check_same_run(run: Path, identity: dict) -> dict:
    """Return the run's note, new or from an earlier start.

    Raises UserError where the run has another identity, or its folder is not writable.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {run} ({error.strerror}): give another --run-dir.") from error
    before = read_note(run / "run.json")
    same_content = identity["model_hash"] and before.get("model_hash") == identity["model_hash"]
    for key, value in identity.items():
        if key == "model" and same_content:  # renamed or moved
            continue
        if key in before and before[key] != value:
            label = LABELS.get(key, key.replace("_", " "))
            raise UserError(f"{run} was started with another {label}: give another --run-dir, or delete that one.")
    return before | identity


def write_note(run: Path, note: dict) -> None:
    with replacing(run / "run.json") as part:
        part.write_text(json.dumps(note, indent=2, ensure_ascii=False), encoding="utf-8")


def check_steps(run: Path, note: dict, steps: int, say) -> None:
    """Print the step at which the run resumes. Raises UserError where the run has ended and nothing can be done."""
    if note.get("cleaned"):
        raise UserError(
            f"this run has ended and was cleaned up; its result is {note['cleaned']}. Give another --run-dir, or "
            f"delete {run} to train again."
        )
    done = completed_steps(run)
    if done <= steps:
        if done:
            rest = f"resuming after step {done}" if done < steps else "nothing is left to train"
            say(f"note: this run has made {done} of {steps} steps already: {rest}.")
        return
    earlier = [step_of(path) for path in step_files(run) if step_of(path) <= steps]
    if not earlier:
        raise UserError(
            f"this run has made {done} steps already and has no file of step {steps} or earlier: give --steps "
            f"{done} or more, or another --run-dir to train again from the start."
        )
    say(f"note: this run has made {done} steps already: nothing is left to train, and a step up to {steps} is chosen.")


def clear_orphans(run: Path, output: Path) -> None:
    """Delete the partial files that earlier processes left when they were killed while saving."""
    for folder in (run, run / "steps", run / "previews", output.parent):
        remove_orphans(folder)
