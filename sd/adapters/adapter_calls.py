"""A pipeline's calls for LoRAs and embeddings, and diffusers' names for them, which many scripts use."""

from collections.abc import Sequence
from pathlib import Path

from sd.adapters import injection as lora
from sd.adapters.lora_loader import LoraReport, check_strength
from sd.adapters.manager import Adapters
from sd.adapters.textual_inversion import EmbeddingReport
from sd.utils.errors import UserError


class AdapterCalls:
    """Methods for adapters; the class that inherits them has an attribute `adapters`."""

    adapters: Adapters

    def load_lora(
        self, path: str | Path, strength: float = 1.0, text_strength: float | None = None, name: str | None = None
    ) -> LoraReport:
        """Loads a LoRA of any format, by its path or its name in weights/loras/, into both networks.

        Print what it returns: it says what matched.
        """
        return self.adapters.load_lora(path, strength, text_strength, name)

    def load_embedding(self, path: str | Path, token: str | None = None) -> EmbeddingReport:
        """Loads an embedding of any format, by its path or its name in weights/embeddings/, as a new word."""
        return self.adapters.load_embedding(path, token)

    def unload(self, name: str | None = None) -> None:
        """Unloads one LoRA by its name or one embedding by its word, or all of them."""
        self.adapters.unload(name)

    def fuse_lora(self) -> None:
        """Adds the loaded LoRAs to the weights, so that `save_pretrained` saves them too; `unfuse_lora` restores them.

        The originals are kept, so restoring is exact.
        """
        self.adapters.fuse()

    def unfuse_lora(self) -> None:
        """Restores the weights before `fuse_lora`, bit for bit; the LoRAs stay loaded."""
        self.adapters.unfuse()

    def load_lora_weights(self, path: str | Path, weight_name: str = "", adapter_name: str | None = None) -> LoraReport:
        """Loads a LoRA, under diffusers' name for `load_lora`. weight_name: the file in a folder."""
        return self.load_lora(Path(path) / weight_name if weight_name else path, name=adapter_name)

    def unload_lora_weights(self) -> None:
        """Unloads all LoRAs; the embeddings stay loaded."""
        for name in self.adapters.loras():
            self.unload(name)

    def set_adapters(self, names: str | Sequence[str], weights: float | Sequence[float] = 1.0) -> None:
        """Sets the strengths of LoRAs that are loaded; all others get strength 0."""
        names = [names] if isinstance(names, str) else list(names)
        strengths = list(weights) if isinstance(weights, Sequence) else [weights] * len(names)
        if len(names) != len(strengths):
            raise UserError(f"{len(names)} LoRAs and {len(strengths)} strengths were given: give one for each.")
        for strength in strengths:
            check_strength(strength)
        loaded = self.adapters.loras()
        for name in names:
            if name not in loaded:
                raise UserError(f"no LoRA named {name} is loaded: loaded are {', '.join(loaded) or 'none'}.")
        self.unfuse_lora()
        wanted = dict(zip(names, strengths))
        for name in loaded:
            for network in (self.adapters.unet, self.adapters.clip):
                lora.set_strength(network, name, wanted.get(name, 0.0))

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> EmbeddingReport:
        """Loads an embedding, under diffusers' name for `load_embedding`."""
        return self.load_embedding(path, token)

    def unload_textual_inversion(self, tokens: str | Sequence[str] | None = None) -> None:
        """Unloads the embeddings of these words, or all of them; the LoRAs stay loaded."""
        words = list(self.adapters.tokenizer.added) if tokens is None else tokens
        for word in [words] if isinstance(words, str) else words:
            self.unload(word)
