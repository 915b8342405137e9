"""Prompt weighting: a prompt of any length, with emphasis and breaks, to the context of the U-Net.

The syntax is that of AUTOMATIC1111's webui:

    (word)        1.1 times as strong; nests, so that ((word)) is 1.21
    [word]        1.1 times as weak
    (word:1.3)    1.3 times as strong
    \\( \\) \\[ \\]   the characters themselves; two backslashes are one, a single one before anything else vanishes
    BREAK         starts a new chunk, inside brackets too

A bracket that is never closed extends to the end; a closing one without an opening one is text, and so is all else:
`[a:b:0.5]`, `[a|b]` and AND are read before this (see `editing.py`), and `<...>` has no meaning here.
"""

import re
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sd.clip import CLIPTextModel
from sd.tokenizer import Tokenizer
from sd.utils.errors import SettingError, UserError

CHUNK = 75  # tokens between CLIP's start and its end
COMMA_REACH = 20  # a full chunk ends at a comma if there is one among so many tokens at its end
MAX_CHUNKS = 16
MAX_CHARACTERS = 10_000
MAX_WEIGHT = 100  # larger weights give noise only, and overflow fp16

# How a word's weight is applied, by the webui's names: times the states, which are rescaled to their former mean; the
# same without rescaling; not at all; or brackets and BREAK are text like any other.
EMPHASIS = {"original": "Original", "no_norm": "No norm", "ignore": "Ignore", "none": "None"}
ROUND, SQUARE = 1.1, 1 / 1.1
BREAK = ("BREAK", -1.0)  # the piece that `parse_prompt` gives for a break, as the webui writes it
BREAK_WORD = re.compile(r"\bBREAK\b")
SYNTAX = re.compile(
    r"""
    \\(?P<literal>[()\[\]\\]?)
  | (?P<bracket>[()\[\]])
  | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
  | (?P<text>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)


def parse_prompt(prompt: str) -> list[tuple[str, float]]:
    """Returns pieces of text with their weights; neighbors of equal weight are one piece. Never empty, never raises.

    >>> parse_prompt("a (red:1.3) [apple] BREAK pie")
    [('a ', 1.0), ('red', 1.3), (' ', 1.0), ('apple', 0.9090909090909091), ('', 1.0), ('BREAK', -1.0), ('pie', 1.0)]
    """
    pieces: list[list[Any]] = []  # [text, weight]; text is None for a break
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the index of the first piece of each open bracket

    def close(bracket: str, factor: float) -> None:
        for piece in pieces[opened[bracket].pop() :]:
            piece[1] *= factor

    for match in SYNTAX.finditer(prompt):
        kind, found = match.lastgroup, match[0]
        if kind == "bracket" and found in opened:
            opened[found].append(len(pieces))
        elif kind == "bracket" and found == ")" and opened["("]:
            close("(", ROUND)
        elif kind == "bracket" and found == "]" and opened["["]:
            close("[", SQUARE)
        elif kind == "weight" and opened["("]:
            close("(", float(match["weight"]))
        elif kind == "literal":
            pieces.append([match["literal"], 1.0])
        else:
            first, *others = split_breaks(found)
            pieces.append([first, 1.0])
            for other in others:
                pieces += [None, 1.0], [other, 1.0]
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return merge_pieces(pieces) or [("", 1.0)]


def split_breaks(text: str) -> list[str]:
    """Returns the texts between the breaks, without the white space around these."""
    first, *others = BREAK_WORD.split(text)
    if not others:
        return [first]
    return [first.rstrip(), *(other.strip() for other in others[:-1]), others[-1].lstrip()]


def merge_pieces(pieces: list[list[Any]]) -> list[tuple[str, float]]:
    """Joins neighbors of equal weight, and replaces breaks by BREAK."""
    merged = []
    for (is_break, weight), run in groupby(pieces, key=lambda piece: (piece[0] is None, piece[1])):
        merged.append(BREAK if is_break else ("".join(text for text, _ in run), weight))
    return merged


def split_chunks(
    tokenizer: Tokenizer, prompt: str, emphasis: str = "original", comma_reach: int = COMMA_REACH
) -> list[list[tuple[int, float]]]:
    """Returns the prompt's tokens with their weights, in chunks of at most 75; an empty prompt is one empty chunk.

    A full chunk ends after its last comma, if that is among its last `comma_reach` tokens and no comma follows, so that
    a phrase stays whole; 0 turns this off. The vectors of one embedding stay together: where they do not fit, they
    start the next chunk.
    emphasis: one of `EMPHASIS`; "none" reads no brackets.
    Raises UserError for a prompt past MAX_CHARACTERS, MAX_CHUNKS or MAX_WEIGHT.
    """
    if len(prompt) > MAX_CHARACTERS:
        raise UserError(f"the prompt has {len(prompt)} characters: shorten it to at most {MAX_CHARACTERS}.")
    segments: list[list[tuple[int, float]]] = [[]]  # between the breaks
    for piece in [(prompt, 1.0)] if emphasis == "none" else parse_prompt(prompt):
        text, weight = piece
        if piece is BREAK:
            segments.append([])
        elif abs(weight) > MAX_WEIGHT:
            raise UserError(f"the prompt gives {text.strip()!r} the weight {weight:g}: use at most {MAX_WEIGHT}.")
        else:
            segments[-1] += [(token, weight) for token in tokenizer.encode(text)]
    if len(segments) > 1 and not segments[-1]:
        segments.pop()  # a break at the very end starts no chunk
    (comma,) = tokenizer.encode_clean(",")
    lengths = {ids[0]: len(ids) for ids in tokenizer.added.values()}
    chunks = [chunk for segment in segments for chunk in split_segment(segment, comma, lengths, comma_reach)]
    if len(chunks) > MAX_CHUNKS:
        raise UserError(f"the prompt fills {len(chunks)} chunks of {CHUNK} tokens: shorten it to at most {MAX_CHUNKS}.")
    return chunks


def split_segment(
    tokens: list[tuple[int, float]], comma: int, lengths: dict[int, int], comma_reach: int = COMMA_REACH
) -> list[list[tuple[int, float]]]:
    """Splits tokens into chunks. lengths: how many tokens stay together, by the first of them; one for any other.

    comma_reach: see `split_chunks`.
    """
    chunks: list[list[tuple[int, float]]] = [[]]
    last_comma, place = -CHUNK, 0
    while place < len(tokens):
        token, length = tokens[place][0], lengths.get(tokens[place][0], 1)
        filled = len(chunks[-1])
        if token == comma and filled < CHUNK:
            last_comma = filled
        elif token != comma and filled == CHUNK and CHUNK - last_comma <= comma_reach:
            chunks.append(chunks[-1][last_comma + 1 :])
            del chunks[-2][last_comma + 1 :]
            last_comma = -CHUNK
        if len(chunks[-1]) + length > CHUNK:
            chunks.append([])
            last_comma = -CHUNK
        chunks[-1] += tokens[place : place + length]
        place += length
    return chunks


def emphasize(states: Tensor, weights: Tensor, emphasis: str = "original") -> Tensor:
    """Applies the webui's emphasis: token states times weights, rescaled to the former mean of each chunk.

    states: (k, N, D). weights: (k, N). emphasis: one of `EMPHASIS`: "no_norm" does not rescale, "ignore" and "none"
    leave the states as they are. Returns (k, N, D); where all weights of a chunk are 1, exactly its states.
    """
    if emphasis in ("ignore", "none"):
        return states
    z = states.float()
    weighted = z * weights[..., None]
    if emphasis == "no_norm":
        return weighted.to(states.dtype)
    return (weighted * (z.mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True))).to(states.dtype)


def encode_prompt(
    tokenizer: Tokenizer,
    clip: CLIPTextModel,
    prompt: str,
    clip_skip: int = 1,
    emphasis: str = "original",
    comma_reach: int = COMMA_REACH,
) -> Tensor:
    """Encodes one prompt to a context (1, 77 * k, D): k chunks of up to 75 tokens, each with a start and an end token.

    clip_skip: 1 takes CLIP's last layer, 2 the one before it, as the webui counts. emphasis: one of `EMPHASIS`.
    comma_reach: see `split_chunks`.
    Raises UserError for a clip_skip that CLIP has no layer for, and for a prompt past a bound (see `split_chunks`).
    """
    layers = len(clip.encoder.layers)
    if not 1 <= clip_skip <= layers:
        raise SettingError("clip_skip", f"must be from 1 (the last layer) to {layers} (the first), not {clip_skip}")
    return encode_chunks(tokenizer, clip, split_chunks(tokenizer, prompt, emphasis, comma_reach), clip_skip, emphasis)


def encode_chunks(
    tokenizer: Tokenizer, clip: CLIPTextModel, chunks: list[list[tuple[int, float]]], clip_skip: int, emphasis: str
) -> Tensor:
    """Encodes chunks, as `split_chunks` returns them, to a context (1, 77 * k, D)."""
    ids, weights = [], []
    for chunk in chunks:
        rest = CHUNK - len(chunk)
        ids.append([tokenizer.start, *(token for token, _ in chunk), *[tokenizer.end] * (rest + 1)])
        weights.append([1.0, *(weight for _, weight in chunk), *[1.0] * (rest + 1)])
    device = clip.final_layer_norm.weight.device
    states = clip(torch.tensor(ids, device=device), clip_skip)  # (k, 77, D)
    weighted = emphasize(states, torch.tensor(weights, device=device), emphasis)
    return weighted.flatten(0, 1)[None]  # (1, 77 * k, D)


def encode_prompts(
    tokenizer: Tokenizer,
    clip: CLIPTextModel,
    prompts: list[str],
    clip_skip: int = 1,
    emphasis: str = "original",
    comma_reach: int = COMMA_REACH,
) -> Tensor:
    """Encodes B prompts to one context (B, 77 * k, D), k being the longest one's; empty chunks pad the others."""
    contexts = [encode_prompt(tokenizer, clip, prompt, clip_skip, emphasis, comma_reach) for prompt in prompts]
    longest = max(context.shape[1] for context in contexts)
    if any(context.shape[1] < longest for context in contexts):
        empty = encode_prompt(tokenizer, clip, "", clip_skip)  # (1, 77, D)
        contexts = [torch.cat([c, *[empty] * ((longest - c.shape[1]) // empty.shape[1])], dim=1) for c in contexts]
    return torch.cat(contexts)
