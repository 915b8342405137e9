"""The agreement of two edge images: F1 with a tolerance in pixels.

The boundary F-measure of Martin, Fowlkes and Malik 2004, "Learning to Detect Natural Image Boundaries Using Local
Brightness, Color, and Texture Cues", section 4, without their one-to-one assignment of edge pixels: edges here are one
pixel wide already.
"""

import numpy as np

TOLERANCE = 2.0  # pixels


def edge_f1(found: np.ndarray, asked: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Return the F1 of edges that were found and edges that were asked for, 0 to 1.

    found, asked: (H, W); what is not 0 is an edge. Precision is the fraction of found edge pixels within `tolerance` of
    an asked one, recall that of the asked ones within `tolerance` of a found one. Without edges in both it is 1,
    without edges in one it is 0.
    """
    found, asked = found != 0, asked != 0
    if not found.any() or not asked.any():
        return float(found.any() == asked.any())
    precision = (found & dilate(asked, tolerance)).sum() / found.sum()
    recall = (asked & dilate(found, tolerance)).sum() / asked.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def dilate(points: np.ndarray, radius: float) -> np.ndarray:
    """Return (H, W) bool: all pixels whose Euclidean distance to one of `points`, (H, W) bool, is at most `radius`."""
    reach = int(radius)
    height, width = points.shape
    padded = np.pad(points, reach)
    near = np.zeros_like(points)
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            if down**2 + across**2 <= radius**2:
                near |= padded[reach + down : reach + down + height, reach + across : reach + across + width]
    return near
