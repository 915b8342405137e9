"""The positions of a scene's objects: mostly the usual ones, sometimes any in which no two objects touch."""

import math
import random
from dataclasses import dataclass
from typing import Protocol

from sd.training.pretrain.emoji_dataset import SIZE
from sd.training.pretrain.scenes.cutouts import Cutout, Cutouts, scaled_size
from sd.training.pretrain.scenes.vocabulary import NO_FLIP
from sd.training.pretrain.scenes.wording import Content

# One large object in the middle, two side by side in the order of the caption, three in a triangle, four in a square.
# A model of single emoji knows the first already; colors, pairs and numbers come sooner where places vary little.
USUAL = 0.85  # the fraction of scenes with these positions
USUAL_SIDES = {1: (98, 118), 2: (50, 58), 3: (44, 52), 4: (44, 54)}  # pixels, of the longer side of each object
JITTER = 3  # pixels, of a center around its usual place
ROW, COLUMN = ((34, 64), (94, 64)), ((64, 34), (64, 94))
TRIANGLES = (((64, 34), (34, 94), (94, 94)), ((34, 34), (94, 34), (64, 94)))
SQUARE = ((34, 34), (94, 34), (34, 94), (94, 94))
SIDES = {"small": (28, 42), "": (58, 112), "large": (112, 122)}  # pixels, of the longer side of a single object
SIDES_BY_NUMBER = {2: (44, 60), 3: (38, 52), 4: (36, 50)}  # of each object among several
GAP, MARGIN = 3, 2  # minimum distance in pixels between objects and to the edge
TRIES = 200


class HasCenter(Protocol):
    """An object with a center, (x, y) in pixels: a placed or a detected one."""

    @property
    def center(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Placed:
    """One object of a scene. left, top, width, height: its box in pixels, after a rotation by `turn` degrees."""

    name: str
    style: str
    color: str | None  # the word of the recoloring; None for the original color
    left: int
    top: int
    width: int
    height: int
    side: int  # pixels, the longer side before the rotation
    flip: bool = False
    turn: float = 0.0

    @property
    def center(self) -> tuple[float, float]:
        return self.left + self.width / 2, self.top + self.height / 2


def lay_out(content: Content, cutouts: Cutouts, rng: random.Random) -> tuple[Placed, ...]:
    """Return a position for each object, so that no two touch and the relation holds."""
    number = max(content.count, len(content.names))
    if not content.size and rng.random() < USUAL:
        placed = usual_layout(content, cutouts, number, rng)
        if is_valid_layout(content, placed, loose=True):
            return tuple(placed)
    return any_layout(content, cutouts, number, rng)


def usual_layout(content: Content, cutouts: Cutouts, number: int, rng: random.Random) -> list[Placed]:
    """Return the objects upright at the usual places."""
    side, centers = rng.uniform(*USUAL_SIDES[number]), usual_centers(content.relation, number, rng)
    placed = []
    for name, color, center in zip(content.names * content.count, content.colors * content.count, centers):
        cutout = cutouts[name, content.style]
        longer = round(side * rng.uniform(0.96, 1.04))
        width, height = scaled_size((cutout.width, cutout.height), longer)
        left, top = (
            min(max(round(middle + rng.uniform(-JITTER, JITTER) - length / 2), MARGIN), SIZE - MARGIN - length)
            for middle, length in zip(center, (width, height))
        )
        flip = rng.random() < 0.5 and name not in NO_FLIP
        own = None if color == cutout.natural else color
        placed.append(Placed(name, content.style, own, left, top, width, height, longer, flip))
    return placed


def usual_centers(relation: str, number: int, rng: random.Random) -> tuple[tuple[int, int], ...]:
    """Return the centers, (x, y) in pixels, of one to four objects; of two with a relation, the first one's first."""
    if number == 1:
        return ((SIZE // 2, SIZE // 2),)
    if number == 2:
        pair = COLUMN if relation in ("above", "below") else ROW
        return pair[::-1] if relation in ("right", "below") else pair
    return rng.choice(TRIANGLES) if number == 3 else SQUARE


def any_layout(content: Content, cutouts: Cutouts, number: int, rng: random.Random) -> tuple[Placed, ...]:
    """Return the objects at random places, some of them turned a little. Raises ValueError where none is found."""
    names = content.names * content.count
    low, high = SIDES[content.size] if number == 1 else SIDES_BY_NUMBER[number]
    side = rng.uniform(low, high)
    for attempt in range(TRIES):
        placed: list[Placed] = []
        shrink = 0.995**attempt
        for name, color in zip(names, content.colors * content.count):
            cutout = cutouts[name, content.style]
            placed.append(place_object(cutout, color, round(side * shrink * rng.uniform(0.93, 1.07)), rng))
        if is_valid_layout(content, placed, loose=attempt > TRIES // 2):
            return tuple(placed)
    raise ValueError(f"no layout found for {content}")


def place_object(cutout: Cutout, color: str | None, side: int, rng: random.Random) -> Placed:
    """Return one object at a random position inside the image."""
    turn = rng.uniform(-10, 10) if rng.random() < 0.3 else 0.0
    flip = rng.random() < 0.5 and cutout.name not in NO_FLIP
    for _ in range(8):
        width, height = turned_size(*scaled_size((cutout.width, cutout.height), side), turn)
        if max(width, height) <= SIZE - 2 * MARGIN:
            break
        turn, side = 0.0, min(side, SIZE - 2 * MARGIN)
    left = rng.randint(MARGIN, SIZE - MARGIN - width)
    top = rng.randint(MARGIN, SIZE - MARGIN - height)
    color = None if color == cutout.natural else color
    return Placed(cutout.name, cutout.style, color, left, top, width, height, side, flip, turn)


def turned_size(width: int, height: int, turn: float) -> tuple[int, int]:
    """Return the box of a rotated rectangle in whole pixels."""
    angle = math.radians(abs(turn))
    cos, sin = math.cos(angle), math.sin(angle)
    if not turn:
        return width, height
    return math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos)


def is_valid_layout(content: Content, placed: list[Placed], loose: bool) -> bool:
    """Return whether no two objects touch and the relation, if any, is clear."""
    pairs: list[tuple[Placed, Placed]] = [(a, b) for i, a in enumerate(placed) for b in placed[:i]]
    if any(overlap(a, b) for a, b in pairs):
        return False
    if not content.relation:
        return True
    first, second = placed
    return relation_holds(content.relation, first, second, across=0.9 if loose else 0.55)


def overlap(a: Placed, b: Placed) -> bool:
    """Return whether two boxes are closer to each other than GAP."""
    apart_x = a.left >= b.left + b.width + GAP or b.left >= a.left + a.width + GAP
    apart_y = a.top >= b.top + b.height + GAP or b.top >= a.top + a.height + GAP
    return not (apart_x or apart_y)


def relation_holds(relation: str, first: HasCenter, second: HasCenter, across: float = 1.0) -> bool:
    """Return whether `first` is `relation` of `second`: its center lies in that direction, at most `across` times as
    far aside.
    """
    dx, dy = (a - b for a, b in zip(second.center, first.center))
    along, aside = {"left": (dx, dy), "right": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along > 0 and abs(aside) <= across * along
