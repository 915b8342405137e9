"""CLIP's tokenizer: text to the ids of byte-pair pieces.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", on bytes as in GPT-2, with CLIP's
own cleaning: mojibake repaired, HTML entities read, white space collapsed, everything in lower case. A word's last
piece carries the mark `</w>`. The vocabulary is 256 bytes, the same 256 at a word's end, 48,894 merges, and two marks
for start and end: 49,408 ids.
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
from torch import LongTensor

from sd.utils.errors import UserError

MERGES = resources.files("sd") / "data" / "bpe_simple_vocab_16e6.txt.gz"
MERGE_COUNT = 49152 - 256 - 2  # the file lists more; CLIP was trained with these
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77

# The words before merging: the two marks, English contractions, runs of letters, single digits, runs of anything else.
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


class Tokenizer:
    """Text to ids and back. `tokenizer("a cat")` is (1, 77) ids; `encode` and `decode` know nothing of the 77 places.

    merges: the gzipped list of merges; CLIP's own, which ships in `sd/data/`, unless given.
    """

    def __init__(self, merges: str | Path | None = None):
        packed = MERGES if merges is None else Path(merges)
        with packed.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1 : MERGE_COUNT + 1]  # the first line is a version number
        pairs = [tuple(line.split()) for line in lines]
        self.byte_letters = byte_letters()
        letters = list(self.byte_letters.values())
        self.pieces = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in pairs), START, END]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.start, self.end = self.ids[START], self.ids[END]
        self.added: dict[str, list[int]] = {}  # placeholder -> the ids that stand for it
        self.split_word = lru_cache(maxsize=65536)(self.split_word)

    def __call__(self, text: str | list[str], length: int = MAX_LENGTH) -> LongTensor:
        """One text or a list of B to (B, length) ids: start, the text, end, and the end again to the last place.

        A text that is too long is cut, and the end mark still stands at its last place.
        """
        rows = []
        for one in [text] if isinstance(text, str) else text:
            ids = [self.start, *self.encode(one)[: length - 2], self.end]
            rows.append(ids + [self.end] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.long).reshape(-1, length)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start, end or padding; a placeholder counts in any case, but not inside a word."""
        text = clean(text)
        if not self.added:
            return self.encode_clean(text)
        longest_first = sorted(self.added, key=len, reverse=True)
        ids, end = [], 0
        for found in regex.finditer("|".join(f"({spelling(name)})" for name in longest_first), text):
            ids += self.encode_clean(text[end : found.start()]) + self.added[longest_first[found.lastindex - 1]]
            end = found.end()
        return ids + self.encode_clean(text[end:])

    def encode_clean(self, text: str) -> list[int]:
        ids = []
        for word in WORD.findall(text):
            if word in (START, END):
                ids.append(self.ids[word])
            else:
                letters = "".join(self.byte_letters[byte] for byte in word.encode("utf-8"))
                ids += [self.ids[piece] for piece in self.split_word(letters)]
        return ids

    def split_word(self, word: str) -> tuple[str, ...]:
        """Join the pair of neighbours that was merged earliest in training, until no known pair is left."""
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = min(pairwise(pieces), key=lambda pair: self.ranks.get(pair, MERGE_COUNT))
            if pair not in self.ranks:
                break
            joined, i = [], 0
            while i < len(pieces):
                take = 2 if tuple(pieces[i : i + 2]) == pair else 1
                joined.append("".join(pieces[i : i + take]))
                i += take
            pieces = joined
        return tuple(pieces)

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; start and end marks are left out, a placeholder reads as its name."""
        names = {i: name if k == 0 else "" for name, row in self.added.items() for k, i in enumerate(row)}
        letter_bytes = {letter: byte for byte, letter in self.byte_letters.items()}
        text = bytearray()
        for i in map(int, ids):
            if i in names:
                text += (names[i] + " ").encode() if names[i] else b""
            elif i not in (self.start, self.end):
                piece = self.pieces[i]
                word = piece.removesuffix("</w>")
                text += bytes(letter_bytes[c] for c in word) + (b" " if piece.endswith("</w>") else b"")
        return text.decode("utf-8", errors="replace").strip()

    def add_token(self, name: str, vectors: int = 1) -> list[int]:
        """Make `name` stand for `vectors` new ids after the highest one in use; returns them.

        A word of the vocabulary may be a name too: its own id is then out of use. Raises UserError where the name is
        empty, CLIP's own mark, or a placeholder already, in any case.
        """
        if not spelling(name):
            raise UserError("a placeholder needs a name: give one such as <my-dog>.")
        if any(mark in clean(name) for mark in (START, END)):
            raise UserError(f"the placeholder {name!r} holds a mark of CLIP's own: choose another name.")
        if any(spelling(name) == spelling(other) for other in self.added):
            raise UserError(f"the placeholder {name!r} is already a word: choose one that is not, such as <{name}>.")
        first = max([len(self.pieces) - 1, *(ids[-1] for ids in self.added.values())]) + 1
        self.added[name] = list(range(first, first + vectors))
        return self.added[name]

    def remove_token(self, name: str) -> None:
        """Take a placeholder out again; its ids stay unused until later ones are gone too."""
        del self.added[name]


@lru_cache(maxsize=4096)
def spelling(name: str) -> str:
    """A pattern for a placeholder in a clean text: the name's own words, with or without space where it is the same.

    A letter at its start or end must be a word's; signs need no border, so that `<a>,` and `<a><b>` hold placeholders.
    """
    words = WORD.findall(clean(name))
    if not words:
        return ""
    pattern = regex.escape(words[0])
    for before, word in pairwise(words):
        both_of_a_kind = regex.match(r"\p{L}\p{L}|[^\p{L}\p{N}]{2}", before[-1] + word[0])
        pattern += (r"\s+" if both_of_a_kind else r"\s*") + regex.escape(word)
    starts = r"(?<!\p{L})" if words[0][0].isalpha() else ""
    return starts + pattern + (r"(?!\p{L})" if words[-1][-1].isalpha() else "")


def spelled_in(name: str, text: str) -> bool:
    """Whether a placeholder stands in a clean text."""
    return spelling(name) != "" and regex.search(spelling(name), text) is not None


def clean(text: str) -> str:
    """Repair broken unicode, read HTML entities (twice: `&amp;amp;`), collapse white space, lower the case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def byte_letters() -> dict[int, str]:
    """A letter for each of the 256 bytes, GPT-2's way: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    # Printable bytes come first: the order gives the ids.
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
