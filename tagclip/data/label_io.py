"""Reading and checking of label files, without silent conversions."""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from tagclip.data.image_io import opened
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["check_label", "look_up", "read_indices", "read_label", "unlabelled_remedy"]

# Pillow stretches 2-bit and 4-bit gray values to 0..255 by these factors.
_GRAY_FACTORS = {"L;2": 85, "L;4": 17}
# Values that often mean background or unlabelled.
_UNLABELLED = {0, 254, 255}


def read_label(path: str | Path) -> np.ndarray:
    """Read a label file losslessly: gray values or palette indices, never colours.

    Returns:
        (H, W) uint8, or int32 where the file has 16 or 32 bits. Class ids and ignore value of
        the dataset, unchecked (see `check_label`).

    Raises:
        DatasetError: the file is missing, damaged, has several channels or float values.
    """
    with opened(path, "label file") as image:
        tile = image.tile[0] if getattr(image, "tile", None) else None
        factor = _GRAY_FACTORS.get(tile[3] if tile and isinstance(tile[3], str) else "", 1)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise DatasetError(
                f"{path}: label must be single-channel with integer class ids; found "
                f"{image.mode}; run the dataset's prepare_* command or save the ids as gray PNG"
            )
        values = np.asarray(image)
    if values.dtype == np.uint8:
        return values // factor if factor > 1 else values
    return values.astype(np.uint8 if values.dtype == bool else np.int32)


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


def check_label(
    label: np.ndarray, path: str | Path, vocabulary: Vocabulary, image_size: tuple[int, int]
) -> None:
    """Refuse a label that does not belong to its image or its vocabulary.

    Args:
        label: (H, W) integers, raw values of the dataset.
        path: label file, for the message.
        vocabulary: the dataset's full class list.
        image_size: (height, width) of the image after its EXIF rotation.

    Raises:
        DatasetError: another size, or a value that is neither a class id nor the ignore label.
    """
    height, width = label.shape
    if (height, width) != tuple(image_size):
        is_swapped = (width, height) == tuple(image_size)
        raise DatasetError(
            f"{path}: label is {width}x{height} (width x height), its image is "
            f"{image_size[1]}x{image_size[0]}"
            + ("; rotate the label as the image's EXIF tag says" * is_swapped)
            + ("; pair each image with its own label" * (not is_swapped))
        )
    unknown = _unknown_values(vocabulary)
    # Bytes have few values: all of them are judged, then looked up.
    values = np.arange(256) if label.dtype == np.uint8 else label.astype(np.intp)
    bad = unknown[np.clip(values, -1, len(unknown) - 2) + 1]
    if label.dtype == np.uint8:
        bad = look_up(bad.view(np.uint8), label).view(bool)
    if bad.any():
        y, x = np.unravel_index(np.argmax(bad), bad.shape)
        ids = _format_ranges(entry.id for entry in vocabulary.classes)
        raise DatasetError(
            f"{path}: label {label[y, x]} at ({x},{y}), vocabulary {vocabulary.name} has {ids} "
            f"and ignore {vocabulary.ignore_label}; {_hint(label, bad, vocabulary)}"
        )


def look_up(table: np.ndarray, label: np.ndarray) -> np.ndarray:
    """``table[label]``, for bytes in a quarter of the time.

    Args:
        table: (n,) uint8 or int32.
        label: (H, W) integers from 0 to n - 1.

    Returns:
        (H, W) of the table's type.
    """
    if label.dtype != np.uint8:
        return table[label]
    whole = np.zeros(256, table.dtype)
    whole[: len(table)] = table[:256]
    return cv2.LUT(label, whole)


@lru_cache(maxsize=8)
def _unknown_values(vocabulary: Vocabulary) -> np.ndarray:
    """Flags of the label values -1, 0, 1, ...; the first and last stand for all outside."""
    return np.concatenate([[True], vocabulary.label_lut() < 0, [True]])


def _hint(label: np.ndarray, bad: np.ndarray, vocabulary: Vocabulary) -> str:
    values, counts = np.unique(label, return_counts=True)
    highest = max(entry.id for entry in vocabulary.classes)
    if remedy := unlabelled_remedy(set(np.unique(label[bad]).tolist())):
        return remedy
    if values[counts.argmax()] == 0 and (label[bad] == highest + 1).all():
        return (
            f"{len(values)} distinct values, 0 dominates: if 0 is background, run the dataset's "
            "prepare_* command (reduce_zero_label: 0 becomes ignore, the others move down by one)"
        )
    return "run the dataset's prepare_* command or name the right vocabulary"


def unlabelled_remedy(values: Set[int]) -> str:
    """What to do about the values outside a vocabulary if they may mean unlabelled; else ""."""
    if len(values) != 1 or not values <= _UNLABELLED:
        return ""
    (value,) = values
    return (
        f'if {value} means unlabelled, say "ignore_label": {value} in the vocabulary json, or give '
        "it a class there, such as background"
    )


def _format_ranges(ids: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1..3, 7"; at most six ranges."""
    ranges: list[list[int]] = []
    for value in sorted(ids):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    texts = [f"{low}..{high}" if high > low else f"{low}" for low, high in ranges]
    return ", ".join(texts[:6]) + (f", ... {texts[-1]}" if len(texts) > 6 else "")
