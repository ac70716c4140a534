"""Masks of any kind, or annotations, made into label files of class ids, one file at a time."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tagclip.data.formats.annotation import AnnotatedImage, paint
from tagclip.data.image_io import image_size
from tagclip.data.index_png import index_png
from tagclip.data.label_colors import ColorTable
from tagclip.data.raster import Raster, read_raster
from tagclip.errors import DatasetError
from tagclip.utils.files import write_atomic

__all__ = ["Conversion", "Converted", "MaskFile", "Painting", "count_mask", "write_label"]

RGB = tuple[int, int, int]
# Colour or value; "transparent" for what is not opaque.
Pixel = RGB | int | str


class Converted(NamedTuple):
    """What became of one file.

    Attributes:
        output: the label file.
        is_new: whether it was written; False if it was there already, the same.
        unknown: pixels by colour or value without a meaning. With some, nothing was written,
            unless they are ignored.
    """

    output: Path
    is_new: bool
    unknown: Mapping[Pixel, int]


class MaskFile(NamedTuple):
    """A mask and the label file to make of it."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Conversion:
    """Makes a label file of a mask file; can be pickled.

    Attributes:
        colors: pairs of a colour and its label value.
        values: pairs of a value in mask files and its label value.
        kind: "colors", "ids", or "" to tell by each file: gray values are ids, unless only the
            colours explain them; colours are colours, unless all channels are one id; of a
            palette the reading counts that explains all pixels, and where both do and differ,
            the file is refused.
        threshold: if not None, gray values below it become ``values`` of 0, others that of 1.
        ignore_label: what unknown pixels become if `ignore_unknown`.
        palette: colour by label value, for the files.
        overwrite: write over other files that are there.
    """

    colors: tuple[tuple[RGB, int], ...]
    values: tuple[tuple[int, int], ...]
    kind: str
    threshold: int | None
    ignore_label: int
    ignore_unknown: bool
    palette: tuple[tuple[int, RGB], ...]
    overwrite: bool

    def __call__(self, task: MaskFile) -> Converted:
        """Convert one file.

        Raises:
            DatasetError: it cannot be read, or another file is in its place.
        """
        raster = read_raster(task.source)
        label, unknown = self.labels(raster, task.source)
        if unknown and not self.ignore_unknown:
            return Converted(task.output, False, unknown)
        content = index_png(label, dict(self.palette))
        return Converted(task.output, write_label(task.output, content, self.overwrite), unknown)

    def labels(self, raster: Raster, path: Path) -> tuple[np.ndarray, dict[Pixel, int]]:
        """Label values, and pixels by colour or value without one.

        Args:
            raster: of a mask file.
            path: the file, for messages.

        Returns:
            (H, W) integers, unknown pixels are `ignore_label`; and their counts.
        """
        if self.threshold is not None:
            brightness = raster.values if raster.values.ndim == 2 else raster.values[..., :3].max(2)
            if raster.palette is not None:
                brightness = raster.palette.max(1)[raster.values]
            _refuse_photo(brightness, self.threshold, path)
            return self._by_value((brightness >= self.threshold).astype(np.uint8))
        if raster.values.ndim == 3:
            pixels = _color_bytes(raster.values, path)
            found = None if self.kind else self._by_color(pixels)
            if found and not found[1]:
                return found
            # Ids in all channels, as cv2.merge writes them.
            is_gray = (pixels[..., :3] == pixels[..., :1]).all() and _is_opaque(pixels)
            return self._settled(pixels[..., 0] if is_gray else None, pixels, path)
        if self.kind == "ids" or not self.colors:
            return self._by_value(raster.values)
        if raster.palette is None:
            return self._of_grays(raster.values)
        table = np.zeros((max(256, len(raster.palette)), 3), np.uint8)
        table[: len(raster.palette)] = raster.palette
        return self._settled(raster.values, table[raster.values], path)

    def _settled(
        self, ids: np.ndarray | None, pixels: np.ndarray, path: Path
    ) -> tuple[np.ndarray, dict[Pixel, int]]:
        """Of pixels (H, W, 3 or 4) that may have ids (H, W) as well."""
        if self.kind == "ids" and ids is None:
            raise DatasetError(
                f"{path}: mask has colours, expected ids, as asked for; pass --labels colors"
            )
        if self.kind == "colors" or ids is None:
            return self._by_color(pixels)
        by_id = self._by_value(ids)
        if self.kind == "ids" or not self.colors:
            return by_id
        by_color = self._by_color(pixels)
        if by_id[1]:
            return min(by_color, by_id, key=lambda found: sum(found[1].values()))
        differ = by_id[0] != by_color[0]
        if not by_color[1] and differ.any():
            y, x = np.unravel_index(np.argmax(differ), differ.shape)
            classes = f"{by_id[0][y, x]} and {by_color[0][y, x]}"
            raise DatasetError(
                f"{path}: value {ids[y, x]} at ({x},{y}) and its colour "
                f"{pixels[y, x, :3].tolist()} are of two classes, with the ids {classes}; pass "
                "--labels ids or --labels colors, whichever is right"
            )
        return by_id

    def _of_grays(self, values: np.ndarray) -> tuple[np.ndarray, dict[Pixel, int]]:
        """Of (H, W) gray values: ids, unless only the colours explain all of them."""
        known = {v for v, _ in self.values} - {v for v, i in self.values if i == self.ignore_label}
        found = set(np.unique(values).tolist())
        grays = {color[0] for color, _ in self.colors if len(set(color)) == 1}
        is_color = found <= grays and not found <= known
        if values.dtype == np.uint8 and (is_color or self.kind == "colors"):
            return self._by_color(np.repeat(values[..., None], 3, axis=2))
        return self._by_value(values)

    def _by_value(self, values: np.ndarray) -> tuple[np.ndarray, dict[Pixel, int]]:
        known = dict(self.values)
        low, high = min(0, *known), max(255, *known)
        table = np.full(high - low + 2, -1, np.int32)
        table[[value - low for value in known]] = list(known.values())
        index = values
        if low or values.dtype != np.uint8:
            # Both ends of the range lead to the last entry, which stands for all outside.
            index = np.clip(values.astype(np.int64), low - 1, high + 1) - low
        label = table[index]
        return self._counted(label, label < 0, values)

    def _by_color(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[Pixel, int]]:
        if not self.colors:
            label = np.zeros(pixels.shape[:2], np.uint8)
            return self._counted(label, np.ones_like(label, bool), pixels)
        table = _color_table(self.colors)
        label = table.look_up(pixels[..., :3])
        bad = label == table.unknown
        if not _is_opaque(pixels):
            bad |= pixels[..., 3] < 255
        return self._counted(label, bad, pixels)

    def _counted(
        self, label: np.ndarray, bad: np.ndarray, pixels: np.ndarray
    ) -> tuple[np.ndarray, dict[Pixel, int]]:
        if not bad.any():
            return label, {}
        return np.where(bad, np.int32(self.ignore_label), label), _count(pixels[bad])


@dataclass(frozen=True)
class Painting:
    """Makes a label file of an annotated image; can be pickled.

    Attributes:
        values: label value by class name.
        ignore_label: value of ignored segments.
        unlabelled: value of pixels without a segment.
        images: folder of the images, whose sizes are then compared; None without it.
        palette, overwrite: as in `Conversion`.
    """

    values: tuple[tuple[str, int], ...]
    ignore_label: int
    unlabelled: int
    images: Path | None
    palette: tuple[tuple[int, RGB], ...]
    overwrite: bool

    def __call__(self, task: tuple[AnnotatedImage, Path]) -> Converted:
        """Paint one image (`tagclip.data.formats.annotation.paint`).

        Raises:
            DatasetError: a class, a mask or the image's size does not fit, or another file is in
                its place.
        """
        image, output = task
        if self.images and (size := image_size(self.images / image.file)) != image.size:
            raise DatasetError(
                f"{self.images / image.file}: image has {size[1]}x{size[0]} pixels, its "
                f"annotations are for {image.size[1]}x{image.size[0]}; take the images that were "
                "annotated"
            )
        label = paint(image, dict(self.values), self.ignore_label, self.unlabelled)
        content = index_png(label, dict(self.palette))
        return Converted(output, write_label(output, content, self.overwrite), {})


def write_label(path: Path, content: bytes, overwrite: bool) -> bool:
    """Write a label file, whole or not at all, unless it is there.

    Args:
        path: the file.
        content: a PNG.
        overwrite: write over a file with other pixels.

    Returns:
        Whether it was written: False if a file with the same pixels is there.

    Raises:
        DatasetError: a file with other pixels is there.
    """
    if path.exists():
        old = path.read_bytes()
        if old == content or _has_pixels(path, content):
            return False
        if not overwrite:
            raise DatasetError(
                f"{path}: found a file with other labels, expected none or the same; choose "
                "another --output, or pass --overwrite"
            )
    write_atomic(path, content)
    return True


def _has_pixels(path: Path, content: bytes) -> bool:
    try:
        old = read_raster(path).values
    except DatasetError:
        return False
    with Image.open(io.BytesIO(content)) as image:
        return np.array_equal(old, np.asarray(image))


def count_mask(path: Path) -> tuple[str, dict[Pixel, int]]:
    """What occurs in a mask file.

    Returns:
        "colors" or "ids", and pixels by colour or value. Of a palette its colours count.

    Raises:
        DatasetError: it cannot be read.
    """
    raster = read_raster(path)
    if raster.values.ndim == 3:
        return "colors", _count(
            _color_bytes(raster.values, path).reshape(-1, raster.values.shape[2])
        )
    counts = _count(raster.values.ravel())
    if raster.palette is None:
        return "ids", counts
    colors: Counter[Pixel] = Counter()
    for value, number in counts.items():
        color = raster.palette[value] if value < len(raster.palette) else (0, 0, 0)
        colors[tuple(map(int, color))] += number
    return "colors", dict(colors)


def _count(pixels: np.ndarray) -> dict[Pixel, int]:
    """Pixels by value of (N,), by colour of (N, 3 or 4); the most frequent first."""
    is_value = pixels.ndim == 1
    counts: dict[Pixel, int] = {}
    if not is_value and pixels.shape[1] == 4:
        opaque = pixels[:, 3] == 255
        if not opaque.all():
            counts["transparent"] = int((~opaque).sum())
            pixels = pixels[opaque]
    codes = pixels if is_value else pixels[:, :3].astype(np.int32) @ np.array([65536, 256, 1])
    # Labels come in runs: these are few, pixels are many.
    starts = np.flatnonzero(np.diff(codes, prepend=codes[:1] ^ 1) != 0)
    lengths = np.diff(starts, append=len(codes))
    values, index = np.unique(codes[starts], return_inverse=True)
    sums = np.bincount(index, lengths, len(values)).astype(np.int64)
    for code, number in zip(values.tolist(), sums.tolist(), strict=True):
        key = code if is_value else (code >> 16, code >> 8 & 255, code & 255)
        counts[key] = number
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _color_bytes(values: np.ndarray, path: Path) -> np.ndarray:
    """(H, W, C) uint8 of colours as stored."""
    if values.dtype == np.uint8:
        return values
    if (values % 257).any():
        raise DatasetError(
            f"{path}: found colors of 16 bits that are none of 8 bits; save the mask with 8 bits "
            "per channel, without interpolation"
        )
    return (values // 257).astype(np.uint8)


def _refuse_photo(brightness: np.ndarray, threshold: int, path: Path) -> None:
    """Compression spreads the two values of a mask near its edges only."""
    near = int(brightness.max()) // 128
    bright = brightness >= threshold
    pixels = 0
    for side in (brightness[~bright], brightness[bright]):
        if side.size:
            value = np.bincount(side).argmax()
            pixels += np.count_nonzero(np.abs(side.astype(np.int64) - value) <= near)
    if 3 * pixels < brightness.size:
        raise DatasetError(
            f"{path}: {1 - pixels / brightness.size:.0%} of the pixels are far from two values, as "
            "in a photo, expected a mask of two; move what is no mask to another folder"
        )


def _is_opaque(pixels: np.ndarray) -> bool:
    return pixels.shape[2] == 3 or bool((pixels[..., 3] == 255).all())


@lru_cache(maxsize=4)
def _color_table(colors: tuple[tuple[RGB, int], ...]) -> ColorTable:
    return ColorTable(*zip(*colors, strict=True))
