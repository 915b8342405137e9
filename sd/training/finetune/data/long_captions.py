"""Captions of any length as context of the U-Net: chunks of 75 tokens side by side, like prompts."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.weighting import CHUNK, split_segment
from sd.tokenizer import Tokenizer

CACHED_CONTEXTS = 2000  # of frozen text encoders; 77 vectors a chunk, 120 kB for v1-5 in bf16


def split_into_chunks(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Return the text's tokens in chunks of at most 75, split after commas like prompts; brackets have no special
    meaning.

    The vectors of a word that textual inversion added stay in one chunk.
    """
    (comma,) = tokenizer.encode(",")
    lengths = {ids[0]: len(ids) for ids in tokenizer.added.values()}
    chunks = split_segment([(token, 1.0) for token in tokenizer.encode(text)], comma, lengths)
    return [[token for token, _ in chunk] for chunk in chunks]


def fits_in_chunks(tokenizer: Tokenizer, text: str, tokens: int) -> bool:
    """Return whether the text needs no more than `tokens` tokens in its chunks."""
    return len(split_into_chunks(tokenizer, text)) <= tokens // CHUNK


def encode_captions(pipe: StableDiffusion, texts: list[str], tokens: int = CHUNK) -> Tensor:
    """Encode texts to (B, 77 * k, D), where k is the number of chunks of the longest; empty chunks pad the others."""
    rows = [split_into_chunks(pipe.tokenizer, text)[: tokens // CHUNK] for text in texts]
    longest = max(map(len, rows))
    if longest == 1:
        return pipe.clip(pipe.tokenizer(texts).to(pipe.device))
    start, end = pipe.tokenizer.start, pipe.tokenizer.end
    chunks = [chunk for row in rows for chunk in [*row, *[[]] * (longest - len(row))]]
    ids = [[start, *chunk, *[end] * (CHUNK + 1 - len(chunk))] for chunk in chunks]
    states = pipe.clip(torch.tensor(ids, device=pipe.device))  # (B * k, 77, D)
    return states.reshape(len(texts), -1, states.shape[-1])


def caption_encoder(pipe: StableDiffusion, is_trained: bool, tokens: int = CHUNK):
    """Return a function like `encode_captions`; with a frozen text encoder it caches each text's result.

    A cached result has the same bits whichever process computes it first.
    """
    if is_trained:
        return lambda texts: encode_captions(pipe, texts, tokens)

    @lru_cache(CACHED_CONTEXTS)
    def read(text: str) -> Tensor:
        with torch.no_grad(), torch.autocast(pipe.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            return encode_captions(pipe, [text], tokens)

    def read_all(texts: list[str]) -> Tensor:
        contexts = [read(text) for text in texts]
        longest = max(context.shape[1] for context in contexts)
        if all(context.shape[1] == longest for context in contexts):
            return torch.cat(contexts)
        empty = read("")  # (1, 77, D)
        return torch.cat([torch.cat([c, *[empty] * ((longest - c.shape[1]) // empty.shape[1])], 1) for c in contexts])

    return read_all
