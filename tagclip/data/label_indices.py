"""From a label file to indices of a class list, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tagclip.data.label_io import check_label, read_label
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["read_indices"]


def read_indices(
    path: str | Path,
    vocabulary: Vocabulary,
    size: tuple[int, int],
    target: Vocabulary | None = None,
) -> np.ndarray:
    """Read a label file as indices of a class list.

    Args:
        path: label file.
        vocabulary: the dataset's full class list.
        size: (height, width) of its image.
        target: class list of the result, see `Vocabulary.label_lut`; None: ``vocabulary``.

    Returns:
        (H, W) int32; the ``ignore_index`` of that list where no class of it is.

    Raises:
        DatasetError: the file is missing or damaged, or its size or values do not fit.
    """
    raw = read_label(path)
    check_label(raw, path, vocabulary, size)
    return vocabulary.label_lut(target)[raw]
