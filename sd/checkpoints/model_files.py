"""Recognizes the model in a file or folder by its contents, and caches the result while the file is unchanged."""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sd.checkpoints.diffusers_format import MODEL_INDEX
from sd.checkpoints.families import EMBEDDING_NAMES, ENCODER, PEFT_CONFIG, T2I_ADAPTER, describe_checkpoint, kind_of
from sd.checkpoints.foreign_files import read_json_file
from sd.checkpoints.weight_files import read_weights
from sd.utils.errors import UserError
from sd.utils.files import is_encodable

FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
IMAGE_ENDINGS = (".png", ".webp")  # an embedding may be stored in one
TRAINED_FROM = "sd_trained_from"  # metadata: the base model that this one was fine-tuned from
TRAINING_SIGNS = {TRAINED_FROM, "ss_training_comment", "ss_max_train_steps"}


@dataclass(frozen=True)
class Content:
    """The model in a file or folder.

    kind: "checkpoint", "VAE", "LoRA", "embedding", "ControlNet", "upscaler" or "image encoder"; "other" for models that
    are not used here; "" if unknown.
    what: a description. trained: whether it was fine-tuned here. alias: the name in its metadata, or "".
    """

    kind: str
    what: str
    trained: bool = False
    alias: str = ""


UNKNOWN = Content("", "a file of an unknown kind")
FOLDER_CONTENTS = {  # folders of one network, by the class in its config.json
    "AutoencoderKL": Content("VAE", "a VAE alone"),
    "ControlNetModel": Content("ControlNet", "a ControlNet"),
    "T2IAdapter": Content("ControlNet", T2I_ADAPTER),
    "clip_vision_model": Content("image encoder", ENCODER),  # transformers' `model_type`
}


def content_of(path: Path) -> Content:
    """Returns the model in a file or folder. Never raises: a file that cannot be read is of an unknown kind."""
    try:
        stat = (path / MODEL_INDEX if (path / MODEL_INDEX).is_file() else path).stat()
        return read_content(path, stat.st_mtime_ns, stat.st_size)
    except OSError:
        return UNKNOWN


def read_by(reader: Callable[[Callable[[Path], Content], Path], Content] | None) -> None:
    """Lets `reader(function, path)` call what reads files from now on, in another process; None calls it in this one.

    A server's process should never read strangers' files itself.
    """
    global call_reader
    call_reader = reader


call_reader: Callable[[Callable[[Path], Content], Path], Content] | None = None


@lru_cache(maxsize=8192)
def read_content(path: Path, changed: int, size: int) -> Content:
    """Returns the model in a file or folder, and remembers it, a refusal too, until the file changes."""
    if path.is_dir():
        return folder_content(path)
    if path.suffix.lower() in IMAGE_ENDINGS:
        return Content("embedding", "an image with an embedding")
    try:
        return file_content(path) if call_reader is None else call_reader(file_content, path)
    except UserError:
        return UNKNOWN


def file_content(path: Path) -> Content:
    """Raises UserError where the file cannot be read."""
    found = read_weights(path)
    kind, what = kind_of(found.content)
    trained = kind == "checkpoint" and bool(TRAINING_SIGNS & found.metadata.keys())
    return Content(kind, what, trained, found.metadata.get("ss_output_name", ""))


def folder_content(folder: Path) -> Content:
    """Raises OSError where the folder cannot be read."""
    if (folder / MODEL_INDEX).is_file():
        index = read_json_or_empty(folder / MODEL_INDEX)
        pipeline = str(index.get("_class_name"))
        if not pipeline.startswith("StableDiffusion") or pipeline.startswith(("StableDiffusionXL", "StableDiffusion3")):
            return Content("other", f"a folder for {pipeline}")
        channels = read_json_or_empty(folder / "unet" / "config.json").get("in_channels", 4)
        kind, what = describe_checkpoint(channels)
        return Content(kind, what, f"_{TRAINED_FROM}" in index)
    if (folder / PEFT_CONFIG).is_file() or (folder / "unet" / PEFT_CONFIG).is_file():
        return Content("LoRA", "a LoRA")
    if any((folder / name).is_file() for name in EMBEDDING_NAMES):
        return Content("embedding", "a textual inversion embedding")
    config = read_json_or_empty(folder / "config.json")
    return FOLDER_CONTENTS.get(str(config.get("_class_name", config.get("model_type"))), UNKNOWN)


def read_json_or_empty(path: Path) -> dict:
    """Returns a JSON file's object, or an empty one where there is none or where it cannot be read."""
    try:
        return read_json_file(path)
    except UserError:
        return {}


def is_one_model(folder: Path) -> bool:
    """Returns whether a folder is a model itself, as diffusers and PEFT write them, and not a folder of models."""
    signs = (MODEL_INDEX, PEFT_CONFIG, f"unet/{PEFT_CONFIG}", *EMBEDDING_NAMES)
    return any((folder / sign).is_file() for sign in signs) or folder_content(folder).kind != ""


def models_below(folder: Path, apart: Collection[Path] = frozenset()) -> Iterator[Path]:
    """Yields the files and folders that may be models, by depth and name, except hidden ones and those in `apart`.

    Links are followed: only the owner of the folder can create them, and no request can.
    """
    found, seen, todo = [], set(), [folder]
    while todo:
        place = todo.pop()
        if (real := place.resolve()) in seen or real in apart:
            continue
        seen.add(real)
        try:
            entries = [Path(entry.path) for entry in os.scandir(place) if not entry.name.startswith(".")]
        except OSError:
            continue
        for path in entries:
            if not is_encodable(path.name):  # no request and no answer can name it
                continue
            if path.is_dir():
                (found if is_one_model(path) else todo).append(path)
            elif path.suffix.lower() in FILE_ENDINGS + IMAGE_ENDINGS and path.is_file():
                found.append(path)
    return iter(sorted(found, key=lambda path: sort_key(path.relative_to(folder))))


def sort_key(path: Path) -> tuple:
    """Sorts files before those in subfolders, and the safetensors of a name before its other files."""
    return len(path.parts), path.with_suffix("").as_posix().lower(), path.suffix.lower() != ".safetensors", path.name
