"""Model discovery by name for the server: `sd.checkpoints.discovery`, and lookups of the page and the HTTP API."""

from functools import lru_cache
from pathlib import Path

from sd.adapters.embedding_files import find_vectors, is_image, read_image_embedding, read_tensors
from sd.adapters.lora_tags import split_tags
from sd.checkpoints import discovery
from sd.utils.errors import UserError


class Models(discovery.Models):
    """The folders of models, with lookups that only the server needs."""

    def check_tags(self, prompt: str) -> None:
        """Raises UserError where a prompt names a LoRA that is not in the folder."""
        for tag in split_tags(prompt)[1]:
            self.find("LoRA", tag.name)

    def describe_embeddings(self) -> dict[str, dict]:
        """Return the webui's {"loaded": {name: facts}, "skipped": {name: {}}}; the skipped hold no embedding."""
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
    """Return (vectors, their width) of an embedding file. changed: its time of change. Raises UserError."""
    content, metadata = read_image_embedding(path) if is_image(path) else read_tensors(path)
    rows = next(iter(find_vectors(path, content, metadata)[1].values()))
    vectors, width = rows.reshape(-1, rows.shape[-1]).shape
    return vectors, width
