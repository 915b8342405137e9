"""Checkpoints, LoRAs and embeddings by name. A name is looked up among the files of its folder and is never a path;
a link that leads out of the folder counts as no file.
"""

import difflib
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from sd.cli import PREFERRED, own_checkpoints
from sd.embedding_files import is_picture, read_picture, read_tensors, sort_out
from sd.errors import UserError
from sd.lora_tags import list_loras, split_tags
from sd.pipeline import BUNDLED, EMBEDDINGS, LORAS, WEIGHTS

EMBEDDING_SUFFIXES = (".safetensors", ".pt", ".bin", ".png", ".webp")
FRESH = 5.0  # seconds for which a listing is believed


class Models:
    """The three folders. What is added to them is found within seconds, or at once after `refresh`."""

    def __init__(self, weights: Path = WEIGHTS, loras: Path = LORAS, embeddings: Path = EMBEDDINGS):
        self.folders = {"checkpoint": weights, "LoRA": loras, "embedding": embeddings}
        self.listings: dict[str, tuple[float, dict[str, Path]]] = {}

    def refresh(self) -> None:
        self.listings = {}

    def names(self, kind: str) -> dict[str, Path]:
        """kind: "checkpoint", "LoRA" or "embedding". Files, or folders as PEFT and diffusers make them, by name."""
        read, found = self.listings.get(kind, (-FRESH, {}))
        if time.monotonic() - read >= FRESH:
            folder = self.folders[kind]
            found = {name: path for name, path in LISTS[kind](folder).items() if is_inside(path, folder)}
            if kind == "checkpoint":
                found = {BUNDLED.stem: BUNDLED} | found
            self.listings[kind] = time.monotonic(), found
        return found

    def find(self, kind: str, name: str) -> Path:
        """Raises UserError where there is none of that name, naming what is near."""
        found = self.names(kind)
        if name in found:
            return found[name]
        if re.search(r"[/\\\0]|^\.*$", name):
            raise UserError(f"that is not the name of a {kind}: give its file's name without folder and ending.")
        near = difflib.get_close_matches(name[:100], found)
        raise UserError(f"there is no {kind} named {name[:100]}{f'; did you mean {near[0]}?' if near else '.'}")

    def checkpoint(self, name: str = "") -> Path:
        """By its name or as the webui writes it, "name.safetensors [0123456789]"; the one to take unless told if ""."""
        if not name:
            return self.names("checkpoint")[self.default_checkpoint()]
        bare = re.sub(r"\s*\[[0-9a-f]+\]$", "", name)
        return self.find("checkpoint", re.sub(r"\.(safetensors|ckpt)$", "", bare))

    def default_checkpoint(self) -> str:
        """As the scripts choose it: the person's own before the bundled one."""
        own = [name for name in self.names("checkpoint") if name != BUNDLED.stem]
        return PREFERRED if PREFERRED in own else own[0] if own else BUNDLED.stem

    def check_tags(self, prompt: str) -> None:
        """Raises UserError where a LoRA that a prompt names is not there."""
        for tag in split_tags(prompt)[1]:
            self.find("LoRA", tag.name)

    def embeddings_in(self, *prompts: str) -> dict[str, Path]:
        """The embeddings whose word stands in one of these, by the word as it is spelled there."""
        words = {}
        for name, path in self.names("embedding").items():
            pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
            for prompt in prompts:
                words |= dict.fromkeys(re.findall(pattern, prompt, re.IGNORECASE), path)
        return words

    def describe_embeddings(self) -> dict[str, dict]:
        """As the webui does: {"loaded": {name: facts}, "skipped": {name: {}}}, these for other files."""
        described: dict[str, dict] = {"loaded": {}, "skipped": {}}
        for name, path in self.names("embedding").items():
            try:
                vectors, width = embedding_shape(path, path.stat().st_mtime_ns)
            except (UserError, OSError):
                described["skipped"][name] = {}
            else:
                facts = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
                described["loaded"][name] = facts | {"shape": width, "vectors": vectors}
        return described


def list_embeddings(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix in EMBEDDING_SUFFIXES}


@lru_cache(maxsize=4096)
def embedding_shape(path: Path, changed: int) -> tuple[int, int]:
    """(vectors, their width) of a file as it was at that time. Raises UserError where it holds no embedding."""
    content, metadata = read_picture(path) if is_picture(path) else read_tensors(path)
    rows = next(iter(sort_out(path, content, metadata)[1].values()))
    return rows.reshape(-1, rows.shape[-1]).shape


def is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


LISTS: dict[str, Callable[[Path], dict[str, Path]]] = {
    "checkpoint": own_checkpoints,
    "LoRA": list_loras,
    "embedding": list_embeddings,
}
