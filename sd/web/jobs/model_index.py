"""The server's models by name: `sd.checkpoints.discovery`, and what only the page and the HTTP API ask of it."""

import re
from functools import lru_cache
from pathlib import Path

from sd.adapters.embedding_files import find_vectors, is_image, read_image_embedding, read_tensors
from sd.adapters.lora_tags import split_tags
from sd.checkpoints import discovery
from sd.utils.errors import UserError


class Models(discovery.Models):
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


@lru_cache(maxsize=4096)
def embedding_shape(path: Path, changed: int) -> tuple[int, int]:
    """(vectors, their width) of a file as it was at that time. Raises UserError where it holds no embedding."""
    content, metadata = read_image_embedding(path) if is_image(path) else read_tensors(path)
    rows = next(iter(find_vectors(path, content, metadata)[1].values()))
    return rows.reshape(-1, rows.shape[-1]).shape
