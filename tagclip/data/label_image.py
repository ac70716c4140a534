"""Label files of predictions, as those of a dataset are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tagclip.structures.vocabulary import Vocabulary

__all__ = ["label_image"]


def label_image(labels: np.ndarray, vocabulary: Vocabulary) -> Image.Image:
    """Label map as label files are: ids of the classes, the ignore label where there is none.

    Args:
        labels: (H, W) integers, indices into the vocabulary, -1 for no class.
        vocabulary: K classes; with names alone, ids are 0 to K-1 in their order.

    Returns:
        8-bit palette image with the classes' colours, and for no class the first of the ignored
        colours or else one that no class has, white if it can be; 16-bit gray if an id or the
        ignore label is above 255.
    """
    values = np.array([*(entry.id for entry in vocabulary.classes), vocabulary.ignore_label])
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16)[labels])
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[values] = [*vocabulary.colors, _no_class_color(vocabulary)]
    image = Image.fromarray(values.astype(np.uint8)[labels])
    image.putpalette(palette.tobytes())
    return image


def _no_class_color(vocabulary: Vocabulary) -> tuple[int, int, int]:
    """A colour by which the pixels are not taken for those of a class."""
    taken = set(map(tuple, vocabulary.colors.tolist()))
    grays = ((level,) * 3 for level in (255, 0, 128, *range(256)))
    return next(color for color in (*vocabulary.ignore_colors, *grays) if color not in taken)
