"""Textual inversion: rows added to the text encoder's embedding table, and removed again.

Gal et al. 2022, "An Image is Worth One Word". The table itself is not touched: the new rows are parameters of their
own, and only they are trained.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.adapters.embedding_files import read_embeddings
from sd.clip import CLIPTextModel
from sd.optimization.patching import LayerPatch, apply_patch, remove_patch
from sd.tokenizer import Tokenizer
from sd.utils.errors import UserError

MAX_VECTORS = 75  # all that fit into a prompt


class ExtendedEmbedding(LayerPatch, nn.Embedding):
    """An embedding table with `rows`: the id of the first -> (n, D), for ids beyond the table's own."""

    STATE = ("rows",)
    rows: nn.ParameterDict

    def forward(self, tokens: Tensor) -> Tensor:
        states = F.embedding(tokens.clamp(max=self.num_embeddings - 1), self.weight)  # (..., D)
        for first, rows in self.rows.items():
            places = tokens - int(first)
            inside = (places >= 0) & (places < len(rows))
            new = F.embedding(places.clamp(0, len(rows) - 1), rows.to(states.dtype))
            states = torch.where(inside[..., None], new, states)
        return states


def inject(tokenizer: Tokenizer, clip: CLIPTextModel, token: str, vectors: Tensor) -> nn.Parameter:
    """Adds `token` with these vectors, (n, D). Returns the rows, fp32: the parameter to train.

    Raises UserError, with nothing changed, where another embedding has this word, or more vectors than fit into a
    prompt.
    """
    if not 1 <= len(vectors) <= MAX_VECTORS:
        raise UserError(f"the embedding {token} has {len(vectors)} vectors: 1 to {MAX_VECTORS} fit into a prompt.")
    first = tokenizer.add_token(token, len(vectors))[0]
    table = clip.embeddings.token_embedding
    apply_patch(table, ExtendedEmbedding, rows=nn.ParameterDict())
    table.rows[str(first)] = nn.Parameter(vectors.to(table.weight.device, torch.float32, copy=True))
    return table.rows[str(first)]


def rows_of(tokenizer: Tokenizer, clip: CLIPTextModel, token: str) -> nn.Parameter:
    """Returns the vectors of a word that `inject` added, (n, D)."""
    if token not in tokenizer.added:
        words = ", ".join(tokenizer.added) or "none"
        raise UserError(f"no embedding named {token} is loaded: loaded are {words}.")
    return clip.embeddings.token_embedding.rows[str(tokenizer.added[token][0])]


def eject(tokenizer: Tokenizer, clip: CLIPTextModel, token: str) -> Tensor:
    """Removes a token. Returns its vectors, (n, D). Raises UserError where it is not loaded."""
    vectors = rows_of(tokenizer, clip, token).detach()
    table = clip.embeddings.token_embedding
    del table.rows[str(tokenizer.added[token][0])]
    tokenizer.remove_token(token)
    if not len(table.rows):
        remove_patch(table, ExtendedEmbedding)
    return vectors


@dataclass
class EmbeddingReport:
    """The result of loading.

    vectors: their number, by word. length: their mean norm over that of the vocabulary's, by word.
    """

    path: Path
    format: str
    vectors: dict[str, int]
    lengths: dict[str, float]
    about: str
    warnings: list[str]

    @property
    def notes(self) -> list[str]:
        """Returns the warnings as whole sentences."""
        return [f"the embedding {' and '.join(self.vectors)}: {warning}." for warning in self.warnings]

    def __str__(self) -> str:
        lines = [
            f"{token}: {count} vector{'s' * (count > 1)} of {self.lengths[token]:.2g} times a usual word's length"
            for token, count in self.vectors.items()
        ]
        lines.append(f"  the format is {self.format}{'; ' * bool(self.about)}{self.about}")
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def load_embedding(
    tokenizer: Tokenizer, clip: CLIPTextModel, path: str | Path, token: str | None = None
) -> EmbeddingReport:
    """Loads the tokens of an embedding file of any format.

    token: the word to use; the file's own, or else its name, if None. Raises UserError, with nothing changed, where
    the file is unreadable, no embedding or for another model, and where a word is another embedding's.
    """
    table = clip.embeddings.token_embedding
    file = read_embeddings(path, table.embedding_dim)
    vectors = file.vectors
    if token is not None and token not in vectors:
        if len(vectors) > 1:
            raise UserError(f"{path} has {len(vectors)} words, {', '.join(vectors)}: they cannot all be {token}.")
        vectors = {token: next(iter(vectors.values()))}
    elif token is not None:
        vectors = {token: vectors[token]}
    words = {word for word in vectors if len(tokenizer.encode(word)) == 1}
    done = []
    try:
        for word, rows in vectors.items():
            inject(tokenizer, clip, word, rows).requires_grad_(False)
            done.append(word)
    except UserError:
        for word in done:
            eject(tokenizer, clip, word)
        raise
    usual = table.weight.detach().float().norm(dim=1).mean().item()
    return EmbeddingReport(
        path=Path(path),
        format=file.format,
        vectors={word: len(rows) for word, rows in vectors.items()},
        lengths={word: rows.norm(dim=1).mean().item() / usual for word, rows in vectors.items()},
        about=file.about,
        warnings=[
            *file.warnings,
            *(f"{word} now has the embedding's meaning instead of its usual one" for word in words),
        ],
    )
