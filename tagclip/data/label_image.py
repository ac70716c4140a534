"""Label files as they should be: one number per pixel, with the colours of the classes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from tagclip.structures.class_color import RGB
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.look_up import look_up

__all__ = ["index_image", "index_png", "label_image", "label_png", "value_colors"]

# Within a tenth as small as by 6, which is usual, in half the time.
_LEVEL = 4


def index_image(values: np.ndarray, colors: Mapping[int, RGB]) -> Image.Image:
    """Image whose pixels are label values.

    Args:
        values: (H, W) integers, 0..65535.
        colors: what values are shown in; others are white.

    Returns:
        8-bit palette image; 16-bit gray if a value of either is above 255.
    """
    if max(values.max(), *colors, 0) > 255:
        return Image.fromarray(values.astype(np.uint16))
    # All 256: Pillow would write fewer bits per pixel for a short palette.
    palette = np.full((256, 3), 255, np.uint8)
    for value, color in colors.items():
        palette[value] = color
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(palette.tobytes())
    return image


def index_png(values: np.ndarray, colors: Mapping[int, RGB]) -> bytes:
    """Content of a file with that image (see `index_image`)."""
    file = io.BytesIO()
    index_image(values, colors).save(file, "PNG", compress_level=_LEVEL)
    return file.getvalue()


def label_image(labels: np.ndarray, vocabulary: Vocabulary) -> Image.Image:
    """Label map as label files are: ids of the classes, the ignore label where there is none.

    Args:
        labels: (H, W) integers, indices into the vocabulary, -1 for no class.
        vocabulary: K classes; with names alone, ids are 0 to K-1 in their order.
    """
    colors = value_colors(vocabulary)
    return index_image(look_up(np.array(list(colors)), labels), colors)


def label_png(labels: np.ndarray, vocabulary: Vocabulary) -> bytes:
    """Content of a file with that image (see `label_image`)."""
    colors = value_colors(vocabulary)
    return index_png(look_up(np.array(list(colors)), labels), colors)


def value_colors(vocabulary: Vocabulary) -> dict[int, RGB]:
    """Colour of the id of each class, in their order, and last of the ignore label.

    That is the first of the ignored colours, or else one that no class has, white if it can be.
    """
    colors = list(map(tuple, vocabulary.colors.tolist()))
    grays = ((level,) * 3 for level in (255, 0, 128, *range(256)))
    none = next(color for color in (*vocabulary.ignore_colors, *grays) if color not in colors)
    ids = [entry.id for entry in vocabulary.classes]
    return dict(zip([*ids, vocabulary.ignore_label], [*colors, none], strict=True))
