"""From windows to labels, as model.json says.

The places and means of `tagclip.modeling.inference` again, with numpy alone: nothing here may need
torch. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tagclip.export.runtime.images import resize_plane

__all__ = ["label_image", "window_places"]


def window_places(height: int, width: int, windows: Mapping[str, Any]) -> list[tuple[slice, slice]]:
    """Lay windows over an image.

    Args:
        height, width: of the resized image in pixels.
        windows: ``size`` and ``stride``, (height, width) each, or None for the whole image: the
            entry of model.json.

    Returns:
        (rows, columns) of each window, which shrinks along a side that is longer than the image's.
    """
    sides = height, width
    size = [min(pair) for pair in zip(sides, windows["size"] or sides, strict=True)]
    axes = zip(sides, size, windows["stride"] or size, strict=True)
    tops, lefts = ([min(x, s - w) for x in range(0, s - w + step, step)] for s, w, step in axes)
    return [(slice(y, y + size[0]), slice(x, x + size[1])) for y in tops for x in lefts]


def label_image(
    pixels: np.ndarray,
    size: tuple[int, int],
    recipe: Mapping[str, Any],
    run: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Average the scores of all windows, resize them, take the best class.

    Args:
        pixels: (3, h, w) uint8, resized, channels as in ``recipe["channel_order"]``.
        size: (H, W) of the image itself in pixels.
        recipe: content of model.json.
        run: (1, 3, height, width) uint8 windows -> (1, K, height, width) float32 scores.

    Returns:
        (H, W) int32: the first best class, -1 where its score is below the threshold.
    """
    height, width = pixels.shape[1:]
    places = window_places(height, width, recipe["windows"])
    parts = [run(np.ascontiguousarray(pixels[None, :, y, x]))[0] for y, x in places]
    count = np.zeros((height, width), np.float32)
    for place in places:
        count[place] += 1
    best = np.full(size, -np.inf, np.float32)
    labels = np.zeros(size, np.int32)
    # Class by class: a plane stays in the processor's cache.
    for index, planes in enumerate(zip(*parts, strict=True)):
        mean = np.zeros((height, width), np.float32)
        for place, plane in zip(places, planes, strict=True):
            mean[place] += plane
        mean = resize_plane(np.divide(mean, count, out=mean), size)
        np.copyto(labels, index, where=mean > best)
        np.maximum(best, mean, out=best)
    labels[best < (recipe["background_threshold"] or -np.inf)] = -1
    return labels
