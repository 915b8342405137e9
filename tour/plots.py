"""Plots drawn with Pillow alone, so that the tour builds with the core's packages: `Axes`, heat maps, rows of images.

    axes = Axes((0, 1000), (0.01, 20), y_log=True, title="sigma(t)", x_label="t")
    axes.line(times, sigmas, BLUE, "the table")
    image = beside([axes.render(), heat_map(values)])

Everything is drawn at twice its size and reduced, which smooths the edges. Sizes are in pixels of the result.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sd.utils.image_grid import contact_sheet

Color = tuple[int, int, int]
Values = Sequence[float] | np.ndarray | Tensor

BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GRAY = (
    (31, 119, 180),
    (230, 120, 20),
    (44, 140, 60),
    (200, 40, 40),
    (130, 90, 180),
    (130, 85, 70),
    (120, 120, 120),
)
COLORS = (BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, GRAY)
BLACK, LIGHT, WHITE = (20, 20, 20), (225, 225, 225), (255, 255, 255)
SUPERSAMPLING = 2

# Control points of a map from dark blue over green to yellow (like viridis), and of one from blue over white to red.
SEQUENTIAL = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float)
DIVERGING = np.array([(33, 82, 170), (150, 185, 225), (248, 248, 248), (240, 165, 140), (178, 24, 43)], dtype=float)


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


class Axes:
    """A plot with two axes. The methods draw onto it, in the order of the calls; `render` returns the image.

    x_range, y_range: the values at the ends of the axes. x_log, y_log: logarithmic axes. ticks: the labeled values, as
    {value: text} or None for round ones. size: width and height of the whole plot in pixels.
    """

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        title: str = "",
        x_label: str = "",
        y_label: str = "",
        x_log: bool = False,
        y_log: bool = False,
        size: tuple[int, int] = (420, 300),
        x_ticks: dict[float, str] | None = None,
        y_ticks: dict[float, str] | None = None,
    ):
        self.ranges, self.logs, self.size = (x_range, y_range), (x_log, y_log), size
        self.legend: list[tuple[str, Color]] = []
        self.image = Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), WHITE)
        self.draw = ImageDraw.Draw(self.image)
        left, right, top, bottom = 58, 14, 30 if title else 12, 46 if x_label else 28
        scaled = (left, top, size[0] - right, size[1] - bottom)
        self.box = tuple(SUPERSAMPLING * side for side in scaled)  # left, top, right, bottom
        self.draw_ticks(x_ticks, y_ticks)
        middle = (self.box[0] + self.box[2]) / 2
        self.text((middle, 8 * SUPERSAMPLING), title, 14, anchor="mt")
        self.text((middle, (size[1] - 8) * SUPERSAMPLING), x_label, 13, anchor="mb")
        self.vertical_text(y_label)

    def draw_ticks(self, x_ticks: dict[float, str] | None, y_ticks: dict[float, str] | None) -> None:
        left, top, right, bottom = self.box
        for value, text in (ticks_of(self.ranges[0], self.logs[0]) if x_ticks is None else x_ticks).items():
            x = self.place(value, self.ranges[1][0])[0]
            self.draw.line([(x, top), (x, bottom)], LIGHT, SUPERSAMPLING)
            self.text((x, bottom + 5 * SUPERSAMPLING), text, 12, anchor="mt")
        for value, text in (ticks_of(self.ranges[1], self.logs[1]) if y_ticks is None else y_ticks).items():
            y = self.place(self.ranges[0][0], value)[1]
            self.draw.line([(left, y), (right, y)], LIGHT, SUPERSAMPLING)
            self.text((left - 5 * SUPERSAMPLING, y), text, 12, anchor="rm")
        self.draw.rectangle(self.box, outline=GRAY, width=SUPERSAMPLING)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel, at drawing size, of a point; points outside of the axes are moved to their edge."""
        fractions = [fraction(value, ends, log) for value, ends, log in zip((x, y), self.ranges, self.logs)]
        left, top, right, bottom = self.box
        return left + fractions[0] * (right - left), bottom - fractions[1] * (bottom - top)

    def text(self, at: tuple[float, float], text: str, size: int, color: Color = BLACK, anchor: str = "lm") -> None:
        self.draw.text(at, text, fill=color, font=font(size * SUPERSAMPLING), anchor=anchor)

    def vertical_text(self, text: str) -> None:
        if text:
            width, height = math.ceil(font(13 * SUPERSAMPLING).getlength(text)), 18 * SUPERSAMPLING
            label = Image.new("RGB", (width, height), WHITE)
            ImageDraw.Draw(label).text((0, height / 2), text, BLACK, font(13 * SUPERSAMPLING), anchor="lm")
            middle = (self.box[1] + self.box[3] - width) // 2
            self.image.paste(label.rotate(90, expand=True), (2, max(0, middle)))

    def line(self, xs: Values, ys: Values, color: Color = BLUE, label: str = "", width: float = 2) -> "Axes":
        """Draw a line through points, with `label` in the legend."""
        points = [self.place(float(x), float(y)) for x, y in zip(xs, ys)]
        self.draw.line(points, color, round(width * SUPERSAMPLING), joint="curve")
        return self.with_legend(label, color)

    def points(
        self,
        xs: Values,
        ys: Values,
        color: Color = BLUE,
        label: str = "",
        texts: Sequence[str] = (),
        radius: float = 3.5,
    ) -> "Axes":
        """Draw dots, each with a text to its right if `texts` are given."""
        r = radius * SUPERSAMPLING
        for i, (x, y) in enumerate(zip(xs, ys)):
            across, down = self.place(float(x), float(y))
            self.draw.ellipse((across - r, down - r, across + r, down + r), fill=color)
            if i < len(texts):
                self.text((across + r + 3, down), texts[i], 12, color)
        return self.with_legend(label, color)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], color: Color = BLUE, label: str = ""
    ) -> "Axes":
        """Draw an arrow between two points."""
        (x, y), (to_x, to_y) = self.place(*start), self.place(*end)
        self.draw.line([(x, y), (to_x, to_y)], color, 2 * SUPERSAMPLING)
        angle, tip = math.atan2(to_y - y, to_x - x), 8 * SUPERSAMPLING
        sides = [(to_x - tip * math.cos(angle + turn), to_y - tip * math.sin(angle + turn)) for turn in (0.4, -0.4)]
        self.draw.polygon([(to_x, to_y), *sides], fill=color)
        return self.with_legend(label, color)

    def bars(self, edges: Values, heights: Values, color: Color = BLUE, label: str = "") -> "Axes":
        """Draw the outline of a histogram: heights[i] between edges[i] and edges[i + 1]."""
        xs = [float(edge) for edge in edges for _ in range(2)]
        ys = [self.ranges[1][0], *(float(height) for height in heights for _ in range(2)), self.ranges[1][0]]
        return self.line(xs, ys, color, label)

    def with_legend(self, label: str, color: Color) -> "Axes":
        if label:
            self.legend.append((label, color))
        return self

    def render(self, legend: str = "top right") -> Image.Image:
        """Return the plot. legend: its corner, such as "bottom left"."""
        if self.legend:
            line_height, length = 17 * SUPERSAMPLING, 16 * SUPERSAMPLING
            widest = max(font(12 * SUPERSAMPLING).getlength(text) for text, _ in self.legend)
            width, height = widest + length + 18 * SUPERSAMPLING, line_height * len(self.legend)
            gap = 6 * SUPERSAMPLING
            x = self.box[2] - width - gap if "right" in legend else self.box[0] + gap
            y = self.box[1] + gap if "top" in legend else self.box[3] - height - gap
            self.draw.rectangle((x, y, x + width, y + height), fill=WHITE, outline=LIGHT)
            for i, (text, color) in enumerate(self.legend):
                middle = y + (i + 0.5) * line_height
                self.draw.line([(x + 8, middle), (x + 8 + length, middle)], color, 3 * SUPERSAMPLING)
                self.text((x + 16 + length, middle), text, 12)
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


def fraction(value: float, ends: tuple[float, float], log: bool) -> float:
    """Return where a value lies between two ends, from 0 to 1, on a linear or a logarithmic axis."""
    if log:
        value, ends = math.log(max(value, 1e-300)), (math.log(ends[0]), math.log(ends[1]))
    return min(1.0, max(0.0, (value - ends[0]) / (ends[1] - ends[0])))


def ticks_of(ends: tuple[float, float], log: bool) -> dict[float, str]:
    """Return round values between two ends, four to eight of them, with their texts: powers of ten on a log axis."""
    low, high = min(ends), max(ends)
    if log:
        powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        return {10.0**power: f"{10.0**power:g}" for power in powers}
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if (high - low) / (step * part) <= 8)
    first = math.ceil(low / step - 1e-9)
    return {k * step: f"{k * step:g}" for k in range(first, math.floor(high / step + 1e-9) + 1)}


def histogram(values: Values, low: float, high: float, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return (edges, density): the shares of the values in equal bins, divided by the bins' width."""
    counts, edges = np.histogram(np.asarray(values, dtype=float).ravel(), bins, (low, high))
    return edges, counts / max(1, np.asarray(values).size) / (edges[1] - edges[0])


def colors_of(fractions: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Map fractions of 0 to 1, of any shape, to colors (..., 3), bytes, between equally spaced stops."""
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(fractions, places, stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def heat_map(
    values: Values | Tensor,
    low: float | None = None,
    high: float | None = None,
    side: int = 128,
    diverging: bool = False,
) -> Image.Image:
    """Return a matrix (h, w) in colors, its longer side near `side` pixels, with square cells.

    low, high: the values of the first and the last color; the least and the largest if None. diverging: blue, white,
    red, which suits values around 0 with low = -high.
    """
    matrix = np.asarray(values, dtype=float)
    low, high = (matrix.min() if low is None else low), (matrix.max() if high is None else high)
    fractions = (matrix - low) / max(high - low, 1e-12)
    image = Image.fromarray(colors_of(fractions.clip(0, 1), DIVERGING if diverging else SEQUENTIAL))
    factor = max(1, round(side / max(matrix.shape)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def color_bar(low: float, high: float, height: int = 128, diverging: bool = False, texts: int = 3) -> Image.Image:
    """Return the legend of a heat map: its colors from low, at the bottom, to high, with `texts` values."""
    bar = heat_map(np.linspace(1, 0, height)[:, None], 0, 1, height, diverging).resize((14, height))
    image = Image.new("RGB", (64, height + 12), WHITE)
    image.paste(bar, (4, 6))
    for i in range(texts):
        place = i / (texts - 1)
        at = (22, 6 + (1 - place) * (height - 1))
        ImageDraw.Draw(image).text(at, f"{low + place * (high - low):.2g}", BLACK, font(12), anchor="lm")
    return image


def overlay(image: Image.Image, values: Values | Tensor, low: float, high: float, opacity: float = 0.65) -> Image.Image:
    """Return an image with a matrix (h, w) over it as a smooth heat map."""
    heat = colors_of(((np.asarray(values, dtype=float) - low) / max(high - low, 1e-12)).clip(0, 1), SEQUENTIAL)
    return Image.blend(
        image.convert("RGB"), Image.fromarray(heat).resize(image.size, Image.Resampling.BICUBIC), opacity
    )


def image_rows(
    rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str], side: int = 96, notes: Sequence[str] = ()
) -> Image.Image:
    """Return rows of images with their names at the left, the columns' names above, and notes below.

    Images become side x side pixels; those with fewer pixels, such as matrices, keep sharp cells.
    """
    resized = [[resized_to(one, side) for one in row] for row in rows.values()]
    return contact_sheet(resized, list(rows), list(columns), list(notes) or None)


def resized_to(image: Image.Image, side: int) -> Image.Image:
    way = Image.Resampling.NEAREST if max(image.size) <= side // 2 else Image.Resampling.LANCZOS
    return image.resize((side, side), way)


def beside(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Return images in a row on white, centered vertically."""
    size = (sum(one.width for one in images) + gap * (len(images) - 1), max(one.height for one in images))
    sheet, left = Image.new("RGB", size, WHITE), 0
    for one in images:
        sheet.paste(one, (left, (size[1] - one.height) // 2))
        left += one.width + gap
    return sheet


def below(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Return images in a column on white, centered horizontally."""
    size = (max(one.width for one in images), sum(one.height for one in images) + gap * (len(images) - 1))
    sheet, top = Image.new("RGB", size, WHITE), 0
    for one in images:
        sheet.paste(one, ((size[0] - one.width) // 2, top))
        top += one.height + gap
    return sheet


def principal_plane(points: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Return (mean, directions): the mean (D,) and the `count` directions (D, count) of largest variance of (N, D).

    The sign of each direction makes its largest component positive, so that the plane is the same on every machine.
    """
    mean = points.mean(dim=0)
    directions = (points - mean).svd().V[:, :count]
    largest = directions.abs().argmax(dim=0)
    return mean, directions * directions.gather(0, largest[None]).sign()
