"""Color words: measuring, naming and changing colors in OKLCH.

OKLab is a color space in which equal distances look about equally large; OKLCH is the same in polar coordinates:
lightness L, chroma C, hue h (Ottosson 2020, "A perceptual color space for image processing").
"""

import math
from dataclasses import dataclass

import numpy as np

TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                   [0.0883024619, 0.2817188376, 0.6299787005]], np.float32)  # fmt: skip
TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                   [0.0259040371, 0.7827717662, -0.8086757660]], np.float32)  # fmt: skip
FROM_LAB, FROM_LMS = np.linalg.inv(TO_LAB), np.linalg.inv(TO_LMS)

# The word for a color, and its typical (L, C, h in degrees).
COLORS = {
    "red": (0.58, 0.22, 27),
    "orange": (0.74, 0.17, 58),
    "yellow": (0.88, 0.17, 98),
    "green": (0.66, 0.19, 143),
    "blue": (0.56, 0.19, 258),
    "purple": (0.52, 0.21, 304),
    "pink": (0.77, 0.15, 352),
    "brown": (0.45, 0.08, 52),
    "black": (0.27, 0.0, 0),
    "gray": (0.65, 0.0, 0),
    "white": (0.95, 0.0, 0),
}
NEUTRAL = ("black", "gray", "white")
# Ranges of hue in degrees with a clear word; the gaps between them have none.
HUES = (("pink", 335, 372), ("red", 12, 42), ("orange", 48, 68), ("yellow", 82, 114), ("green", 120, 168),
        ("blue", 218, 278), ("purple", 286, 326), ("pink", 335, 360))  # fmt: skip


@dataclass(frozen=True)
class MainColor:
    """The main color of an object: its center in OKLCH, and the fraction of the opaque area in it."""

    lightness: float
    chroma: float
    hue: float  # degrees
    share: float  # 0 to 1, of the opaque area
    other: float  # 0 to 1, the fraction of clearly colored area with another hue


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert (..., 3) sRGB in 0..1 to (..., 3) OKLab, float32."""
    rgb = np.asarray(rgb, np.float32)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """Convert (..., 3) OKLab to (..., 3) sRGB, clipped to 0..1."""
    linear = np.clip((lab @ FROM_LAB.T.astype(np.float32)) ** 3 @ FROM_LMS.T.astype(np.float32), 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 1e-8) ** (1 / 2.4) - 0.055)


def color_rgb(word: str) -> tuple[int, int, int]:
    """Return the typical sRGB of a color word, 0..255."""
    lightness, chroma, hue = COLORS[word]
    angle = math.radians(hue)
    lab = np.array([lightness, chroma * math.cos(angle), chroma * math.sin(angle)], np.float32)
    red, green, blue = (round(255 * float(value)) for value in from_oklab(lab))
    return red, green, blue


def hue_distance(first: np.ndarray, second: float) -> np.ndarray:
    """Return the signed difference first - second in degrees, in [-180, 180)."""
    return (first - second + 180) % 360 - 180


def polar(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert OKLab (..., 3) to L, C and h in degrees, each (...)."""
    return lab[..., 0], np.hypot(lab[..., 1], lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360


def main_color(rgba: np.ndarray) -> MainColor | None:
    """Return the main color of a cut-out, (H, W, 4) uint8; None where nothing is opaque.

    The main hue is the peak of the histogram of hues, weighted by chroma. Where less than a third of the area is
    clearly colored, the main color is neutral, at the median lightness.
    """
    lab = to_oklab(rgba[rgba[..., 3] > 200][:, :3].astype(np.float32) / 255)
    if not len(lab):
        return None
    lightness, chroma, hue = polar(lab)
    colored = chroma > 0.05
    if colored.mean() < 1 / 3:
        plain = lightness[chroma < 0.05]
        middle = float(np.median(plain)) if len(plain) else float(np.median(lightness))
        share = float(((chroma < 0.05) & (abs(lightness - middle) < 0.22)).mean())
        return MainColor(middle, 0.0, 0.0, share, float(colored.mean()))
    histogram = np.bincount((hue[colored] // 5).astype(int) % 72, np.minimum(chroma[colored], 0.2), 72)
    smooth = sum((np.roll(histogram, k) * (4 - abs(k)) for k in range(-3, 4)), np.zeros(72))
    peak = 5 * int(smooth.argmax()) + 2.5
    near = colored & (abs(hue_distance(hue, peak)) < 32)
    # The circular median, so that shades at one side do not pull the center.
    center = (peak + float(np.median(hue_distance(hue[near], peak)))) % 360
    near = colored & (abs(hue_distance(hue, center)) < 32)
    return MainColor(
        float(np.median(lightness[near])), float(np.median(chroma[near])), center,
        float(near.mean()), float((colored & ~near).mean()),
    )  # fmt: skip


def color_word(color: MainColor) -> str | None:
    """Return the word for a main color, or None where it is ambiguous."""
    lightness, chroma, hue = color.lightness, color.chroma, color.hue
    if chroma < 0.04:
        if lightness < 0.4:
            return "black"
        if lightness > 0.88:
            return "white"
        return "gray" if 0.48 < lightness < 0.83 else None
    if 25 <= hue <= 88 and lightness < 0.6 and chroma < 0.15:
        return "brown" if lightness < 0.56 else None
    word = next((word for word, low, high in HUES if low <= hue <= high or low <= hue + 360 <= high), None)
    if word == "pink":
        return "pink" if lightness > 0.62 else None
    if word == "red" and lightness > 0.7:
        return "pink" if hue < 25 and lightness > 0.74 else None
    if word in ("orange", "yellow") and lightness < (0.6 if word == "orange" else 0.74):
        return None
    return word if chroma > 0.07 or word in ("blue", "green") else None


def smoothstep(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 below `low`, 1 above `high`, and a smooth transition between."""
    x = np.clip((values - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def recolor(rgba: np.ndarray, main: MainColor, word: str) -> np.ndarray:
    """Return the cut-out (H, W, 4) uint8 with its main color replaced by `word`; shading and all other colors stay.

    With hue alone, yellow becomes olive and orange becomes brown, so the center of the main color also moves to the
    typical lightness and chroma of the new one, and each shade keeps its distance from the center.
    """
    lab = to_oklab(rgba[..., :3].astype(np.float32) / 255)
    lightness, chroma, hue = polar(lab)
    goal, goal_chroma, goal_hue = COLORS[word]
    if main.chroma > 0.04:
        turn = hue_distance(hue, main.hue)
        weight = smoothstep(chroma, 0.02, 0.05) * (1 - smoothstep(abs(turn), 32, 48))
        new_chroma = goal_chroma * np.clip(chroma / main.chroma, 0, 1.3)
        new_hue = goal_hue + 0.3 * turn
    else:
        apart = abs(lightness - main.lightness)
        weight = (1 - smoothstep(chroma, 0.05, 0.08)) * (1 - smoothstep(apart, 0.25, 0.4))
        new_chroma = goal_chroma * (1 - 0.5 * np.clip(apart / 0.4, 0, 1))
        new_hue = np.full_like(lightness, goal_hue)
    contrast = 0.45 if word in NEUTRAL else 0.75
    new_lightness = np.clip(goal + contrast * (lightness - main.lightness), 0.08, 0.99)
    angle = np.radians(new_hue)
    new = np.stack([new_lightness, new_chroma * np.cos(angle), new_chroma * np.sin(angle)], -1)
    mixed = from_oklab((lab + weight[..., None] * (new - lab)).astype(np.float32))
    return np.concatenate([(255 * mixed + 0.5).astype(np.uint8), rgba[..., 3:]], -1)
