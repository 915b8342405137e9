"""Procedural backgrounds, flat colors, gradients and five simple landscapes, and their wordings in captions."""

import random
from dataclasses import dataclass

import numpy as np

from sd.training.pretrain.scenes.colors import COLORS, color_rgb

FLAT = tuple(word for word in COLORS if word != "white")  # ten; a caption without a background means white
# Each landscape, the endings of captions, and the object colors that are hardly visible on it.
LANDSCAPES = {
    "grass": (("on the grass", "in a meadow"), ("green",)),
    "snow": (("in the snow", "on the snow"), ("white",)),
    "night": (("at night", "under a starry sky"), ("black", "blue", "purple")),
    "sea": (("in the sea", "on the sea"), ("blue",)),
    "desert": (("in the desert", "on the sand"), ("orange", "yellow", "brown")),
}


@dataclass(frozen=True)
class Background:
    """A background. kind: "white", "flat", "gradient" or one of LANDSCAPES. colors: one word for "flat", two for
    "gradient".
    """

    kind: str = "white"
    colors: tuple[str, ...] = ()

    @property
    def wordings(self) -> tuple[str, ...]:
        """Return the possible endings of a caption, the usual one first; empty for white."""
        if self.kind == "flat":
            words = f"{'an' if self.colors[0] == 'orange' else 'a'} {self.colors[0]} background"
            return (f"on {words}", f"in front of {words}")
        if self.kind == "gradient":
            return (f"on a gradient from {self.colors[0]} to {self.colors[1]}",)
        return LANDSCAPES[self.kind][0] if self.kind in LANDSCAPES else ()

    @property
    def hides(self) -> tuple[str, ...]:
        """Return the object colors that would hardly be visible."""
        if self.kind in LANDSCAPES:
            return LANDSCAPES[self.kind][1]
        return self.colors if self.colors else ("white",)


WHITE = Background()


def random_background(rng: random.Random) -> Background:
    """Return any background except white: flat colors as often as landscapes, and a gradient one time in six."""
    kind = rng.choices(("flat", "landscape", "gradient"), (5, 5, 2))[0]
    if kind == "landscape":
        return Background(rng.choice(list(LANDSCAPES)))
    words = [word for word in FLAT if kind == "flat" or word not in ("black", "gray", "brown")]
    return Background(kind, tuple(rng.sample(words, 1 if kind == "flat" else 2)))


def draw_background(background: Background, size: int, rng: random.Random) -> np.ndarray:
    """Return (size, size, 3) uint8. Colors vary a little around the typical ones; horizons and stars are random."""
    if background.kind == "white":
        return np.full((size, size, 3), 255, np.uint8)
    if background.kind == "flat":
        image = np.broadcast_to(vary_color(color_rgb(background.colors[0]), rng), (size, size, 3))
    elif background.kind == "gradient":
        top, bottom = (np.array(color_rgb(word), np.float32) for word in background.colors)
        image = blend(top, bottom, np.linspace(0, 1, size))
    else:
        image = landscape(background.kind, size, rng)
    return np.clip(np.asarray(image) + 0.5, 0, 255).astype(np.uint8)


def vary_color(rgb: tuple[float, ...], rng: random.Random, spread: float = 10) -> np.ndarray:
    """Return a color (3,) that is a little brighter or darker, float32."""
    return np.array(rgb, np.float32) + rng.uniform(-spread, spread)


def blend(top: np.ndarray, bottom: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) with W = H: rows from `top` to `bottom`, both (3,). share: (H,), 0 to 1."""
    rows = top + share[:, None] * (bottom - top)
    return np.repeat(rows[:, None], len(share), axis=1).astype(np.float32)


def landscape(kind: str, size: int, rng: random.Random) -> np.ndarray:
    """Return (size, size, 3) float32 in 0..255: a sky over a ground with a wavy horizon."""
    sky, ground = SKY_AND_GROUND[kind]
    down = np.linspace(0, 1, size, dtype=np.float32)
    image = blend(vary_color(sky[0], rng), vary_color(sky[1], rng), down)
    x = np.arange(size) / size
    height, wave, phase = rng.uniform(0.45, 0.62), rng.uniform(0.005, 0.04), rng.uniform(0, 6.28)
    if kind == "sea":
        wave = 0.006
    horizon = height + wave * np.sin(phase + 2 * np.pi * rng.uniform(0.6, 1.6) * x)
    below = down[:, None] > horizon
    soil = blend(vary_color(ground[0], rng), vary_color(ground[1], rng), np.clip((down - height) / (1 - height), 0, 1))
    image = np.where(below[..., None], soil, image)
    if kind == "night":
        draw_stars(image, rng, int(height * size))
    elif kind in ("grass", "sea"):
        draw_strokes(image, rng, int(height * size) + 4, kind)
    return image


SKY_AND_GROUND = {  # (top, bottom) of the sky and of the ground, sRGB
    "grass": (((120, 190, 245), (205, 232, 250)), ((120, 190, 80), (70, 145, 50))),
    "snow": (((165, 195, 225), (215, 228, 242)), ((248, 250, 255), (222, 232, 246))),
    "night": (((12, 14, 50), (45, 45, 105)), ((28, 34, 58), (16, 20, 40))),
    "sea": (((135, 200, 245), (215, 238, 250)), ((40, 125, 195), (20, 75, 150))),
    "desert": (((130, 195, 240), (240, 225, 195)), ((236, 200, 130), (212, 165, 92))),
}


def draw_stars(image: np.ndarray, rng: random.Random, rows: int) -> None:
    """Draw a dozen or two of stars of one to four pixels in the upper `rows`."""
    for _ in range(rng.randint(14, 24)):
        top, left, side = rng.randrange(rows), rng.randrange(image.shape[1]), rng.choice((1, 1, 2))
        image[top : top + side, left : left + side] = (255, 250, 215)


def draw_strokes(image: np.ndarray, rng: random.Random, first: int, kind: str) -> None:
    """Draw blades of grass (upright, darker) or wave crests (flat, lighter) below row `first`."""
    size = image.shape[0]
    for _ in range(rng.randint(25, 40)):
        top, left = rng.randrange(first, size), rng.randrange(size)
        if kind == "grass":
            image[top : top + rng.randint(3, 5), left] *= 0.82
        else:
            image[top, left : left + rng.randint(6, 14)] += 45
