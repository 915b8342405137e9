"""The files of the model that a browser runs, exported at the first request and kept in the cache."""

import hashlib
import json
import shutil
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sd.checkpoints.checkpoint import check_latents, load_models, read_checkpoint
from sd.checkpoints.hashing import cache_key
from sd.pipeline.onnx_export import FORMAT, MODEL, NETWORKS, check_exportable, export_onnx
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError

KEEP = 3  # exports of other models or versions that stay in the cache beside the newest


@dataclass
class LiveModel:
    """A checkpoint as a browser runs it. cache: the folder of the exports."""

    checkpoint: Path
    cache: Path
    lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def version(self) -> str:
        """Return a name that changes with the checkpoint's file. Raises UserError where there is none."""
        try:
            key = cache_key(self.checkpoint)
        except OSError as error:
            raise UserError(f"{self.checkpoint} is missing: the page /live has no model to run.") from error
        return hashlib.sha256(f"{FORMAT} {key}".encode()).hexdigest()[:16]

    def folder(self) -> Path:
        """Return the folder of the export, made now if it is not there, which takes some seconds. Raises UserError."""
        folder = self.cache / self.version()
        with self.lock:
            if not (folder / MODEL).is_file():
                check_exportable(read_checkpoint(self.checkpoint).config, self.checkpoint)
                clip, vae, unet, found = load_models(self.checkpoint, torch.float32)
                check_latents(found)
                export_onnx(folder, clip, vae, unet, found.config, self.checkpoint)
                self.remove_others(folder)
        return folder

    def remove_others(self, folder: Path) -> None:
        """Remove the oldest exports but KEEP, so that the cache does not grow with every new model."""
        others = [one for one in self.cache.iterdir() if one.is_dir() and one != folder]
        for old in sorted(others, key=lambda one: one.stat().st_mtime)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)

    def about(self) -> dict[str, Any]:
        """Return the contents of model.json, with "version" and "bytes", the sizes of the networks' files."""
        folder = self.folder()
        about = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        sizes = {name: (folder / f"{name}.onnx").stat().st_size for name in NETWORKS}
        return about | {"version": folder.name, "bytes": sizes}

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], list[int]]:
        """Return a row of ids for each text, and how many tokens of each did not fit into it."""
        length = json.loads((self.folder() / MODEL).read_text(encoding="utf-8"))["length"]
        rows = self.tokenizer(texts, length).tolist()
        return rows, [max(0, len(self.tokenizer.encode(text)) - (length - 2)) for text in texts]
