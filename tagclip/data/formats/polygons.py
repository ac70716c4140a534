"""A mask as polygons without holes, whose rasterising gives the mask again, pixel by pixel.

One polygon is one region of pixels that touch at a side or a corner. A hole joins the outline by a
cut of no width, there and back, from its leftmost point to the left; rasterisers fill by the
even-odd rule, so that it stays empty. A polygon may touch itself, but crosses itself nowhere.

Tools rasterise in one of two ways, and need the vertices accordingly:

* "corners": vertices are corners of pixels; a pixel is inside if its centre is. pycocotools and so
  CVAT, datumaro and Label Studio's converter. A single pixel is a square of side 1.
* "centers": vertices are border pixels, and these are painted, too. Pillow's ``polygon`` with an
  outline, so labelme's. A single pixel is its point three times.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["trace_polygons"]


def trace_polygons(mask: np.ndarray, vertices: str) -> list[np.ndarray]:
    """Return the regions of a mask, from top to bottom.

    Args:
        mask: (H, W) bool.
        vertices: "corners" or "centers".

    Returns:
        (N, 2) int arrays of x and y, N at least 3, not closed, without points on a straight line.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    part = mask[y : y + height, x : x + width].astype(np.uint8)
    is_corners = vertices == "corners"
    if is_corners:
        # Twice as large: border pixels on different sides of a pixel are different pixels.
        part = part.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [contour[:, 0] for contour in contours]
    if is_corners:
        rings = [(ring + 1) // 2 for ring in rings]
    holes: dict[int, list[np.ndarray]] = {k: [] for k in range(len(rings))}
    outer = []
    for number, (ring, (_, _, _, parent)) in enumerate(zip(rings, _rows(hierarchy), strict=True)):
        if parent < 0:
            outer.append(number)
        else:
            holes[parent].append(ring)
    found = [_straightened(_joined(rings[number], holes[number])) + (x, y) for number in outer]
    return sorted(found, key=lambda polygon: tuple(polygon[polygon[:, 1].argmin(), ::-1]))


def _rows(hierarchy: np.ndarray | None) -> list[list[int]]:
    return [] if hierarchy is None else hierarchy[0].tolist()


def _joined(outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """One ring of an outline and its holes.

    Args:
        outline: (N, 2), its points neighbours of each other.
        holes: the same of each.
    """
    if not holes:
        return outline
    # Each begins at its leftmost point; what is left of that belongs to one that begins before.
    holes = [np.roll(hole, -hole[:, 0].argmin(), axis=0) for hole in holes]
    rings = [outline, *sorted(holes, key=lambda hole: hole[0, 0])]
    numbers = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    points = np.concatenate(rings)
    starts = np.cumsum([0, *(len(ring) for ring in rings)])
    order = np.lexsort((numbers, points[:, 0], points[:, 1]))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    # The points where a hole begins, in the order of a row: before them is what they join.
    joined: dict[int, list[int]] = {}
    for number in range(1, len(rings)):
        joined.setdefault(int(order[place[starts[number]] - 1]), []).append(number)
    path: list[int] = []
    stack = [(0, int(starts[0]))]
    while stack:
        number, point = stack.pop()
        end = int(starts[number + 1])
        while point < end:
            path.append(point)
            if joined.get(point):
                hole = joined[point].pop()
                # Afterwards on from the same point.
                stack += [(number, point), (hole, int(starts[hole]))]
                break
            point += 1
        else:
            path += [int(starts[number])] * (number > 0)
    return points[path]


def _straightened(ring: np.ndarray) -> np.ndarray:
    """Leave out points that repeat the one before or lie on a straight line."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)] if len(ring) > 1 else ring
    steps = np.sign(np.roll(ring, -1, axis=0) - ring)
    ring = ring[(steps != np.roll(steps, 1, axis=0)).any(axis=1)] if len(ring) > 1 else ring
    return np.concatenate([ring, ring[[-1] * max(0, 3 - len(ring))]])
