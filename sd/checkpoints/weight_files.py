"""One file of weights, recognized by its content and not by its name.

Checkpoints, LoRAs and embeddings all arrive as either a torch.save file or a .safetensors, under any name.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sd.checkpoints.families import describe_contents as describe_contents
from sd.checkpoints.foreign_files import reads_file
from sd.checkpoints.mmap_files import MappedFile, read_safetensors, write_safetensors
from sd.checkpoints.pickles.objects import InertObject, ScriptObject
from sd.checkpoints.pickles.reader import read_legacy, read_zip
from sd.utils.errors import UserError
from sd.utils.files import encodable, replacing, write_torch


@dataclass
class WeightFile:
    """The contents of one file.

    kind: "ckpt" or "safetensors". content: whatever was saved, most often a dict of tensors by name. metadata: the
    texts in the file, by name. file: the mapped file in which the tensors lie.
    """

    kind: str
    content: Any
    metadata: dict[str, str]
    file: MappedFile


@reads_file
def read_weights(path: str | Path) -> WeightFile:
    """Reads a file of any name. Raises UserError, one sentence, for whatever is not a whole file of weights."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"file not found: {path}; check the path, or download the weights first.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: download it again.")
    file = MappedFile(path)
    head = file.memory[:512]
    if head.startswith(b"PK\x03\x04"):
        return torch_file(read_zip(file), file)
    if head[8:9] == b"{":
        return WeightFile("safetensors", *read_safetensors(file), file)
    if re.match(rb"\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        raise UserError(f"{path} is a web page, not weights: open the link in a browser to read it.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-lfs pointer, not the weights it points to: run `git lfs pull`.")
    if re.match(rb"\x80[\x02-\x05]|[(\]}]*c[\w.]+\r?\n[\w.]+\r?\n", head):  # a pickle's beginning, new or old
        return torch_file(read_legacy(file), file)
    raise UserError(f"{path} is neither a torch file nor a .safetensors: it is something else, or damaged.")


def torch_file(content: Any, file: MappedFile) -> WeightFile:
    if isinstance(content, InertObject) and not isinstance(content, ScriptObject) and not content:
        raise UserError(
            f"{file.path} holds an object of {content.name[:200]} instead of weights by name: save its state_dict()."
        )
    entries = content.items() if isinstance(content, dict) else ()
    texts = {encodable(key): encodable(text) for key, text in entries if type(key) is type(text) is str}
    return WeightFile("ckpt", content, texts, file)


def write_weights(path: str | Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes "safetensors", or "ckpt" as `{**metadata, "state_dict": tensors}`; a failure leaves the earlier file."""
    with replacing(Path(path)) as part:
        if kind == "safetensors":
            write_safetensors(part, tensors, metadata)
            return
        write_torch({**metadata, "state_dict": tensors}, part)
