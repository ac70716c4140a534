"""Label maps and trusty maps as pictures; `tagclip.visualization.panels` sets them side by side.

Names of unseen classes carry a star, so that no picture depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache, lru_cache

import cv2
import numpy as np
from matplotlib import colormaps

from tagclip.structures.class_color import alike_colors
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.fonts import families
from tagclip.visualization.raster_text import line_of_text

__all__ = [
    "UNSEEN_MARK",
    "colorize_labels",
    "colorize_trusty",
    "draw_segments",
    "legend_names",
    "marked_names",
    "numbers",
]

UNSEEN_MARK = "\N{BLACK STAR}"
# Good for all kinds of colour vision, and in black and white.
_TRUSTY_COLORS = "cividis"
# Of diagonal lines: pixels between two, and their gray.
_HATCH_PERIOD, _HATCH = 8, 160
# Height of names in pixels on small pictures; on large ones it grows, as in detectron2.
_SMALLEST_FONT = 12
_TEXT_PAD = 2
# What a name hides of the picture behind it: all but a fifth.
_SHADE = 5
# Segments below this share of the picture get no name: it would hide them.
_NAMED_SHARE = 0.008


def marked_names(vocabulary: Vocabulary) -> list[str]:
    """K display names, unseen ones behind a star; no star while the partition is open."""
    seen = vocabulary.seen or (True,) * len(vocabulary)
    pairs = zip(vocabulary.names, seen, strict=True)
    return [name if flag else f"{UNSEEN_MARK} {name}" for name, flag in pairs]


# Compares all pairs of classes: once for all pictures, not for every frame of a video.
@lru_cache(maxsize=8)
def numbers(vocabulary: Vocabulary) -> Mapping[int, str]:
    """Index -> id, as a text, of the classes whose colour can be taken for that of another."""
    return {
        int(k): str(vocabulary.classes[k].id)
        for k in np.flatnonzero(alike_colors(vocabulary.colors))
    }


def legend_names(vocabulary: Vocabulary) -> list[str]:
    """K names of `marked_names`, behind a number where the colour alone says too little."""
    found = numbers(vocabulary)
    return [
        f"{found.get(k, '')} {name}".lstrip() for k, name in enumerate(marked_names(vocabulary))
    ]


def colorize_labels(labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Colour a label map.

    Args:
        labels: (H, W) integers, indices into the vocabulary.
        vocabulary: K classes with colours.

    Returns:
        (H, W, 3) uint8 RGB; pixels outside [0, K), such as ignored ones, are white with gray
        diagonals.
    """
    colors = vocabulary.colors
    known = (labels >= 0) & (labels < len(colors))
    picture = np.take(colors, np.where(known, labels, 0), axis=0)
    if not known.all():
        picture[~known] = np.where(_diagonals(labels.shape) < 2, _HATCH, 255)[~known, None]
    return picture


def colorize_trusty(trusty: np.ndarray) -> np.ndarray:
    """Colour a map of probabilities on the fixed scale 0 to 1: (H, W) -> (H, W, 3) uint8."""
    values = np.clip(np.asarray(trusty, dtype=np.float32), 0.0, 1.0)
    # 1 belongs to the last of the 256 steps.
    return np.take(_trusty_scale(), (values * 256).astype(np.int16), axis=0, mode="clip")


@cache
def _trusty_scale() -> np.ndarray:
    return colormaps[_TRUSTY_COLORS](np.arange(256), bytes=True)[:, :3].copy()


def draw_segments(
    image: np.ndarray,
    labels: np.ndarray,
    vocabulary: Vocabulary,
    alpha: float = 0.7,
    names: bool = True,
    hatched: np.ndarray | None = None,
) -> np.ndarray:
    """Lay a coloured label map over an image, with outlines and names inside the segments.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers; pixels outside [0, K) are hatched.
        vocabulary: K classes; names of unseen ones get a star.
        alpha: opacity of the colours, 0 to 1.
        names: whether to write names: once per class, into its largest segment. Others of a class
            whose colour is not enough get its number.
        hatched: (H, W) bool, pixels to hatch over their colour, such as unlabelled ones.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = cv2.addWeighted(image, 1 - alpha, colorize_labels(labels, vocabulary), alpha, 0)
    if hatched is not None:
        lines = _diagonals(labels.shape)
        picture[hatched & (lines < 2)] = _HATCH
        # On any colour one of the two can be seen.
        picture[hatched & (lines >= 2) & (lines < 4)] = 255
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture[edges] = 0
    if names:
        _write_names(picture, labels, vocabulary)
    return picture


def _diagonals(shape: tuple[int, int]) -> np.ndarray:
    """(H, W) places across diagonal stripes, from 0 to the period."""
    return np.add.outer(*map(np.arange, shape)) % _HATCH_PERIOD


def _write_names(picture: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary) -> None:
    font_size = max(_SMALLEST_FONT, labels.size**0.5 / 65)
    names, short = legend_names(vocabulary), numbers(vocabulary)
    # One look for all.
    families("".join(names))
    named: set[int] = set()
    taken: list[tuple[int, int, int, int]] = []
    for _, k, center in _segment_centers(labels, len(names), short):
        line = line_of_text(short[k] if k in named else names[k], font_size)
        named.add(k)
        size = (line.width + 2 * _TEXT_PAD, line.above + line.below + 2 * _TEXT_PAD)
        place = _free_place(center, size, picture.shape[1::-1], taken)
        if place is not None:
            taken.append(place)
            left, top, right, bottom = place
            box = picture[top:bottom, left:right]
            box //= _SHADE
            line.draw(picture, left + _TEXT_PAD, top + _TEXT_PAD + line.above, gray=255)


def _free_place(
    center: Sequence[int],
    size: Sequence[int],
    page: Sequence[int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of a box of (width, height) that touches no taken one.

    Around the centre if possible, else moved up or down as little as possible, inside the page
    of (width, height); None if there is no room. All in pixels.
    """
    left, start = (
        min(max(0, middle - side // 2), max(0, length - side))
        for middle, side, length in zip(center, size, page, strict=True)
    )
    beside = [other for other in taken if left < other[2] and other[0] < left + size[0]]
    # The nearest free place touches another name.
    tops = [top for other in beside for top in (other[1] - size[1], other[3])]
    for top in sorted([start, *tops], key=lambda top: (abs(top - start), top)):
        place = (left, top, left + size[0], top + size[1])
        is_inside = 0 <= top <= max(0, page[1] - size[1])
        if is_inside and not any(_overlap(place, other) for other in beside):
            return place
    return None


def _segment_centers(
    labels: np.ndarray, classes: int, repeated: Collection[int]
) -> list[tuple[int, int, tuple[int, int]]]:
    """(-area, class, innermost point) of segments, largest first.

    Of each class the largest one; of those ``repeated`` all.
    """
    centers, least = [], _NAMED_SHARE * labels.size
    values, counts = np.unique(labels, return_counts=True)
    for k in values[(counts >= least) & (values >= 0) & (values < classes)].tolist():
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == k).astype(np.uint8))
        areas = stats[:, cv2.CC_STAT_AREA]
        order = 1 + np.argsort(-areas[1:], kind="stable")
        for part in order if k in repeated else order[:1]:
            if areas[part] < least:
                break
            left, top, width, height = stats[part, : cv2.CC_STAT_AREA]
            segment = parts[top : top + height, left : left + width] == part
            depth = cv2.distanceTransform(np.pad(segment, 1).astype(np.uint8), cv2.DIST_L2, 3)
            # A long segment has many innermost points: take the one in their middle.
            inner = np.argwhere(depth >= 0.95 * depth.max()) - 1
            middle = np.square(inner - inner.mean(axis=0)).sum(axis=1).argmin()
            y, x = (inner[middle] + (top, left)).tolist()
            centers.append((-int(areas[part]), k, (x, y)))
    return sorted(centers)


def _overlap(a: Sequence[int], b: Sequence[int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
