"""The contents of a scene, and every true caption."""

import random
from dataclasses import dataclass

from sd.training.pretrain.dataset import with_article
from sd.training.pretrain.scenes.backgrounds import WHITE, Background
from sd.training.pretrain.scenes.vocabulary import (
    COUNT_WORDS,
    INVERSE,
    pair_is_held_out,
    relation_is_held_out,
    scene_names,
)

USUAL_WORDING = 0.5  # the fraction of captions in the first wording
STYLED = 0.25  # the fraction of captions with the style, where they may leave it out
RELATION_WORDS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("big", "large", "huge")}


@dataclass(frozen=True)
class Content:
    """The contents of a scene, before any layout.

    kind: single, recolored, counted, pair, placed, colored_pair. names: one or two of `scene_names`. colors: a word or
        None for each. count: of the one name. relation: of the first to the second. size: "small", "large" or "".
        is_usual: whether captions may leave the style out, because it is what they mean without one.
    """

    kind: str
    style: str
    names: tuple[str, ...]
    colors: tuple[str | None, ...] = (None,)
    count: int = 1
    relation: str = ""
    size: str = ""
    background: Background = WHITE
    is_usual: bool = True

    @property
    def is_held_out(self) -> bool:
        """Return whether training must not show this, because it contains a held-out combination."""
        names = [scene_names()[name] for name in self.names]
        if any(color in name.held_out_colors for name, color in zip(names, self.colors)):
            return True
        if self.count in names[0].held_out_counts:
            return True
        if len(names) == 2 and pair_is_held_out(*self.names):
            return True
        return bool(self.relation) and relation_is_held_out(self.names[0], self.relation, self.names[1])


def article(name: str, words: str) -> str:
    """Return the words with their article; a countable noun always has one, "a cactus" too."""
    if scene_names()[name].plural is None:
        return with_article(words)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def noun_phrases(content: Content) -> list[list[str]]:
    """Return the wordings of each object with its adjectives and article: [["a red apple"], ["a cat"]]."""
    phrases = []
    for name, color in zip(content.names, content.colors):
        noun = scene_names()[name].noun
        words = [f"{color} {noun}" if color else noun]
        if content.size:
            words = [f"{size} {word}" for size in SIZE_WORDS[content.size] for word in words]
        phrases.append([article(name, word) for word in words])
    return phrases


def body_wordings(content: Content) -> list[str]:
    """Return wordings of the objects and their arrangement, the usual one first."""
    if content.count > 1:
        plural = scene_names()[content.names[0]].plural
        return [f"{COUNT_WORDS[content.count]} {plural}", f"{content.count} {plural}"]
    phrases = noun_phrases(content)
    if len(phrases) == 1:
        noun = scene_names()[content.names[0]]
        color = f"{content.colors[0]} " if content.colors[0] else ""
        plain = [] if content.size else [f"{color}{noun.noun}"]
        return phrases[0] + plain + ([f"one {color}{noun.noun}"] if noun.plural and not content.size else [])
    (first,), (second,) = phrases
    if not content.relation:
        return [f"{first} and {second}", f"{first} next to {second}", f"{first} with {second}"]
    there = [f"{first} {words} {second}" for words in RELATION_WORDS[content.relation]]
    back = [f"{second} {words} {first}" for words in RELATION_WORDS[INVERSE[content.relation]]]
    return [there[0], back[0], *there[1:], *back[1:]]


def captions(content: Content, styled: bool) -> list[str]:
    """Return every wording with or without the style, the usual one first."""
    endings = [f" {words}" for words in content.background.wordings] or [""]
    plain = [body + ending for ending in endings for body in body_wordings(content)]
    if not styled:
        return plain
    return [f"{caption}, {content.style}" for caption in plain] + [f"{content.style} of {plain[0]}"]


def random_caption(content: Content, rng: random.Random) -> str:
    """Return one wording: the usual one in half the cases, sometimes with the style, always with an unusual one."""
    wordings = captions(content, not content.is_usual or rng.random() < STYLED)
    return wordings[0] if rng.random() < USUAL_WORDING else rng.choice(wordings)
