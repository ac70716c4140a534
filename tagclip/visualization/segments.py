"""Label maps and trusty maps as pictures; `tagclip.visualization.panels` sets them side by side.

Names of unseen classes carry a star, so that no picture depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import cv2
import numpy as np
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps

from tagclip.structures.class_color import alike_colors
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.fonts import families

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
    hatch = np.where(_diagonals(labels.shape) < 2, _HATCH, 255).astype(np.uint8)
    return np.where(known[..., None], colors[np.where(known, labels, 0)], hatch[..., None])


def colorize_trusty(trusty: np.ndarray) -> np.ndarray:
    """Colour a map of probabilities on the fixed scale 0 to 1: (H, W) -> (H, W, 3) uint8."""
    values = np.clip(np.asarray(trusty, dtype=np.float32), 0.0, 1.0)
    return colormaps[_TRUSTY_COLORS](values, bytes=True)[..., :3]


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
    picture = image * (1 - alpha) + colorize_labels(labels, vocabulary) * alpha
    if hatched is not None:
        lines = _diagonals(labels.shape)
        picture[hatched & (lines < 2)] = _HATCH
        # On any colour one of the two can be seen.
        picture[hatched & (lines >= 2) & (lines < 4)] = 255
    edges = np.zeros(labels.shape, dtype=bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture[edges] = 0
    picture = np.rint(picture).astype(np.uint8)
    return _write_names(picture, labels, vocabulary) if names else picture


def _diagonals(shape: tuple[int, int]) -> np.ndarray:
    """(H, W) places across diagonal stripes, from 0 to the period."""
    y, x = np.indices(shape)
    return (x + y) % _HATCH_PERIOD


def _write_names(picture: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    visualizer = Visualizer(picture)
    renderer = visualizer.output.canvas.get_renderer()
    font_size = max(_SMALLEST_FONT, labels.size**0.5 / 65) * 72 / visualizer.output.dpi
    names, short = legend_names(vocabulary), numbers(vocabulary)
    # One look for all.
    families("".join(names))
    named: set[int] = set()
    taken: list[tuple[float, float, float, float]] = []
    for _, k, center in _segment_centers(labels, len(names), short):
        content = short[k] if k in named else names[k]
        named.add(k)
        visualizer.draw_text(content, center, font_size=font_size, color="w")
        text = visualizer.output.ax.texts[-1]
        text.set_parse_math(False)
        text.set_fontfamily(families(content))
        extent = text.get_window_extent(renderer)
        size = (extent.width + 2 * _TEXT_PAD, extent.height + 2 * _TEXT_PAD)
        place = _free_place(center, size, picture.shape[1::-1], taken)
        if place is None:
            text.remove()
        else:
            taken.append(place)
            text.set_position(((place[0] + place[2]) / 2, place[1] + _TEXT_PAD))
    return visualizer.output.get_image()


def _free_place(
    center: Sequence[float],
    size: Sequence[float],
    page: Sequence[int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float] | None:
    """(left, top, right, bottom) of a box of (width, height) that touches no taken one.

    Around the centre if possible, else moved up or down as little as possible, inside the page
    of (width, height); None if there is no room.
    """
    left = float(np.clip(center[0] - size[0] / 2, 0, max(0, page[0] - size[0])))
    for step in range(2 * page[1]):
        shift = (step + 1) // 2 * (-1) ** step
        top = float(np.clip(center[1] - size[1] / 2 + shift, 0, max(0, page[1] - size[1])))
        place = (left, top, left + size[0], top + size[1])
        if not any(_overlap(place, other) for other in taken):
            return place
    return None


def _segment_centers(
    labels: np.ndarray, classes: int, repeated: Collection[int]
) -> list[tuple[int, int, tuple[int, int]]]:
    """(-area, class, innermost point) of segments, largest first.

    Of each class the largest one; of those ``repeated`` all.
    """
    centers = []
    for k in (int(k) for k in np.unique(labels) if 0 <= k < classes):
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == k).astype(np.uint8))
        areas = stats[:, cv2.CC_STAT_AREA]
        order = 1 + np.argsort(-areas[1:], kind="stable")
        for part in order if k in repeated else order[:1]:
            if areas[part] < _NAMED_SHARE * labels.size:
                break
            inside = np.pad(parts == part, 1).astype(np.uint8)
            depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
            # A long segment has many innermost points: take the one in their middle.
            inner = np.argwhere(depth >= 0.95 * depth.max()) - 1
            middle = np.square(inner - inner.mean(axis=0)).sum(axis=1).argmin()
            y, x = map(int, inner[middle])
            centers.append((-int(areas[part]), k, (x, y)))
    return sorted(centers)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
