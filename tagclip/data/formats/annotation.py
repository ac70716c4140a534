"""What annotation formats have in common: images with named segments, painted to an index map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pycocotools import mask as coco_mask

from tagclip.errors import DatasetError
from tagclip.utils.look_up import look_up
from tagclip.utils.text import did_you_mean

__all__ = [
    "MAX_COORDINATE",
    "AnnotatedImage",
    "Segment",
    "check_finite",
    "outside_error",
    "paint",
    "polygons_mask",
    "rle_mask",
]

# Pixels, beyond every image. pycocotools walks along edges outside the image, too, in 32 bits.
MAX_COORDINATE = 1e6


@dataclass(frozen=True)
class Segment:
    """One annotated thing or region of an image.

    Attributes:
        name: of its class.
        mask: makes its (H, W) bool pixels, when they are needed. It can be pickled: a
            `functools.partial` of a module's function, such as `polygons_mask` and `rle_mask`.
        order: painting order, the higher over the lower. 0 for all segments of a format that has
            none.
        is_ignored: whether its pixels are unlabelled: a crowd, "void".
    """

    name: str
    mask: Callable[[], np.ndarray]
    order: int = 0
    is_ignored: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what is annotated in it.

    Attributes:
        file: its path relative to the folder of the images, with "/" between.
        size: (height, width) in pixels.
        segments: in the order of the file.
    """

    file: str
    size: tuple[int, int]
    segments: tuple[Segment, ...]


def paint(
    image: AnnotatedImage, values: Mapping[str, int], ignore_label: int, unlabelled: int
) -> np.ndarray:
    """Paint all segments into one map.

    Where segments overlap, the higher `Segment.order` wins; of equal orders the smaller area, so
    that small things stay visible; of equal areas the later one.

    Args:
        image: height and width >= 1.
        values: class name -> label value, 0..65535.
        ignore_label: value of ignored segments, 0..65535.
        unlabelled: value of pixels without any segment, 0..65535.

    Returns:
        (H, W) uint8 map, or uint16 where a value needs it.

    Raises:
        DatasetError: a class is not in ``values``, or a mask has another size.
    """
    painted = [
        ignore_label if s.is_ignored else _value(s, values, image.file) for s in image.segments
    ]
    highest = max([*values.values(), ignore_label, unlabelled])
    # The last entry stands for no segment: index -1.
    table = np.array([*painted, unlabelled], np.uint8 if highest <= 255 else np.uint16)
    orders = np.array([s.order for s in image.segments] + [np.iinfo(np.int64).min])
    areas = np.zeros(len(orders), np.int64)
    owner = np.full(image.size, -1, np.int32)
    # One mask after the other: memory does not grow with the number of segments.
    for index, segment in enumerate(image.segments):
        mask = segment.mask()
        if mask.shape != image.size:
            raise DatasetError(
                f"{image.file}: found a mask of {segment.name!r} of {_size(mask.shape)} pixels, "
                f"expected {_size(image.size)}, as the image has; export the annotations again"
            )
        areas[index] = np.count_nonzero(mask)
        other = owner[mask]
        wins = (orders[index] > orders[other]) | (
            (orders[index] == orders[other]) & (areas[index] <= areas[other])
        )
        owner[mask] = np.where(wins, index, other)
    return look_up(table, owner)


def polygons_mask(
    size: tuple[int, int], polygons: Sequence[Sequence[float]]
) -> Callable[[], np.ndarray]:
    """A mask from polygons, filled by pycocotools' rule; what lies outside the image is cut off.

    Args:
        size: (height, width).
        polygons: each x0, y0, x1, y1, ... in pixels, at least three points; their union counts.

    Raises:
        DatasetError: a polygon is none, has a number that is not finite, or lies outside the image
            as a whole or far beyond it. The message lacks the file.
    """
    height, width = size
    for polygon in polygons:
        points = np.asarray(polygon, float)
        check_finite(points)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise DatasetError(
                f"found a polygon of {len(points)} numbers, expected three or more points x, y"
            )
        x, y = points[::2], points[1::2]
        is_outside = x.max() < 0 or y.max() < 0 or x.min() > width or y.min() > height
        if is_outside or np.abs(points).max() > MAX_COORDINATE:
            raise outside_error("a polygon", size, (x.min(), y.min()), (x.max(), y.max()))
    return partial(_fill, size, [list(map(float, p)) for p in polygons])


def outside_error(
    what: str, size: tuple[int, int], low: Sequence[float], high: Sequence[float]
) -> DatasetError:
    """The error of a shape that lies outside its image; the message lacks the file.

    Args:
        what: such as "a polygon".
        size: (height, width) of the image.
        low: the shape's smallest x and y.
        high: its largest.
    """
    return DatasetError(
        f"found {what} at x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}, outside the "
        f"{_size(size)} image; are these the images that were annotated?"
    )


def check_finite(coordinates: np.ndarray) -> None:
    """Refuse coordinates, of any shape, of which one is NaN or infinite.

    Raises:
        DatasetError: one is. The message lacks the file.
    """
    bad = coordinates[~np.isfinite(coordinates)]
    if bad.size:
        raise DatasetError(
            f"found the coordinate {bad[0]:g}, expected finite numbers; export the annotations "
            "again"
        )


def rle_mask(
    size: tuple[int, int], counts: str | bytes | Sequence[int]
) -> Callable[[], np.ndarray]:
    """A mask from COCO run lengths, which go down the columns and begin with zeros.

    Args:
        size: (height, width).
        counts: compressed, as pycocotools writes them, or the run lengths themselves.

    Raises:
        DatasetError: the runs do not add up to the size. The message lacks the file.
    """
    # pycocotools checks the sum of neither form, and fills what is missing with anything.
    runs = _unpacked(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts)
    is_damaged = runs.ndim != 1 or runs.dtype.kind not in "iu" or (runs < 0).any()
    if is_damaged or runs.sum(dtype=np.int64) != size[0] * size[1]:
        raise DatasetError(
            f"found run lengths of {0 if is_damaged else runs.sum()} pixels, expected "
            f"{_size(size)}; export the annotations again"
        )
    return partial(_decode, size, counts)


def _unpacked(text: str | bytes) -> np.ndarray:
    """Run lengths of a compressed text; [-1] if it is damaged.

    Each number is little-endian in characters of five bits, a sixth says that more follow; from
    the fourth on it is the difference to the one before the last.
    """
    code = text.encode("latin-1", "replace") if isinstance(text, str) else text
    digits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not len(digits) or ((digits < 0) | (digits > 63)).any() or digits[-1] & 32:
        return np.array([-1])
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        return np.array([-1])
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << 5 * places, starts)
    numbers -= np.where(digits[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _fill(size: tuple[int, int], polygons: list[list[float]]) -> np.ndarray:
    if not polygons:
        return np.zeros(size, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def _decode(size: tuple[int, int], counts: str | bytes | Sequence[int]) -> np.ndarray:
    rle = {"size": list(size), "counts": counts}
    if not isinstance(counts, (str, bytes)):
        rle = coco_mask.frPyObjects({"size": list(size), "counts": list(map(int, counts))}, *size)
    return coco_mask.decode(rle).astype(bool)


def _value(segment: Segment, values: Mapping[str, int], file: str) -> int:
    if segment.name not in values:
        hint = did_you_mean(segment.name, values) or f", expected one of {', '.join(values)}"
        raise DatasetError(f"{file}: found the class {segment.name!r}{hint}")
    return values[segment.name]


def _size(size: Sequence[int]) -> str:
    return "x".join(str(side) for side in size[::-1])
