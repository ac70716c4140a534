"""COCO json: instances, stuff and panoptic (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tagclip.data.formats.annotation import AnnotatedImage, Segment, polygons_mask, rle_mask
from tagclip.data.formats.export_file import checked_size, flag, located, need, read_json
from tagclip.data.raster import read_raster
from tagclip.errors import DatasetError

__all__ = ["class_names", "read"]

_LOGGER = logging.getLogger(__name__)
# Painting order: a thing lies on a crowd, a crowd on stuff.
_STUFF, _CROWD, _THING = range(3)


def class_names(path: Path) -> tuple[str, ...]:
    """Names of the categories, in the order of the file, whatever their ids.

    Raises:
        DatasetError: the file is damaged.
    """
    return tuple(name for name, _ in _categories(read_json(path, "COCO"), path).values())


def read(path: Path, images: Path | None = None) -> Iterator[AnnotatedImage]:
    """Read the images of a json, also those without annotations.

    Crowds are ignored; they lie under the things that are annotated one by one, and stuff (a
    category with ``"isthing": 0``) under both. The pngs of a panoptic json are expected in the
    folder that is called as it is; that a png fits its segments is looked at with their masks.

    Args:
        path: the json.
        images: not needed.

    Raises:
        DatasetError: the file is damaged.
    """
    tree = read_json(path, "COCO")
    categories = _categories(tree, path)
    annotations: dict[int, list[tuple[str, Any]]] = {}
    for index, annotation in enumerate(need(tree, "annotations", list, str(path))):
        where = f"{path}, annotations[{index}]"
        annotations.setdefault(need(annotation, "image_id", int, where), []).append(
            (where, annotation)
        )
    rows = need(tree, "images", list, str(path))
    numbers: dict[int, int] = {}
    for index, row in enumerate(rows):
        where = f"{path}, images[{index}]"
        number = need(row, "id", int, where)
        if numbers.setdefault(number, index) != index:
            raise DatasetError(f"{where}: id {number} occurs twice; give each one of its own")
    lost = next((number for number in annotations if number not in numbers), None)
    if lost is not None:
        raise DatasetError(
            f"{annotations[lost][0][0]}: image_id is {lost}, expected the id of one of the "
            f"{len(rows)} images; export them again"
        )
    for index, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        where = f"{path}, images[{index}]"
        with located(where):
            size = checked_size(row.get("height"), row.get("width"))
        segments = [
            segment
            for place, annotation in annotations.get(number, ())
            for segment in _segments(annotation, size, categories, place, path)
        ]
        file = PurePosixPath(need(row, "file_name", str, where).replace("\\", "/")).as_posix()
        yield AnnotatedImage(file, size, tuple(segments))


def _categories(tree: dict[str, Any], path: Path) -> dict[int, tuple[str, int]]:
    """Name and painting order by id."""
    found: dict[int, tuple[str, int]] = {}
    for index, row in enumerate(need(tree, "categories", list, str(path))):
        where = f"{path}, categories[{index}]"
        number = need(row, "id", int, where)
        if number in found:
            raise DatasetError(f"{where}: id {number} occurs twice; give each one of its own")
        order = _THING if flag(row, "isthing", where, default=True) else _STUFF
        found[number] = (need(row, "name", str, where), order)
    return found


def _segments(
    annotation: dict[str, Any],
    size: tuple[int, int],
    categories: dict[int, tuple[str, int]],
    where: str,
    path: Path,
) -> Iterator[Segment]:
    if "segments_info" in annotation:
        png = path.with_suffix("") / need(annotation, "file_name", str, where)
        rows = need(annotation, "segments_info", list, where)
        ids = tuple(need(row, "id", int, f"{where}, segments_info") for row in rows)
        if not ids:
            # Without a segment none asks for its mask, which looks at the png.
            _panoptic_numbers(png, ids)
        for row, number in zip(rows, ids, strict=True):
            mask = partial(_panoptic_mask, png, ids, number)
            yield _segment(row, categories, mask, where)
        return
    with located(where):
        mask = _mask(annotation.get("segmentation"), size)
    yield _segment(annotation, categories, mask, where)


def _segment(
    row: dict[str, Any],
    categories: dict[int, tuple[str, int]],
    mask: Callable[[], np.ndarray],
    where: str,
) -> Segment:
    number, is_crowd = need(row, "category_id", int, where), flag(row, "iscrowd", where)
    if number not in categories:
        raise DatasetError(
            f"{where}: category_id is {number}, expected one of the {len(categories)} categories; "
            "export them again"
        )
    name, order = categories[number]
    return Segment(name, mask, _CROWD if is_crowd else order, is_crowd)


def _mask(segmentation: object, size: tuple[int, int]) -> Callable[[], np.ndarray]:
    # An empty list is what detection data sets have there.
    is_list = isinstance(segmentation, list) and len(segmentation) > 0
    if is_list and all(isinstance(polygon, list) for polygon in segmentation):
        return polygons_mask(size, segmentation)
    if isinstance(segmentation, dict):
        counts, own = segmentation.get("counts"), segmentation.get("size")
        if isinstance(own, list) and tuple(own) != size:
            raise DatasetError(
                f"found run lengths of {own[::-1]} pixels, expected {list(size[::-1])}, as the "
                "image has"
            )
        if isinstance(counts, (str, list)):
            return rle_mask(size, counts)
    raise DatasetError(
        "found no segmentation, expected polygons or run lengths; boxes alone are no masks"
    )


def _panoptic_mask(png: Path, ids: tuple[int, ...], number: int) -> np.ndarray:
    return _panoptic_numbers(png, ids) == number


@lru_cache(maxsize=1)
def _panoptic_numbers(png: Path, ids: tuple[int, ...]) -> np.ndarray:
    """(H, W) ids of the segments; colours are their digits to the base 256, red first.

    Raises:
        DatasetError: the png cannot be read, or is not that of these segments.
    """
    values = read_raster(png).values
    if values.ndim != 3:
        raise DatasetError(f"{png}: found gray values, expected the colours of a panoptic png")
    numbers = values[..., :3].astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    _check_ids(png, np.unique(numbers).tolist(), ids)
    return numbers


def _check_ids(png: Path, found: list[int], ids: tuple[int, ...]) -> None:
    """Compare the ids of a png's pixels, where 0 is void, with those of its segments.

    A small segment may have lost its pixels when the png was made smaller: that is logged.
    """
    lost = sorted(set(ids).difference(found))
    without = f"{len(lost)} of the {len(ids)} segments have no pixel"
    if lost:
        without += f", the first is id {lost[0]}"
    unnamed = sorted(set(found).difference(ids, [0]))
    if not unnamed and (not ids or len(lost) < len(set(ids))):
        if lost:
            _LOGGER.warning("%s: %s", png, without)
        return
    colour = ""
    if unnamed:
        first = unnamed[0]
        colour = (
            f"the colour {list(_digits(first))}, id {first}, that no entry of segments_info has "
            f"({len(unnamed)} such ids), and "
        )
    swapped = {b + 256 * g + 65536 * r for r, g, b in map(_digits, found)}
    remedy = "take the json and the pngs of one export"
    if unnamed and swapped <= {0, *ids}:
        remedy = "red and blue are swapped, as OpenCV has them: write the pngs as RGB"
    raise DatasetError(f"{png}: found {colour}{without}; {remedy}")


def _digits(number: int) -> tuple[int, int, int]:
    """Red, green and blue of an id."""
    return number % 256, number // 256 % 256, number // 65536
