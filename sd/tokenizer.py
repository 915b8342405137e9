"""CLIP's tokenizer: from a text to the ids of its byte-pair tokens.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", on bytes as in GPT-2, with CLIP's
own cleaning: mojibake is repaired, HTML entities are decoded, white space is collapsed, and everything is lowercased.
The last token of a word carries the mark `</w>`. The vocabulary is 256 bytes, the same 256 at a word's end, 48,894
merges, and two special tokens for start and end: 49,408 ids.

A frequent word is one token. A rare one is made of parts, for the merges that training found are applied in their
order: in "snowglobe" first l + o, then n + o, b + e, g + lo, no + w, s + now, and last glo + be.

    >>> tokenizer = Tokenizer()
    >>> tokenizer.encode("A Snowglobe!")
    [320, 3880, 9368, 256]
    >>> [tokenizer.vocabulary[i] for i in tokenizer.encode("A Snowglobe!")]
    ['a</w>', 'snow', 'globe</w>', '!</w>']
    >>> tokenizer("A Snowglobe!").shape
    torch.Size([1, 77])
    >>> tokenizer("A Snowglobe!")[0, :8].tolist()  # start, the four, end, and the end again to the last place
    [49406, 320, 3880, 9368, 256, 49407, 49407, 49407]
    >>> tokenizer.decode([49406, 320, 3880, 9368, 256, 49407])
    'a snowglobe !'
"""

import gzip
import html
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

from sd.utils.errors import UserError

MERGES = resources.files("sd") / "data" / "bpe_simple_vocab_16e6.txt.gz"
MERGE_COUNT = 49152 - 256 - 2  # the file lists more; CLIP was trained with these
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77

# The words before merging: special tokens, English contractions, runs of letters, single digits, runs of anything else.
# No token crosses from one word to the next.
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


class Tokenizer:
    """Converts text to ids and back. A call gives rows of 77 ids; `encode` and `decode` take any length.

    merges: the gzipped list of merges; CLIP's own, which ships in `sd/data/`, if None.
    """

    def __init__(self, merges: str | Path | None = None):
        packed = MERGES if merges is None else Path(merges)
        with packed.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : MERGE_COUNT + 1]  # the first line is a version number
        pairs = [tuple(line.split()) for line in lines]
        self.byte_chars = byte_chars()
        chars = list(self.byte_chars.values())
        self.vocabulary = [*chars, *(c + "</w>" for c in chars), *("".join(pair) for pair in pairs), START, END]
        self.ids = {token: i for i, token in enumerate(self.vocabulary)}
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}  # lower: merged earlier, because more frequent
        self.start, self.end = self.ids[START], self.ids[END]
        self.added: dict[str, list[int]] = {}  # placeholder -> its ids
        self.merge_pairs_cached = lru_cache(maxsize=65536)(self.merge_pairs)

    def __call__(self, text: str | list[str], length: int = MAX_LENGTH) -> Tensor:
        """Return (B, length) ids for a list of B texts, or (1, length) for one text.

        A row is the start token, the text, the end token, and the end token again up to `length`. A text that is too
        long is cut off, and its row still ends with the end token.
        """
        rows = []
        for one in [text] if isinstance(text, str) else text:
            ids = [self.start, *self.encode(one)[: length - 2], self.end]
            rows.append(ids + [self.end] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.long).reshape(-1, length)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start, end or padding.

        A placeholder is recognized in upper and lower case, but not inside a word.
        """
        text = clean_text(text)
        if not self.added:
            return self.encode_clean(text)
        longest_first = sorted(self.added, key=len, reverse=True)
        ids, end = [], 0
        for found in regex.finditer("|".join(f"({placeholder_pattern(name)})" for name in longest_first), text):
            ids += self.encode_clean(text[end : found.start()]) + self.added[longest_first[found.lastindex - 1]]
            end = found.end()
        return ids + self.encode_clean(text[end:])

    def encode_clean(self, text: str) -> list[int]:
        """Return the ids of a text that is cleaned already and holds no placeholder."""
        ids = []
        for word in WORD.findall(text):
            if word in (START, END):
                ids.append(self.ids[word])
            else:
                # Every byte is a token, so any text of any language can be encoded, if not in few tokens.
                chars = "".join(self.byte_chars[byte] for byte in word.encode("utf-8"))
                ids += [self.ids[token] for token in self.merge_pairs_cached(chars)]
        return ids

    def merge_pairs(self, word: str) -> tuple[str, ...]:
        """Return the tokens of a word: the pair of neighbors of the lowest rank is joined until no known pair is left.

        >>> Tokenizer().merge_pairs("snowglobe")
        ('snow', 'globe</w>')
        """
        tokens = [*word[:-1], word[-1] + "</w>"]
        while len(tokens) > 1:
            pair = min(pairwise(tokens), key=lambda pair: self.ranks.get(pair, MERGE_COUNT))
            if pair not in self.ranks:
                break
            joined, i = [], 0
            while i < len(tokens):  # every occurrence of this pair at once, from the left
                count = 2 if tuple(tokens[i : i + 2]) == pair else 1
                joined.append("".join(tokens[i : i + count]))
                i += count
            tokens = joined
        return tuple(tokens)

    def decode(self, ids: list[int]) -> str:
        """Return the text of some ids, without start and end tokens; a placeholder becomes its name."""
        names = {i: name if k == 0 else "" for name, row in self.added.items() for k, i in enumerate(row)}
        char_bytes = {char: byte for byte, char in self.byte_chars.items()}
        text = bytearray()
        for i in map(int, ids):
            if i in names:
                text += (names[i] + " ").encode() if names[i] else b""
            elif i not in (self.start, self.end):
                token = self.vocabulary[i]
                word = token.removesuffix("</w>")
                text += bytes(char_bytes[c] for c in word) + (b" " if token.endswith("</w>") else b"")
        return text.decode("utf-8", errors="replace").strip()

    def add_token(self, name: str, vectors: int = 1) -> list[int]:
        """Add `name` as a placeholder for `vectors` new ids after the highest one in use, and return these ids.

        A word of the vocabulary is a valid name too: its own id is then out of use. Raises UserError if the name is
        empty, contains a special token of CLIP's, or is a placeholder already, in upper or lower case.
        """
        if not placeholder_pattern(name):
            raise UserError("the name of a placeholder is empty: give one such as <my-dog>.")
        if any(special in clean_text(name) for special in (START, END)):
            raise UserError(f"the placeholder {name!r} contains a special token of CLIP's: choose another name.")
        if any(placeholder_pattern(name) == placeholder_pattern(other) for other in self.added):
            raise UserError(f"the placeholder {name!r} is already in use: choose another, such as <{name}>.")
        first = max([len(self.vocabulary) - 1, *(ids[-1] for ids in self.added.values())]) + 1
        self.added[name] = list(range(first, first + vectors))
        return self.added[name]

    def remove_token(self, name: str) -> None:
        """Remove a placeholder; its ids stay unused until later ones are removed too."""
        del self.added[name]


@lru_cache(maxsize=4096)
def placeholder_pattern(name: str) -> str:
    """Return a pattern that finds a placeholder in a clean text, or "" for an empty name.

    Space between the words of the name is optional where it changes no token. A letter at either end of the name must
    begin or end a word of the text; other signs need no border, so that `<a>,` and `<a><b>` contain placeholders.
    """
    words = WORD.findall(clean_text(name))
    if not words:
        return ""
    pattern = regex.escape(words[0])
    for before, word in pairwise(words):
        both_of_a_kind = regex.match(r"\p{L}\p{L}|[^\p{L}\p{N}]{2}", before[-1] + word[0])
        pattern += (r"\s+" if both_of_a_kind else r"\s*") + regex.escape(word)
    starts = r"(?<!\p{L})" if words[0][0].isalpha() else ""
    return starts + pattern + (r"(?!\p{L})" if words[-1][-1].isalpha() else "")


def contains_placeholder(text: str, name: str) -> bool:
    """Return whether a clean text contains a placeholder."""
    return placeholder_pattern(name) != "" and regex.search(placeholder_pattern(name), text) is not None


def clean_text(text: str) -> str:
    """Repair broken Unicode, decode HTML entities (twice: `&amp;amp;`), collapse white space, and lowercase."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def byte_chars() -> dict[int, str]:
    """Return a character for each of the 256 bytes, as GPT-2 does, so that tokens of bytes can be written as text.

    Printable Latin-1 maps to itself, and the rest has the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    # Printable bytes come first: the order gives the ids.
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
