"""Captions of any length to what the U-Net reads: chunks of 75 tokens side by side, as prompts are read."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sd.pipeline.stable_diffusion import StableDiffusion
from sd.prompts.weighting import CHUNK, split_segment
from sd.tokenizer import Tokenizer

KEPT_CONTEXTS = 2000  # of frozen text encoders; 77 vectors a chunk, 120 kB for v1-5 in bf16


def chunks_of(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """The text's tokens in chunks of at most 75, cut behind commas as in prompts; brackets in it are brackets.

    The vectors of a word that textual inversion added stay in one chunk.
    """
    (comma,) = tokenizer.encode(",")
    lengths = {ids[0]: len(ids) for ids in tokenizer.added.values()}
    chunks = split_segment([(token, 1.0) for token in tokenizer.encode(text)], comma, lengths)
    return [[token for token, _ in chunk] for chunk in chunks]


def fits(tokenizer: Tokenizer, text: str, tokens: int) -> bool:
    """Whether nothing of it is lost in chunks of `tokens` places together."""
    return len(chunks_of(tokenizer, text)) <= tokens // CHUNK


def encode(pipe: StableDiffusion, texts: list[str], tokens: int = CHUNK) -> Tensor:
    """(B, 77 * k, D), k being the number of chunks of the longest: empty chunks make the others as long."""
    rows = [chunks_of(pipe.tokenizer, text)[: tokens // CHUNK] for text in texts]
    longest = max(map(len, rows))
    if longest == 1:
        return pipe.clip(pipe.tokenizer(texts).to(pipe.device))
    start, end = pipe.tokenizer.start, pipe.tokenizer.end
    chunks = [chunk for row in rows for chunk in [*row, *[[]] * (longest - len(row))]]
    ids = [[start, *chunk, *[end] * (CHUNK + 1 - len(chunk))] for chunk in chunks]
    states = pipe.clip(torch.tensor(ids, device=pipe.device))  # (B * k, 77, D)
    return states.reshape(len(texts), -1, states.shape[-1])


def text_contexts(pipe: StableDiffusion, is_trained: bool, tokens: int = CHUNK):
    """As `encode`; a frozen text encoder reads each text once, and to the same bits whoever asks for it first."""
    if is_trained:
        return lambda texts: encode(pipe, texts, tokens)

    @lru_cache(KEPT_CONTEXTS)
    def read(text: str) -> Tensor:
        with torch.no_grad(), torch.autocast(pipe.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            return encode(pipe, [text], tokens)

    def read_all(texts: list[str]) -> Tensor:
        contexts = [read(text) for text in texts]
        longest = max(context.shape[1] for context in contexts)
        if all(context.shape[1] == longest for context in contexts):
            return torch.cat(contexts)
        empty = read("")  # (1, 77, D)
        return torch.cat([torch.cat([c, *[empty] * ((longest - c.shape[1]) // empty.shape[1])], 1) for c in contexts])

    return read_all
