"""Adapters in a pipeline: loaded by hand and kept, or named in a prompt and there for that prompt only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sd import lora_files, textual_inversion
from sd.clip import CLIPTextModel
from sd.errors import UserError
from sd.lora_files import LoraReport
from sd.lora_tags import Tag, find_lora
from sd.textual_inversion import EmbeddingReport
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel


class Adapters:
    """What is loaded into these networks. folder: where the LoRAs lie that a prompt may name, `<lora:name:0.8>`."""

    def __init__(self, tokenizer: Tokenizer, clip: CLIPTextModel, unet: UNetModel, folder: Path):
        self.tokenizer, self.clip, self.unet, self.folder = tokenizer, clip, unet, folder

    def load_lora(
        self, path: str | Path, strength: float = 1.0, text_strength: float | None = None, name: str | None = None
    ) -> LoraReport:
        """See `lora_files.load_lora`: any dialect, into both networks, with a report to print."""
        return lora_files.load_lora(self.unet, self.clip, path, strength, text_strength, name)

    def load_embedding(self, path: str | Path, token: str | None = None) -> EmbeddingReport:
        """See `textual_inversion.load_embedding`: any dialect, as a new word of the text encoder."""
        return textual_inversion.load_embedding(self.tokenizer, self.clip, path, token)

    def names(self) -> list[str]:
        """LoRAs by name, then embeddings by word."""
        return [*lora_files.loaded(self.unet, self.clip), *self.tokenizer.added]

    def unload(self, name: str | None = None) -> None:
        """Takes one out, or everything; the networks are then bit for bit as before. UserError for an unknown name."""
        if name is not None and name not in self.names():
            raise UserError(f"no adapter named {name} is loaded: loaded are {', '.join(self.names()) or 'none'}.")
        for one in self.names() if name is None else [name]:
            if one in self.tokenizer.added:
                textual_inversion.eject(self.tokenizer, self.clip, one)
            else:
                lora_files.unload(self.unet, self.clip, one)

    @contextmanager
    def tagged(self, tags: list[Tag]) -> Iterator[None]:
        """While it lasts, the LoRAs that a prompt names are in, beside those loaded by hand."""
        loaded = []
        try:
            for tag in tags:
                name = f"<lora:{tag.name}> {len(loaded)}"  # a prompt may name one twice: they add up
                self.load_lora(find_lora(self.folder, tag.name), tag.unet, tag.te, name)
                loaded.append(name)
            yield
        finally:
            for name in loaded:
                self.unload(name)
