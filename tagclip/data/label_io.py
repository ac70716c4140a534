"""Reading and checking of label files, without silent conversions."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from tagclip.data.image_io import image_size, stored_size
from tagclip.data.label_colors import (
    ColorTable,
    color_bytes,
    color_table,
    equal_channels,
    is_gray,
    judge_colors,
    palette_table,
)
from tagclip.data.label_remedies import (
    background_remedy,
    is_one_too_many,
    is_smeared,
    mask_remedy,
    smeared_remedy,
    unlabelled_remedy,
    value_ranges,
)
from tagclip.data.raster import read_raster
from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.look_up import look_up

__all__ = ["LabelColorError", "check_label", "read_indices", "read_label"]

_ALL_COLORS = ', or, if all label files are colours, say "labels": "colors" in the vocabulary json'
_JPEG = b"\xff\xd8\xff"


class LabelColorError(DatasetError):
    """The colours of a label file say no classes, or others than its values."""


def read_label(path: str | Path, vocabulary: Vocabulary | None = None) -> np.ndarray:
    """Read a label file losslessly, as label values of its dataset.

    Gray values and palette indices are label values, whatever the depth (`read_raster`); so is a
    colour image whose channels are equal. With the colours of a vocabulary, colour images, palettes
    and gray files that only they explain are read by these. Where values and colours both could be
    meant and disagree, the file is refused (`judge_colors`), unless `Vocabulary.labels` says which
    it is: "ids" never looks at colours, "colors" always, also of gray files. Full alpha is dropped.

    Args:
        path: label file.
        vocabulary: of the dataset; None: files that need colours are refused.

    Returns:
        (H, W) uint8, int32 or, where they need it, int64. Label values of the dataset, unchecked
        (see `check_label`).

    Raises:
        DatasetError: the file is missing, damaged, holds fractions or unknown colours, is partly
            transparent, or, with a vocabulary, a JPEG, which changes values.
        VocabularyError: two classes have one colour, and a file needs it.
    """
    values, palette = read_raster(path)
    if vocabulary is not None:
        _refuse_jpeg(path)
    if values.ndim == 2 and (vocabulary is None or not _may_be_colors(values, palette, vocabulary)):
        return values
    rgb = _opaque(values, path) if values.ndim == 3 else None
    ids = values if rgb is None else equal_channels(rgb)
    if vocabulary is None or vocabulary.labels == "ids":
        return _only_ids(ids, path, vocabulary)
    return _by_colors(ids, rgb, palette, path, vocabulary)


def _may_be_colors(values: np.ndarray, palette: np.ndarray | None, vocabulary: Vocabulary) -> bool:
    """Whether the colours of a file with one value per pixel may count."""
    if vocabulary.labels:
        return vocabulary.labels == "colors"
    if not is_gray(palette):
        return any(entry.color for entry in vocabulary.classes)
    grays = _gray_colors(vocabulary) if values.dtype == np.uint8 else ()
    return any((values == gray).any() for gray in grays)


@lru_cache(maxsize=8)
def _gray_colors(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Gray values that mean something as colours, and as values nothing (see `judge_colors`)."""
    colors = [entry.color for entry in vocabulary.classes if entry.color]
    grays = {c[0] for c in (*colors, *vocabulary.ignore_colors) if len(set(c)) == 1}
    return tuple(grays - vocabulary.by_value.keys() - set(vocabulary.ignored))


def _refuse_jpeg(path: str | Path) -> None:
    with open(path, "rb") as file:
        if file.read(len(_JPEG)) != _JPEG:
            return
    raise DatasetError(
        f"{path}: label file is a JPEG, which changes values; write PNG files from the source, or, "
        "of two classes and not exactly, by tagclip labels convert --threshold 128"
    )


def _opaque(values: np.ndarray, path: str | Path) -> np.ndarray:
    """(H, W, 3) of a colour image."""
    if values.shape[2] == 4:
        clear = np.count_nonzero(values[..., 3] != np.iinfo(values.dtype).max)
        if clear:
            raise DatasetError(
                f"{path}: {clear} pixels of the label are transparent, expected full colours; "
                "paint them in the color of a class or in the ignore_color of the vocabulary json "
                "and save it without an alpha channel"
            )
    return values[..., :3]


def _only_ids(
    ids: np.ndarray | None, path: str | Path, vocabulary: Vocabulary | None
) -> np.ndarray:
    if ids is None:
        where = "expected label values" if vocabulary is None else "labels is 'ids'"
        raise LabelColorError(
            f"{path}: label file has colours, {where}; save the ids as gray PNG"
            + ("" if vocabulary is None else _ALL_COLORS)
        )
    return ids


def _by_colors(
    ids: np.ndarray | None,
    rgb: np.ndarray | None,
    palette: np.ndarray | None,
    path: str | Path,
    vocabulary: Vocabulary,
) -> np.ndarray:
    """Label values by ids (H, W), or by the colours rgb (H, W, 3), or those of the palette."""
    table = _table(vocabulary, is_needed=ids is None)
    if table is None and ids is not None:
        return ids
    if table is None:
        raise LabelColorError(
            f"{path}: label file has colours, vocabulary {vocabulary.name} has none; give every "
            'class its "color": [red, green, blue] in the json (tagclip labels convert --scan '
            "lists those of the files)"
        )
    if rgb is not None:
        colors = color_bytes(rgb)
        if colors is not None:
            return _settled(ids, colors, path, vocabulary, table, False)
        if ids is not None and not vocabulary.labels:
            return ids
        raise LabelColorError(f"{path}: label file has colours of 16 bits; save it with 8 bits")
    if ids.dtype != np.uint8:
        raise LabelColorError(
            f"{path}: label file has one number of more than 8 bits per pixel, labels is 'colors'; "
            'save it as colours, or, if all label files hold ids, say "labels": "ids" in the '
            "vocabulary json"
        )
    # Of each index once. The refusal counts pixels.
    colors, gray = palette_table(palette), is_gray(palette)
    used = np.bincount(ids.reshape(-1), minlength=256).nonzero()[0].astype(np.uint8)
    try:
        values = _settled(used[None], colors[used][None], path, vocabulary, table, gray)
    except LabelColorError:
        return _settled(ids, colors[ids], path, vocabulary, table, gray)
    lut = np.zeros(256, values.dtype)
    lut[used] = values[0]
    return look_up(lut, ids)


def _table(vocabulary: Vocabulary, is_needed: bool) -> ColorTable | None:
    try:
        return color_table(vocabulary)
    except VocabularyError:
        if is_needed:
            raise
        return None


def _settled(
    ids: np.ndarray | None,
    rgb: np.ndarray,
    path: str | Path,
    vocabulary: Vocabulary,
    table: ColorTable,
    gray: bool,
) -> np.ndarray:
    """What both readings of the pixels say, or the one that fits."""
    values = table.look_up(rgb)
    known = values != table.unknown
    if values.dtype != np.uint8:
        values = values.astype(np.int32)
    if ids is None or vocabulary.labels == "colors":
        if not known.all():
            raise LabelColorError(f"{path}: {table.unknown_text(rgb)}")
        return values
    classes, ignored = vocabulary.label_lut(), vocabulary.ignore_label
    has_value = ~_unknown(ids, vocabulary)
    by_value = look_up(classes, np.where(has_value, ids, ignored))
    by_color = look_up(classes, np.where(known, values, ignored))
    counts, differ = judge_colors(
        by_value, has_value, by_color, known, vocabulary.ignore_index, gray
    )
    if differ.any():
        y, x = np.unravel_index(np.argmax(differ), differ.shape)
        raise LabelColorError(
            f"{path}: values and colours disagree: value {ids[y, x]} at ({x},{y}) is "
            f"{_meaning(ids[y, x], vocabulary)}, its colour {rgb[y, x].tolist()} is "
            f'{_meaning(values[y, x], vocabulary)}; say "labels": "ids" or "labels": "colors" in '
            "the vocabulary json"
        )
    return values if counts else ids


def _meaning(value: int, vocabulary: Vocabulary) -> str:
    entry = vocabulary.by_value.get(int(value))
    return repr(entry.name) if entry else "ignored"


def read_indices(
    path: str | Path,
    vocabulary: Vocabulary,
    size: tuple[int, int],
    target: Vocabulary | None = None,
    image: str | Path | None = None,
) -> np.ndarray:
    """Read a label file as indices of a class list.

    Args:
        path: label file.
        vocabulary: the dataset's full class list.
        size: (height, width) of its image.
        target: class list of the result, see `Vocabulary.label_lut`; None: ``vocabulary``.
        image: see `check_label`.

    Returns:
        (H, W) int32; the ``ignore_index`` of that list where no class of it is.

    Raises:
        DatasetError: the file is missing or damaged, or its size or values do not fit.
    """
    raw = read_label(path, vocabulary)
    check_label(raw, path, vocabulary, size, image)
    return look_up(vocabulary.label_lut(target), raw)


def check_label(
    label: np.ndarray,
    path: str | Path,
    vocabulary: Vocabulary,
    image_size: tuple[int, int],
    image: str | Path | None = None,
) -> None:
    """Refuse a label that does not belong to its image or its vocabulary.

    Args:
        label: (H, W) integers, raw values of the dataset.
        path: label file, for the message.
        vocabulary: the dataset's full class list.
        image_size: (height, width) of the image after its EXIF rotation.
        image: its file, whose EXIF tag the message names where it explains another size.

    Raises:
        DatasetError: another size, or a value that is neither a class id nor the ignore label.
    """
    height, width = label.shape
    if (height, width) != tuple(image_size):
        remedy = "pair each image with its own label"
        if (width, height) == tuple(image_size):
            remedy = "width and height are swapped: write the label again as its image is shown"
            if image is not None and _is_turned(image):
                remedy = "rotate the label as the image's EXIF tag says"
        raise DatasetError(
            f"{path}: label is {width}x{height} (width x height), its image is "
            f"{image_size[1]}x{image_size[0]}; {remedy}"
        )
    if _all_known(label, vocabulary):
        return
    bad = _unknown(label, vocabulary)
    if bad.any():
        y, x = np.unravel_index(np.argmax(bad), bad.shape)
        ids = value_ranges(vocabulary.by_value)
        raise DatasetError(
            f"{path}: label {label[y, x]} at ({x},{y}), vocabulary {vocabulary.name} has {ids} "
            f"and ignore {value_ranges(vocabulary.ignored)}; {_hint(label, bad, vocabulary)}"
        )


def _is_turned(image: str | Path) -> bool:
    """Whether an EXIF tag swaps the sides of an image that is not square."""
    try:
        return stored_size(image) != image_size(image)
    except DatasetError:
        # What matters here is its label.
        return False


def _all_known(label: np.ndarray, vocabulary: Vocabulary) -> bool:
    """Whether all values mean something; where it is quick to tell, else False."""
    run = _known_run(vocabulary)
    if label.dtype != np.uint8 or run is None or not label.size:
        return False
    first, last = run
    # Bytes wrap around, as the run does.
    return bool((label - np.uint8(first)).max() <= last)


@lru_cache(maxsize=8)
def _known_run(vocabulary: Vocabulary) -> tuple[int, int] | None:
    """First known byte, and steps to the last, if known ones are a run in which 0 follows 255, as
    of ids 0 to K - 1 with the ignore label 255."""
    known = ~_unknown(np.arange(256), vocabulary)
    starts = np.flatnonzero(known & ~np.roll(known, 1))
    return (int(starts[0]), int(known.sum()) - 1) if len(starts) == 1 else None


def _unknown(label: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """(H, W) bool: where a value means nothing."""
    unknown = _unknown_values(vocabulary)
    # Bytes have few values: all of them are judged, then looked up.
    values = np.arange(256) if label.dtype == np.uint8 else label.astype(np.intp)
    bad = look_up(unknown, np.clip(values, -1, len(unknown) - 2) + 1)
    return look_up(bad, label) if label.dtype == np.uint8 else bad


@lru_cache(maxsize=8)
def _unknown_values(vocabulary: Vocabulary) -> np.ndarray:
    """Flags of the label values -1, 0, 1, ...; the first and last stand for all outside."""
    return np.concatenate([[True], vocabulary.label_lut() < 0, [True]])


def _hint(label: np.ndarray, bad: np.ndarray, vocabulary: Vocabulary) -> str:
    values, counts = np.unique(label, return_counts=True)
    found, unknown = set(values.tolist()), set(np.unique(label[bad]).tolist())
    if is_smeared(found):
        return smeared_remedy()
    lowest = min(vocabulary.by_value)
    if values[counts.argmax()] == lowest == 0 and is_one_too_many(unknown, vocabulary):
        return (
            f"{len(values)} distinct values, 0 dominates: if 0 is background, "
            f"{background_remedy(0, vocabulary)}, or run the dataset's prepare_* command "
            "(reduce_zero_label: 0 becomes ignore, the others move down by one)"
        )
    mask, unlabelled = mask_remedy(found, vocabulary), unlabelled_remedy(unknown, vocabulary)
    if mask or unlabelled:
        return "; ".join(filter(None, (mask, unlabelled)))
    return "run the dataset's prepare_* command or name the right vocabulary"
