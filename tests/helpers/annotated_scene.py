"""One small scene that every annotation tool is given: its regions as arrays and as outlines."""

from __future__ import annotations

import numpy as np

__all__ = [
    "BOX",
    "CAR",
    "ELLIPSE",
    "HEIGHT",
    "LINE",
    "SKY",
    "SKY_OUTLINE",
    "SPOT",
    "TREE",
    "WIDTH",
    "painted",
]

HEIGHT, WIDTH = 9, 12


def _region(*blocks: tuple[int, int, int, int]) -> np.ndarray:
    """(H, W) bool of blocks of rows a..b and columns c..d, both ends inside; one more removes."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for a, b, c, d in blocks:
        mask[a : b + 1, c : d + 1] ^= True
    return mask


# 24 pixels, a ring with a hole, a line of one pixel, and one more place of the tree's class.
TREE = _region((1, 4, 2, 7))
CAR = _region((0, 6, 4, 10), (2, 4, 6, 8))
LINE = _region((7, 7, 0, 11))
SPOT = _region((8, 8, 2, 3))
# Edges lie between pixels: from x 0 to 6 and y 0 to 4 are six columns and four rows.
SKY = _region((0, 3, 0, 5))
SKY_OUTLINE = [(0, 0), (6, 0), (6, 4), (0, 4)]
BOX = _region((5, 8, 9, 11))
# Around (3, 6) with the radii 3 and 2: pixels whose middles are inside.
ELLIPSE = np.array(
    [[((x - 2.5) / 3) ** 2 + ((y - 5.5) / 2) ** 2 <= 1 for x in range(12)] for y in range(9)]
)


def painted(*layers: tuple[int, np.ndarray]) -> np.ndarray:
    """(H, W) label map: the later layers over the earlier, 0 where none is."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, mask in layers:
        labels[mask] = value
    return labels
