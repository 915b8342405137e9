"""The names of scenes, and the combinations that are held out of training.

`sd/data/scene_names.tsv` lists, for each name, its noun, its plural, and its held-out colors and counts. Pairs of names
are too many for a list: a pair, or a pair with a relation, is held out if a hash of its words says so. Held-out names
and (name, style) pairs are in `sd/data/emoji_names.tsv`.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sd.utils.files import DATA

SCENE_NAMES = DATA / "scene_names.tsv"
HELD_OUT_PERCENT = 15  # of pairs, and of (pair, relation)
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left", "right", "above", "below")  # the first object is ... of the second
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
# The nouns of most prompts, and of most scenes: a model with few hours learns to compose with them first, while the
# others are already known as single emoji.
COMMON_NOUNS = frozenset(
    (
        "apple, balloon, banana, bear, bicycle, bird, book, butterfly, cactus, car, castle, cat, crown, dog, doughnut, "
        "elephant, fish, flower, frog, ghost, guitar, hamburger, heart, house, key, lemon, moon, mushroom, owl, "
        "penguin, pizza, rabbit, robot, rocket, snowman, star, strawberry, sun, tree, umbrella"
    ).split(", ")
)
NO_FLIP = {"alarm clock", "watch", "musical note"}  # mirrored, these would be wrong


@dataclass(frozen=True)
class SceneName:
    """One row of the list of names."""

    name: str  # in `sd/data/emoji_names.tsv`
    noun: str  # in captions: "apple" for "red apple", since scenes color it themselves
    plural: str | None  # None for what cannot be counted or shows several of it already
    held_out_colors: tuple[str, ...]
    held_out_counts: tuple[int, ...]


@cache
def scene_names(path: Path = SCENE_NAMES) -> dict[str, SceneName]:
    """Return the fixed list, by name."""
    names = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        name, noun, plural, colors, counts = line.split("\t")
        held_colors = () if colors == "-" else tuple(colors.split(", "))
        held_counts = () if counts == "-" else tuple(map(int, counts.split(", ")))
        names[name] = SceneName(name, noun, None if plural == "-" else plural, held_colors, held_counts)
    return names


def is_held_out_hash(*words: str) -> bool:
    """Return whether the SHA-256 of these words falls in the held-out HELD_OUT_PERCENT."""
    digest = hashlib.sha256("|".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def pair_is_held_out(first: str, second: str) -> bool:
    """Return whether these two names, in any order, are never in one training scene."""
    return is_held_out_hash("pair", *sorted((first, second)))


def relation_is_held_out(first: str, relation: str, second: str) -> bool:
    """Return whether training never shows `first` `relation` of `second`; "a left of b" is "b right of a"."""
    if relation in ("right", "below"):
        first, relation, second = second, INVERSE[relation], first
    return is_held_out_hash("relation", first, relation, second)
