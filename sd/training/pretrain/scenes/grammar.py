"""The scene grammar: from a seed to the contents of a scene, its caption, and the position of each object.

A scene is determined by its seed, so nothing else need be stored. Training scenes contain no held-out combination;
held-out scenes, for evaluation, contain one each.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, replace

from sd.training.pretrain.scenes.backgrounds import WHITE, random_background
from sd.training.pretrain.scenes.cutouts import Cutouts
from sd.training.pretrain.scenes.layout import Placed, lay_out
from sd.training.pretrain.scenes.vocabulary import COUNT_WORDS, INVERSE, RELATIONS, scene_names
from sd.training.pretrain.scenes.wording import Content, random_caption

SHARES = {"single": 0.20, "recolored": 0.20, "counted": 0.15, "pair": 0.15, "placed": 0.12, "colored_pair": 0.18}
WITH_BACKGROUND = {"single": 0.5, "recolored": 0.25}  # the fraction that has one; for the other kinds:
WITH_BACKGROUND_ELSE = 0.15
NATURAL = 0.25  # the fraction of colors that are an object's own
# A caption without a style always means the first of these in which all of its objects exist: a caption that means
# many shapes at once is learned as their blurred mean. Most scenes have it, the others name theirs.
USUAL_STYLES = ("fluent 3d emoji", "fluent flat emoji", "fluent emoji", "noto emoji")
USUAL_STYLE = 0.8  # the fraction of scenes in their usual style
TRIES = 200


@dataclass(frozen=True)
class Scene:
    """A scene ready to be rendered. seed: of the randomness in rendering (details of the background)."""

    content: Content
    objects: tuple[Placed, ...]
    caption: str
    seed: int


class Grammar:
    """Scenes by seed, from the given cut-outs.

    held_out: False for scenes without held-out combinations, True for scenes with one each, None for any. As `single`
        scenes have no combination, with True they use the names and styles of `cutouts` as they are.
    shares: the fraction of each kind of scene. nouns: those to use, all of the vocabulary without them.
    """

    def __init__(
        self, cutouts: Cutouts, held_out: bool | None = False, shares: dict[str, float] | None = None,
        nouns: Collection[str] | None = None,
    ):  # fmt: skip
        self.cutouts, self.held_out, self.shares = cutouts, held_out, shares or SHARES
        known = scene_names()
        self.names = [name for name in known if name in cutouts.styles and (nouns is None or known[name].noun in nouns)]
        self.countable = [name for name in self.names if scene_names()[name].plural]

    def scene(self, seed: int) -> Scene:
        """Return the scene of this seed, always the same."""
        rng = random.Random(f"scene {seed}")
        return self.build(self.content(rng), rng, seed)

    def twins(self, seed: int) -> tuple[Scene, Scene]:
        """Return the scene of this seed and one that differs in a single respect: a hard negative for CLIP.

        Yuksekgonul et al. 2022, "When and why vision-language models behave like bags-of-words": without such negatives
        a contrastive model need not learn the order of words.
        """
        scene, rng = self.scene(seed), random.Random(f"twin {seed}")
        for _ in range(TRIES):
            changed = changed_content(scene.content, rng, self)
            if self.fits(changed) and changed != scene.content:
                return scene, self.build(changed, rng, seed)
        return scene, self.scene(seed + 1_000_000_007)

    def build(self, content: Content, rng: random.Random, seed: int) -> Scene:
        return Scene(content, lay_out(content, self.cutouts, rng), random_caption(content, rng), seed)

    def content(self, rng: random.Random) -> Content:
        """Return the contents of a scene. Raises ValueError where the cut-outs allow no scene of the kind."""
        kind = rng.choices(list(self.shares), list(self.shares.values()))[0]
        for _ in range(100 * TRIES):
            content = self.sample_content(kind, rng)
            if content is not None and self.fits(content):
                return content
        raise ValueError(f"the cut-outs allow no scene of the kind {kind}")

    def fits(self, content: Content) -> bool:
        """Return whether these contents are allowed and would be visible as described."""
        if self.held_out is not None and content.kind != "single" and content.is_held_out != self.held_out:
            return False
        if not self.held_out and content.is_held_out:
            return False
        hidden = content.background.hides
        for name, color in zip(content.names, content.colors):
            if (name, content.style) not in self.cutouts.cutouts:
                return False
            cutout = self.cutouts[name, content.style]
            if color is not None and color != cutout.natural and color not in cutout.colors:
                return False
            white_paper = content.background.kind == "white"
            if (color or (None if white_paper else cutout.natural)) in hidden:
                return False
        return True

    def sample_content(self, kind: str, rng: random.Random) -> Content | None:
        """Return random contents; None where they make no sense, so that the caller tries again."""
        names = tuple(rng.sample(self.countable if kind != "single" else self.names, 2))
        names = names[:1] if kind in ("single", "recolored", "counted") else names
        usual = usual_style(names, self.cutouts)
        style = usual if usual and rng.random() < USUAL_STYLE else rng.choice(self.cutouts.styles[names[0]])
        if any((name, style) not in self.cutouts.cutouts for name in names):
            return None
        colors: list[str | None] = [None] * len(names)
        if kind in ("recolored", "colored_pair"):
            colors = [self.sample_color(name, style, rng) for name in names]
            if None in colors:
                return None
        has_background = rng.random() < WITH_BACKGROUND.get(kind, WITH_BACKGROUND_ELSE)
        if "white" in colors and kind == "recolored":
            has_background = True
        return Content(
            kind,
            style,
            names,
            tuple(colors),
            count=rng.choice(list(COUNT_WORDS)) if kind == "counted" else 1,
            relation=rng.choice(RELATIONS) if kind == "placed" else "",
            size=rng.choices(("", "small", "large"), (8, 1, 1))[0] if kind in ("single", "recolored") else "",
            background=random_background(rng) if has_background else WHITE,
            is_usual=style == usual,
        )

    def sample_color(self, name: str, style: str, rng: random.Random) -> str | None:
        """Return a color word for this object: sometimes its own, otherwise one that it can have."""
        cutout = self.cutouts[name, style]
        noun = scene_names()[name].noun
        if cutout.natural and cutout.natural != noun and rng.random() < NATURAL:
            return cutout.natural
        colors = [color for color in cutout.colors if color != noun]
        return rng.choice(colors) if colors else None


def usual_style(names: Collection[str], cutouts: Cutouts) -> str | None:
    """Return the style that a caption without one means for these names; None where they have no usual one."""
    for style in USUAL_STYLES:
        if all((name, style) in cutouts.cutouts for name in names):
            return style
    return None


def changed_content(content: Content, rng: random.Random, grammar: Grammar) -> Content:
    """Return the contents with one change: the count, the relation, the order of colors, a color, or a name."""
    if content.kind == "counted":
        return replace(content, count=rng.choice([count for count in COUNT_WORDS if count != content.count]))
    if content.kind == "placed" and rng.random() < 0.7:
        return replace(content, relation=INVERSE[content.relation])
    if content.kind == "colored_pair" and rng.random() < 0.6:
        return replace(content, colors=content.colors[::-1])
    if content.kind in ("recolored", "colored_pair") and rng.random() < 0.7:
        color = grammar.sample_color(content.names[0], content.style, rng)
        return replace(content, colors=(color, *content.colors[1:]))
    if content.kind == "single" and content.background.kind != "white" and rng.random() < 0.5:
        return replace(content, background=random_background(rng))
    return replace(content, names=(*content.names[:-1], rng.choice(grammar.countable)))
