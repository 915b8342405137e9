"""One file of weights, told by its contents and not by its name; and a safe way to write one.

Checkpoints, LoRAs and embeddings all arrive as either a torch.save file or a .safetensors, under any name.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd.checkpoints.families import what_is as what_is
from sd.checkpoints.mmap_files import MappedFile, read_safetensors, write_safetensors
from sd.checkpoints.pickle_objects import StandIn
from sd.checkpoints.unpickler import read_legacy, read_zip
from sd.utils.errors import UserError

UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>part|earlier)", re.DOTALL)  # as `replacing` names them
STARTED = time.time()


@dataclass
class WeightFile:
    """What one file holds. `kind` is "ckpt" or "safetensors"; `content` whatever was saved, of tensors by name."""

    kind: str
    content: Any
    metadata: dict[str, str]
    file: MappedFile


def read_weights(path: str | Path) -> WeightFile:
    """Reads a file of any name. Raises UserError, one sentence, for whatever is not a whole file of weights."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file {path}: check the path, or fetch the weights first.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file.")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: fetch it again.")
        file = MappedFile(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    head = file.memory[:512]
    if head.startswith(b"PK\x03\x04"):
        return torch_file(read_zip(file), file)
    if head[8:9] == b"{":
        return WeightFile("safetensors", *read_safetensors(file), file)
    if re.match(rb"\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        raise UserError(f"{path} is a web page, not weights: open the link in a browser to see what it says.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-lfs pointer, not the weights it points to: run `git lfs pull`.")
    if re.match(rb"\x80[\x02-\x05]|[(\]}]*c[\w.]+\r?\n[\w.]+\r?\n", head):  # a pickle's beginning, new or old
        return torch_file(read_legacy(file), file)
    raise UserError(f"{path} is neither a torch file nor a .safetensors: it is something else, or damaged.")


def torch_file(content: Any, file: MappedFile) -> WeightFile:
    if isinstance(content, StandIn) and not content:
        kind = f"{type(content).__module__}.{type(content).__name__}"
        raise UserError(f"{file.path} holds an object of {kind} instead of weights by name: save its state_dict().")
    entries = content.items() if isinstance(content, dict) else ()
    return WeightFile("ckpt", content, {k: v for k, v in entries if isinstance(k, str) and isinstance(v, str)}, file)


def write_weights(path: str | Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes "safetensors", or "ckpt" as `{**metadata, "state_dict": tensors}`; a failure leaves the earlier file."""
    with replacing(Path(path)) as part:
        if kind == "safetensors":
            write_safetensors(part, tensors, metadata)
            return
        write_torch({**metadata, "state_dict": tensors}, part)


def write_torch(content: Any, path: Path) -> None:
    """`torch.save`, with an OSError where the disk is full, and all of it on the disk when this returns."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # of a full disk torch then says "unexpected pos"
            raise error.__context__ from None
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` once all is written, and not before.

    Raises UserError where that cannot be written; then nothing is left of it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if path.is_dir() and part.is_dir():  # one folder does not replace another in one step: the earlier one waits
            earlier = part.with_suffix(".earlier")
            os.replace(path, earlier)
            os.replace(part, path)
            shutil.rmtree(earlier)
        else:
            os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} could not be written: {reason}; what was there before is unchanged.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):
            part.unlink()


def remove_orphans(folder: Path) -> list[Path]:
    """Removes what `replacing` left in `folder` when its process was killed; returns what was removed.

    A folder that was moved aside and not yet replaced gets its name back. Files of processes that run are left alone,
    and whatever cannot be removed.
    """
    removed = []
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = UNFINISHED.fullmatch(path.name)
        if match is None or is_in_use(path, int(match["pid"])):
            continue
        with suppress(OSError):
            if match["kind"] == "earlier" and not path.with_name(match["name"]).exists():
                path.rename(path.with_name(match["name"]))
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path)
    return removed


def is_in_use(path: Path, pid: int) -> bool:
    """Whether process `pid` may still write to `path`. One older than this process, of its own number, is another's."""
    try:
        changed = path.lstat().st_mtime
        if pid == os.getpid():
            return changed >= STARTED
        if os.name == "nt":  # where signal 0 would end the process
            return time.time() - changed < 3600
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except OSError:  # it runs, as somebody else's
        return True
    return True
