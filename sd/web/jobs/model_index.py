"""Model discovery by name for the server: `sd.checkpoints.discovery`, and lookups of the page and the HTTP API."""

from functools import cached_property
from pathlib import Path

from sd.adapters.embedding_files import find_vectors, is_image, read_image_embedding, read_tensors
from sd.adapters.lora_tags import split_tags
from sd.checkpoints import discovery
from sd.checkpoints.foreign_files import reads_file
from sd.utils.errors import UserError
from sd.web.jobs.file_reader import FileReader

MOST_SHAPES = 4096  # of embeddings that are remembered


class Models(discovery.Models):
    """The folders of models, with lookups that only the server needs.

    reader: calls what reads a stranger's file, in another process; None for this one.
    """

    reader: FileReader | None = None

    def __getstate__(self) -> dict:
        """Return the state for a worker's process, which reads files itself."""
        return vars(self) | {"reader": None}

    def check_tags(self, prompt: str) -> None:
        """Raises UserError where a prompt names a LoRA that is not in the folder."""
        for tag in split_tags(prompt)[1]:
            self.find("LoRA", tag.name)

    def describe_embeddings(self) -> dict[str, dict]:
        """Return the webui's {"loaded": {name: facts}, "skipped": {name: {}}}; the skipped hold no embedding."""
        described: dict[str, dict] = {"loaded": {}, "skipped": {}}
        for name, path in self.names("embedding").items():
            shape = self.embedding_shape(path)
            if shape is None:
                described["skipped"][name] = {}
            else:
                vectors, width = shape
                facts = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
                described["loaded"][name] = facts | {"shape": width, "vectors": vectors}
        return described

    def embedding_shape(self, path: Path) -> tuple[int, int] | None:
        """Return `shape_of` for an embedding file, None for a refused one; both are remembered until it changes."""
        try:
            stat = path.stat()
        except OSError:
            return None
        key = path, stat.st_mtime_ns, stat.st_size
        if key not in self.shapes:
            try:
                self.shapes[key] = shape_of(path) if self.reader is None else self.reader(shape_of, path)
            except UserError:
                self.shapes[key] = None
            while len(self.shapes) > MOST_SHAPES:
                self.shapes.pop(next(iter(self.shapes)))
        return self.shapes[key]

    @cached_property
    def shapes(self) -> dict[tuple[Path, int, int], tuple[int, int] | None]:
        return {}


@reads_file
def shape_of(path: Path) -> tuple[int, int]:
    """Return (vectors, their width) of an embedding file. Raises UserError."""
    content, metadata = read_image_embedding(path) if is_image(path) else read_tensors(path)
    rows = next(iter(find_vectors(path, content, metadata)[1].values()))
    vectors, width = rows.reshape(-1, rows.shape[-1]).shape
    return vectors, width
