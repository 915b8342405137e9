"""The words of a prompt: which vectors of the context belong to each, and the context without one of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd.clip import CLIPTextModel
from sd.prompts.weighting import CHUNK, encode_chunks
from sd.tokenizer import Tokenizer

MAX_WORDS = 24  # of a prompt that are shown one by one
START, PADDING, OTHER = "start token", "end token and padding", "other words"
Chunks = list[list[tuple[int, float]]]  # as `weighting.split_chunks` gives them


@dataclass(frozen=True)
class Word:
    """A word, and the places of its tokens in the prompt's context (1, 77 * k, D). An embedding's name is one word."""

    text: str
    places: tuple[int, ...]

    @property
    def is_sign(self) -> bool:
        """Whether it consists of ASCII punctuation, such as a comma."""
        return all(char.isascii() and not char.isalnum() for char in self.text)


def find_words(tokenizer: Tokenizer, chunks: Chunks) -> list[Word]:
    """Return the words of a prompt in order; tokens that share a word or an embedding are one word."""
    last_of_added = {ids[-1] for ids in tokenizer.added.values()}
    words = []
    for index, chunk in enumerate(chunks):
        first = 0
        for i, (token, _) in enumerate(chunk):
            ends = token in last_of_added if token >= len(tokenizer.vocabulary) else is_word_end(tokenizer, token)
            if ends or i == len(chunk) - 1:
                text = tokenizer.decode([token for token, _ in chunk[first : i + 1]])
                start = index * (CHUNK + 2) + 1  # each chunk begins with a start token
                words.append(Word(text or "?", tuple(range(start + first, start + i + 1))))
                first = i + 1
    return words


def is_word_end(tokenizer: Tokenizer, token: int) -> bool:
    return tokenizer.vocabulary[token].endswith("</w>")


def without_word(chunks: Chunks, word: Word) -> Chunks:
    """Return the chunks without a word's tokens; what follows moves up within its chunk."""
    length = CHUNK + 2
    return [
        [one for i, one in enumerate(chunk) if index * length + i + 1 not in word.places]
        for index, chunk in enumerate(chunks)
    ]


def contexts_without(
    tokenizer: Tokenizer,
    clip: CLIPTextModel,
    chunks: Chunks,
    words: list[Word],
    cond: Tensor,
    clip_skip: int,
    emphasis: str,
) -> Tensor:
    """Return the contexts (W, M, D) of the prompt without each of W words. cond: (1, M, D), the whole prompt's.

    Where cond is longer than the prompt's own chunks, its remainder is padding and stays.
    """
    parts = [encode_chunks(tokenizer, clip, without_word(chunks, word), clip_skip, emphasis) for word in words]
    return torch.cat([torch.cat([part.to(cond.dtype), cond[:, part.shape[1] :]], dim=1) for part in parts])


def membership(words: list[Word], length: int) -> tuple[list[str], Tensor]:
    """Return the names of E entries and a matrix (length, E) of 0 and 1 that assigns each vector to one of them.

    The entries are the start tokens, up to MAX_WORDS words, the other words where there are more, and everything else:
    end tokens and padding.
    """
    shown, others = words[:MAX_WORDS], words[MAX_WORDS:]
    names = [START, *(word.text for word in shown), *([OTHER] if others else []), PADDING]
    entry = torch.full((length,), len(names) - 1)
    entry[:: CHUNK + 2] = 0
    for i, word in enumerate(words):
        entry[list(word.places)] = 1 + min(i, MAX_WORDS)
    return names, torch.nn.functional.one_hot(entry, len(names)).float()
