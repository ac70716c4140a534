"""Boxes and ellipses of annotation tools as masks of the whole image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tagclip.data.formats.annotation import outside_error, polygons_mask
from tagclip.errors import DatasetError

__all__ = ["box_mask", "ellipse_mask"]


def box_mask(
    size: tuple[int, int], corners: Sequence[float], degrees: float = 0, pivot: int = 1
) -> Callable[[], np.ndarray]:
    """A mask of a box, filled as a polygon.

    Args:
        size: (height, width).
        corners: x0, y0, x1, y1 in pixels, before it is turned.
        degrees: turned clockwise.
        pivot: 1 turns around the centre, 0 around the first corner.
    """
    x0, y0, x1, y1 = map(float, corners)
    center = ((x0 + x1) / 2, (y0 + y1) / 2) if pivot else (x0, y0)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = []
    for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1)):
        x, y = x - center[0], y - center[1]
        points += [center[0] + x * cos - y * sin, center[1] + x * sin + y * cos]
    return polygons_mask(size, [points])


def ellipse_mask(
    size: tuple[int, int], center: Sequence[float], radii: Sequence[float], degrees: float = 0
) -> Callable[[], np.ndarray]:
    """A mask of the pixels whose middle lies in an ellipse.

    Args:
        size: (height, width).
        center: x, y in pixels.
        radii: along x and y, before it is turned.
        degrees: turned clockwise.

    Raises:
        DatasetError: a number is not finite, a radius not positive, or the ellipse lies outside the
            image as a whole. The message lacks the file.
    """
    numbers = [*map(float, center), *map(float, radii), float(degrees)]
    if not all(map(math.isfinite, numbers)) or min(numbers[2:4]) <= 0:
        raise DatasetError(
            f"found an ellipse of x, y, rx, ry {numbers[:4]}, expected finite numbers and radii "
            "above 0"
        )
    cx, cy, rx, ry, _ = numbers
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    width, height = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    low, high = (cx - width, cy - height), (cx + width, cy + height)
    if min(high) < 0 or low[0] > size[1] or low[1] > size[0]:
        raise outside_error("an ellipse", size, low, high)
    return partial(_ellipse, size, *numbers)


def _ellipse(
    size: tuple[int, int], cx: float, cy: float, rx: float, ry: float, degrees: float
) -> np.ndarray:
    y, x = np.ogrid[: size[0], : size[1]]
    x, y = x + 0.5 - cx, y + 0.5 - cy
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    with np.errstate(over="ignore"):
        return ((x * cos + y * sin) / rx) ** 2 + ((y * cos - x * sin) / ry) ** 2 <= 1
