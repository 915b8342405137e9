"""The adapters of one pipeline: LoRAs and embeddings, loaded by path or by name, unloaded and fused."""

from pathlib import Path

from sd.adapters import injection as lora
from sd.adapters import lora_loader as lora_files
from sd.adapters import textual_inversion
from sd.adapters.lora_loader import LoraReport
from sd.adapters.textual_inversion import EmbeddingReport
from sd.checkpoints.discovery import Models, locate
from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer
from sd.unet import UNetModel
from sd.utils.errors import UserError


class Adapters:
    """The adapters that are loaded into these networks. models: the LoRAs and embeddings that a prompt may name."""

    def __init__(self, tokenizer: Tokenizer, clip: CLIPTextModel, unet: UNetModel, models: Models | None = None):
        self.tokenizer, self.clip, self.unet = tokenizer, clip, unet
        self.models = Models() if models is None else models
        self.kept: dict[tuple, tuple[str, LoraReport]] | None = None  # see `prompt_adapters.keep_prompt_loras`
        self.bundled: dict[str, list[str]] = {}  # LoRA -> words of the embeddings that came with it
        self.fused: dict[
            str, tuple[lora.Originals, lora.Originals]
        ] = {}  # what the fused LoRAs replaced, in both networks

    def load_lora(
        self, path: str | Path, strength: float = 1.0, text_strength: float | None = None, name: str | None = None
    ) -> LoraReport:
        """Loads a LoRA of any format by its path or name into both networks, see `lora_loader.load_lora`."""
        path = locate("LoRA", path, self.models)
        name = path.stem if name is None else name
        if name in self.names():
            raise UserError(f"an adapter named {name} is loaded already: unload it first, or give this one a name.")
        report = lora_files.load_lora(self.unet, self.clip, path, strength, text_strength, name)
        self.load_bundled(report)
        return report

    def load_bundled(self, report: LoraReport) -> None:
        """Loads the embeddings in a LoRA's file; one that cannot be used becomes a warning."""
        width = self.clip.embeddings.token_embedding.embedding_dim
        for word, vectors in report.embeddings.items():
            rows = vectors.reshape(-1, vectors.shape[-1])
            try:
                if rows.shape[1] != width or not rows.isfinite().all():
                    raise UserError(f"it is damaged, or for a text encoder that is {rows.shape[1]} wide.")
                textual_inversion.inject(self.tokenizer, self.clip, word, rows).requires_grad_(False)
            except UserError as error:
                report.warnings.append(f"its embedding {word} is left out: {str(error).rstrip('.')}")
            else:
                report.words.append(word)
        if report.words:
            self.bundled[report.name] = report.words

    def load_embedding(self, path: str | Path, token: str | None = None) -> EmbeddingReport:
        """Loads an embedding by its path or name as a new word, see `textual_inversion.load_embedding`."""
        return textual_inversion.load_embedding(
            self.tokenizer, self.clip, locate("embedding", path, self.models), token
        )

    def loras(self) -> list[str]:
        """Returns the names of the loaded LoRAs, the fused ones first."""
        return list(dict.fromkeys([*self.fused, *lora_files.loaded_adapters(self.unet, self.clip)]))

    def names(self) -> list[str]:
        """Returns the names of the LoRAs, then the words of the embeddings."""
        return [*self.loras(), *self.tokenizer.added]

    def kept_names(self) -> set[str]:
        """Returns the names of the LoRAs that are kept for the next image, and the words that came with them."""
        names = {name for name, _ in (self.kept or {}).values()}
        return names.union(*(self.bundled.get(name, ()) for name in names))

    def unload(self, name: str | None = None) -> None:
        """Unloads one adapter, or all, and restores the networks' bits. Raises UserError for an unknown name."""
        if name is not None and name not in self.names():
            raise UserError(f"no adapter named {name} is loaded: loaded are {', '.join(self.names()) or 'none'}.")
        if name is None or name in self.fused:
            self.unfuse()
        for one in self.names() if name is None else [name]:
            if one in self.tokenizer.added:
                textual_inversion.eject(self.tokenizer, self.clip, one)
            elif one in self.loras():
                lora_files.unload(self.unet, self.clip, one)
                for word in self.bundled.pop(one, []):
                    if word in self.tokenizer.added:
                        textual_inversion.eject(self.tokenizer, self.clip, word)

    def fuse(self) -> None:
        """Adds the loaded LoRAs to the weights themselves, until `unfuse`."""
        names = self.loras()
        if not names:
            raise UserError("no LoRA is loaded, so there is nothing to fuse: load one first.")
        self.unfuse()
        kept = lora.merge_adapters(self.unet), lora.merge_adapters(self.clip)
        self.fused = dict.fromkeys(names, kept)

    def unfuse(self) -> None:
        """Restores the weights before `fuse`, bit for bit; the LoRAs are deltas again."""
        if not self.fused:
            return
        kept = next(iter(self.fused.values()))
        for network, originals in zip((self.unet, self.clip), kept):
            later = {name: lora.eject(network, name) for name in lora.adapter_names(network)}
            lora.unmerge_adapters(network, originals)
            for name, deltas in later.items():
                lora.inject(network, name, deltas, next(iter(deltas.values())).strength)
        self.fused = {}

    def check_saving(self) -> None:
        """Raises UserError where an adapter is loaded that a checkpoint cannot contain."""
        if beside := lora_files.loaded_adapters(self.unet, self.clip):
            raise UserError(
                f"the LoRA {beside[0]} is loaded beside the weights, and a checkpoint holds weights only: call "
                "fuse_lora() first to save it in them, or unload() to save without it."
            )
        if self.tokenizer.added:
            raise UserError(
                f"the embedding {next(iter(self.tokenizer.added))} is loaded, which a checkpoint does not hold: call "
                "unload_textual_inversion() first, and keep its own file."
            )
