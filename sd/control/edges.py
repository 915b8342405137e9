"""Canny's edges: thin white lines on black, computed as OpenCV computes them.

Canny 1986, "A Computational Approach to Edge Detection": gradients, the maxima across each edge, and two thresholds.
"""

import numpy as np

TAN_22, TAN_67 = 0.4142135623730950, 2.414213562373095  # bounds of the four directions


def canny(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns (H, W), uint8: 255 on edges, 0 elsewhere.

    pixels: (H, W, 3), uint8. low, high: thresholds of |dx| + |dy|. An edge is at least `low` everywhere and over `high`
    somewhere; the channel with the largest gradient counts.
    """
    low, high = min(low, high), max(low, high)
    dx, dy = sobel(pixels)  # (H, W) each
    size = np.abs(dx) + np.abs(dy)
    weak = (size > low) & thinned(size, dx, dy)
    return connect(weak, weak & (size > high)).astype(np.uint8) * 255


def sobel(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the derivatives (H, W), int32, of the channel of (H, W, C) in which their sum is the largest."""
    p = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = p[:, 2:] - p[:, :-2], p[2:] - p[:-2]
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    largest = (np.abs(dx) + np.abs(dy)).argmax(axis=2)[..., None]  # the first of equal ones
    return np.take_along_axis(dx, largest, 2)[..., 0], np.take_along_axis(dy, largest, 2)[..., 0]


def thinned(size: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Returns where a gradient is larger than its neighbors across the edge; of two equal ones the second loses."""
    height, width = size.shape
    p = np.pad(size, 1)

    def beside(down: int, across: int) -> np.ndarray:
        return p[1 + down : 1 + down + height, 1 + across : 1 + across + width]

    x, y = np.abs(dx), np.abs(dy)
    level = (size > beside(0, -1)) & (size >= beside(0, 1))
    upright = (size > beside(-1, 0)) & (size >= beside(1, 0))
    falling = (size > beside(-1, -1)) & (size > beside(1, 1))
    rising = (size > beside(-1, 1)) & (size > beside(1, -1))
    diagonal = np.where((dx < 0) != (dy < 0), rising, falling)
    return np.where(y < TAN_22 * x, level, np.where(y > TAN_67 * x, upright, diagonal))


def connect(weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Returns the weak points (H, W) that touch strong ones, over any number of weak points."""
    waiting = np.pad(weak & ~strong, 1).ravel()  # those that are not reached yet; the border is none
    reached = np.pad(strong, 1).ravel()
    row = weak.shape[1] + 2
    around = np.array([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1])
    front = np.flatnonzero(reached)
    while front.size:
        beside = (front[:, None] + around).ravel()
        front = np.unique(beside[waiting[beside]])
        waiting[front], reached[front] = False, True
    return reached.reshape(-1, row)[1:-1, 1:-1]
