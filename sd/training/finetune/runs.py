"""A run's folder: what it is about, so that it goes on with nothing else, and what is left there of a killed one."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from sd.checkpoints.hashing import model_hash
from sd.pipeline.stable_diffusion import StableDiffusion
from sd.training.finetune.data.image_folder import Photos
from sd.training.finetune.recipes import Recipe
from sd.training.finetune.validation import step_files, step_of
from sd.training.train_state import steps_done
from sd.utils.errors import UserError
from sd.utils.files import remove_orphans, replacing

LASTING = ("kind", "word", "class_word", "init", "vectors", "rank", "alpha", "targets", "size", "seed", "prompts")
LASTING += ("guidance_scale", "preview_steps", "max_token_length", "dialect")
SPOKEN = {"model_hash": "base model (its content differs)", "model": "base model", "pictures": "set of images"}


def content_hash(pipe: StableDiffusion) -> str:
    """Of the checkpoint's content, the ten digits of `model_hash`; of a folder's weights together. "" where unknown."""
    path = Path(pipe.path) if pipe.path else None
    if path is None or not path.is_dir():
        return model_hash(path) if path else ""
    files = sorted(one for one in path.glob("*/*") if one.suffix in (".safetensors", ".bin"))
    listed = [f"{one.relative_to(path).as_posix()} {model_hash(one)}" for one in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:10]


def printable(text: str) -> str:
    """A file's name that is not UTF-8 cannot be printed, nor kept in JSON, as it is."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def about(method: str, name: str, pipe: StableDiffusion, recipe: Recipe, photos: Photos, folder: Path) -> dict:
    """What a run is about: it cannot go on with anything else. Rates, steps and the like may change on the way."""
    facts = {"method": method, "name": name, "model_hash": content_hash(pipe)}
    facts |= {"model": Path(pipe.path).name if pipe.path else ""}
    names = [photo.path.relative_to(folder) if folder in photo.path.parents else photo.path for photo in photos.photos]
    facts |= {"pictures": [printable(path.as_posix()) for path in names]}
    return json.loads(json.dumps(facts | {key: value for key, value in asdict(recipe).items() if key in LASTING}))


def read_note(note: Path) -> dict:
    """`run.json`; {} where there is none. Raises UserError where it is damaged."""
    if not note.exists():
        return {}
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no table")
        return found
    except (OSError, ValueError) as error:
        raise UserError(
            f"{note} is damaged, so that it is not known what that run is about: give another --run-dir, or delete "
            f"{note.parent} to start again."
        ) from error


def check_begun(run: Path, facts: dict) -> dict:
    """The note of the run, begun earlier or now. Raises UserError where it is about something else, or not writable."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {run} ({error.strerror}): give another --run-dir.") from error
    before = read_note(run / "run.json")
    same_content = facts["model_hash"] and before.get("model_hash") == facts["model_hash"]
    for key, value in facts.items():
        if key == "model" and same_content:  # renamed or moved
            continue
        if key in before and before[key] != value:
            spoken = SPOKEN.get(key, key.replace("_", " "))
            raise UserError(f"{run} was begun with another {spoken}: give another --run-dir, or delete that one.")
    return before | facts


def write_note(run: Path, note: dict) -> None:
    with replacing(run / "run.json") as part:
        part.write_text(json.dumps(note, indent=2, ensure_ascii=False), encoding="utf-8")


def check_steps(run: Path, note: dict, steps: int, say) -> None:
    """What a run that has ended, or is ahead of `steps`, can do now. Raises UserError for nothing at all."""
    if note.get("cleaned"):
        raise UserError(
            f"this run has ended and was cleaned up; its result was {note['cleaned']}. Give another --run-dir, or "
            f"delete {run} to train again."
        )
    done = steps_done(run)
    if done <= steps:
        return
    earlier = [step_of(path) for path in step_files(run) if step_of(path) <= steps]
    if not earlier:
        raise UserError(
            f"this run has made {done} steps already and has no file of step {steps} or an earlier one: give --steps "
            f"{done} or more, or another --run-dir to train again from the start."
        )
    say(f"note: this run has made {done} steps already; nothing is trained, and a step up to {steps} is chosen.")


def clear_orphans(run: Path, output: Path) -> None:
    """What earlier processes left when they were killed while saving, here and where results go."""
    for folder in (run, run / "steps", run / "previews", output.parent):
        remove_orphans(folder)
