"""One file of weights, recognized by its content and not by its name.

Checkpoints, LoRAs and embeddings all arrive as either a torch.save file or a .safetensors, under any name.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sd.checkpoints.families import what_is as what_is
from sd.checkpoints.mmap_files import MappedFile, read_safetensors, write_safetensors
from sd.checkpoints.pickle_objects import StandIn
from sd.checkpoints.unpickler import read_legacy, read_zip
from sd.utils.errors import UserError
from sd.utils.files import replacing, write_torch


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
