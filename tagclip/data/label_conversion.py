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
from tagclip.data.image_io import image_size, stored_size
from tagclip.data.label_colors import (
    ColorTable,
    Pixel,
    color_bytes,
    count_pixels,
    equal_channels,
    is_gray,
    judge_colors,
    palette_table,
)
from tagclip.data.label_image import index_png
from tagclip.data.raster import Raster, TransparentLabelError, read_raster
from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.class_color import RGB
from tagclip.utils.files import write_atomic
from tagclip.utils.look_up import look_up

__all__ = [
    "Conversion",
    "Converted",
    "ImageToPaint",
    "MaskFile",
    "Painting",
    "Staging",
    "count_mask",
    "write_label",
]

_SIXTEEN = (
    "{}: found colors of 16 bits that are none of 8 bits; save the mask with 8 bits per channel, "
    "without interpolation"
)


class Converted(NamedTuple):
    """What became of one file.

    Attributes:
        output: the label file.
        is_new: whether it was written; False if it was there already, the same.
        unknown: pixels by colour or value without a meaning. With some, nothing was written,
            unless they are ignored.
        has_class: whether any pixel of the label file has a class.
        brightness: with a threshold the lowest and the highest gray value of the mask, else None.
    """

    output: Path
    is_new: bool
    unknown: Mapping[Pixel, int]
    has_class: bool
    brightness: tuple[int, int] | None = None


class MaskFile(NamedTuple):
    """A mask and the label file to make of it."""

    source: Path
    output: Path

    @property
    def name(self) -> str:
        """What it is made of."""
        return str(self.source)


class ImageToPaint(NamedTuple):
    """An annotated image and the label file to make of it."""

    image: AnnotatedImage
    output: Path

    @property
    def name(self) -> str:
        """What it is made of."""
        return self.image.file


class Staging(NamedTuple):
    """Where files wait until all of them are there.

    Attributes:
        output: folder of the files.
        folder: that holds them until then.
    """

    output: Path
    folder: Path

    def place(self, path: Path) -> Path:
        """Where a file of the output waits."""
        return self.folder / path.relative_to(self.output)


@dataclass(frozen=True)
class Conversion:
    """Makes a label file of a mask file; can be pickled.

    Attributes:
        colors: pairs of a colour and its label value. A colour of two values is refused where
            colours are needed.
        values: label value by value in mask files.
        kind: "colors", "ids", or "" to tell by each file, as `read_label` does (`judge_colors`).
        threshold: if not None, gray values below it become ``values`` of 0, others that of 1.
        ignore_label: what unknown pixels become if `ignore_unknown`.
        palette: colour by label value, for the files.
        overwrite: write over other files that are there.
        staging: where to write instead of the place that is compared; None: there.
    """

    colors: tuple[tuple[RGB, int], ...]
    values: Mapping[int, int]
    kind: str
    threshold: int | None
    ignore_label: int
    ignore_unknown: bool
    palette: Mapping[int, RGB]
    overwrite: bool
    staging: Staging | None = None

    def __call__(self, task: MaskFile) -> Converted:
        """Convert one file.

        Raises:
            DatasetError: it cannot be read, or another file is in its place.
        """
        raster = self._read(task.source)
        label, unknown = self.labels(raster, task.source)
        if unknown and not self.ignore_unknown:
            return Converted(task.output, False, unknown, False)
        content = index_png(label, self.palette)
        brightness = None
        if self.threshold is not None:
            gray = _brightness(raster)
            brightness = int(gray.min()), int(gray.max())
        is_new = write_label(task.output, content, self.overwrite, self.staging)
        has_class = bool((label != self.ignore_label).any())
        return Converted(task.output, is_new, unknown, has_class, brightness)

    def _read(self, path: Path) -> Raster:
        try:
            return read_raster(path)
        except TransparentLabelError as error:
            if self.threshold is None:
                raise
            # The ignore value would be a gray value above the threshold.
            raise DatasetError(
                f"{path}: found gray values that are transparent, expected a mask of two values; "
                "paint what is transparent in one of the two and save it without alpha, or save "
                "it in colours with alpha (RGBA), of which --unknown ignore ignores that"
            ) from error

    def labels(self, raster: Raster, path: Path) -> tuple[np.ndarray, dict[Pixel, int]]:
        """Label values, and pixels by colour or value without one.

        Args:
            raster: of a mask file.
            path: the file, for messages.

        Returns:
            (H, W) integers, unknown pixels are `ignore_label`; and their counts.
        """
        if self.threshold is not None:
            brightness = _brightness(raster)
            _refuse_photo(brightness, self.threshold, path)
            label, _ = self._by_value((brightness >= self.threshold).astype(np.uint8))
            if raster.values.ndim == 2 or _is_opaque(raster.values):
                return label, {}
            # What lies under it was cut out.
            clear = raster.values[..., 3] != np.iinfo(raster.values.dtype).max
            count = {"transparent": int(np.count_nonzero(clear))}
            return np.where(clear, np.int32(self.ignore_label), label), count
        ids, pixels = self._readings(raster, path)
        if ids is None or (self.kind == "colors" and pixels is not None):
            return self._counted(*self._by_color(pixels), pixels)
        by_value, no_value = self._by_value(ids)
        if self.kind == "ids" or not self.colors or pixels is None:
            return self._counted(by_value, no_value, ids)
        try:
            by_color, no_color = self._by_color(pixels)
        except VocabularyError:
            return self._counted(by_value, no_value, ids)
        gray = raster.values.ndim == 2 and is_gray(raster.palette)
        counts, differ = judge_colors(
            by_value, ~no_value, by_color, ~no_color, self.ignore_label, gray
        )
        if differ.any():
            y, x = np.unravel_index(np.argmax(differ), differ.shape)
            raise DatasetError(
                f"{path}: value {ids[y, x]} at ({x},{y}) and its colour "
                f"{pixels[y, x, :3].tolist()} are of two classes, with the label values "
                f"{by_value[y, x]} and {by_color[y, x]}; pass --labels ids or --labels colors, "
                "whichever is right"
            )
        if not counts and not gray:
            # Of two readings that both leave something unknown, the better one.
            counts = np.count_nonzero(no_color) < np.count_nonzero(no_value)
        if counts:
            return self._counted(by_color, no_color, pixels)
        return self._counted(by_value, no_value, ids)

    def _readings(self, raster: Raster, path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The pixels as values (H, W) and as colours (H, W, 3 or 4); None for what they are not."""
        values = raster.values
        if values.ndim == 2:
            has_colors = values.dtype == np.uint8 and self.colors and self.kind != "ids"
            if self.kind == "colors" and not has_colors:
                raise DatasetError(
                    f"{path}: mask has one number of more than 8 bits per pixel, expected colours, "
                    "as asked for; pass --labels ids"
                )
            return values, palette_table(raster.palette)[values] if has_colors else None
        pixels = color_bytes(values)
        # Ids in all channels, as cv2.merge writes them.
        ids = equal_channels(values) if _is_opaque(values) else None
        if ids is None and self.kind == "ids":
            raise DatasetError(
                f"{path}: mask has colours, expected ids, as asked for; pass --labels colors"
            )
        if pixels is None and (ids is None or self.kind == "colors"):
            raise DatasetError(_SIXTEEN.format(path))
        return ids, pixels

    def _by_value(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) labels of values, and bool: where a value has none."""
        known = self.values
        low, high = min(0, *known), max(255, *known)
        table = np.full(high - low + 2, -1, np.int32)
        table[[value - low for value in known]] = list(known.values())
        index = values
        if low or values.dtype != np.uint8:
            # Both ends of the range lead to the last entry, which stands for all outside.
            index = np.clip(values.astype(np.int64), low - 1, high + 1) - low
        label = look_up(table, index)
        return label, label < 0

    def _by_color(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of colours (H, W, 3 or 4); transparent ones have none."""
        if not self.colors:
            return np.zeros(pixels.shape[:2], np.uint8), np.ones(pixels.shape[:2], bool)
        table = _color_table(self.colors)
        label = table.look_up(pixels[..., :3])
        bad = label == table.unknown
        if not _is_opaque(pixels):
            bad |= pixels[..., 3] < 255
        return label, bad

    def _counted(
        self, label: np.ndarray, bad: np.ndarray, pixels: np.ndarray
    ) -> tuple[np.ndarray, dict[Pixel, int]]:
        if not bad.any():
            return label, {}
        return np.where(bad, np.int32(self.ignore_label), label), count_pixels(pixels[bad])


@dataclass(frozen=True)
class Painting:
    """Makes a label file of an annotated image; can be pickled.

    Attributes:
        values: label value by class name.
        ignore_label: value of ignored segments.
        unlabelled: value of pixels without a segment.
        images: folder of the images, whose sizes are then compared; None without it.
        palette, overwrite, staging: as in `Conversion`.
    """

    values: Mapping[str, int]
    ignore_label: int
    unlabelled: int
    images: Path | None
    palette: Mapping[int, RGB]
    overwrite: bool
    staging: Staging | None = None

    def __call__(self, task: ImageToPaint) -> Converted:
        """Paint one image (`tagclip.data.formats.annotation.paint`).

        Raises:
            DatasetError: a class, a mask or the image's size does not fit, or another file is in
                its place.
        """
        image, output = task
        if self.images:
            _refuse_size(self.images / image.file, image.size)
        label = paint(image, self.values, self.ignore_label, self.unlabelled)
        content = index_png(label, self.palette)
        is_new = write_label(output, content, self.overwrite, self.staging)
        return Converted(output, is_new, {}, bool((label != self.ignore_label).any()))


def write_label(
    path: Path, content: bytes, overwrite: bool, staging: Staging | None = None
) -> bool:
    """Write a label file, whole or not at all, unless it is there.

    Args:
        path: the file.
        content: a PNG.
        overwrite: write over a file with other pixels.
        staging: as in `Conversion`.

    Returns:
        Whether it was written: False if a file with the same pixels is there.

    Raises:
        DatasetError: a file with other pixels is there, or it cannot be written.
    """
    try:
        if path.exists():
            old = path.read_bytes()
            if old == content or _has_pixels(path, content):
                return False
            if not overwrite:
                raise DatasetError(
                    f"{path}: found a file with other labels, expected none or the same; choose "
                    "another --output, or pass --overwrite"
                )
        write_atomic(staging.place(path) if staging else path, content)
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another --output"
        ) from error
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
        pixels = color_bytes(raster.values)
        if pixels is None:
            raise DatasetError(_SIXTEEN.format(path))
        return "colors", count_pixels(pixels.reshape(-1, pixels.shape[2]))
    counts = count_pixels(raster.values.ravel())
    if raster.palette is None:
        return "ids", counts
    table, colors = palette_table(raster.palette).tolist(), Counter[Pixel]()
    for value, number in counts.items():
        colors[tuple(table[value])] += number
    return "colors", dict(colors)


def _refuse_size(path: Path, annotated: tuple[int, int]) -> None:
    """Refuse an image of another (height, width) than its annotations are for."""
    if (size := image_size(path)) == annotated:
        return
    remedy = "take the images that were annotated"
    if stored_size(path) == annotated:
        remedy = (
            "they are for the image as it is stored, which its EXIF orientation turns: take a copy "
            "without that tag (exiftool -Orientation= -o copies images), here and for training"
        )
    raise DatasetError(
        f"{path}: image has {size[1]}x{size[0]} pixels, its annotations are for "
        f"{annotated[1]}x{annotated[0]}; {remedy}"
    )


def _brightness(raster: Raster) -> np.ndarray:
    """(H, W) gray values, of colours the largest channel."""
    if raster.palette is not None:
        return palette_table(raster.palette).max(1)[raster.values]
    return raster.values if raster.values.ndim == 2 else raster.values[..., :3].max(2)


def _refuse_photo(brightness: np.ndarray, threshold: int, path: Path) -> None:
    """Compression spreads the two values of a mask near its edges only."""
    near = max(0, int(brightness.max())) // 128
    bright = brightness >= threshold
    pixels = 0
    for side in (brightness[~bright], brightness[bright]):
        if side.size:
            value = _commonest(side)
            pixels += np.count_nonzero((side >= value - near) & (side <= value + near))
    if 3 * pixels < brightness.size:
        raise DatasetError(
            f"{path}: {1 - pixels / brightness.size:.0%} of the pixels are far from two values, as "
            "in a photo, expected a mask of two; move what is no mask to another folder"
        )


def _commonest(values: np.ndarray) -> int:
    if values.dtype == np.uint8:
        return int(np.bincount(values).argmax())
    # Counting each number up to the largest would need memory for all of them, and none below 0.
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _is_opaque(pixels: np.ndarray) -> bool:
    return pixels.shape[2] == 3 or bool((pixels[..., 3] == np.iinfo(pixels.dtype).max).all())


@lru_cache(maxsize=4)
def _color_table(colors: tuple[tuple[RGB, int], ...]) -> ColorTable:
    try:
        return ColorTable(*zip(*colors, strict=True))
    except VocabularyError as error:
        raise VocabularyError(f"class list: {error}") from error
