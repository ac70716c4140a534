"""Label Studio's exports "JSON" and "JSON-MIN".

Brushes, polygons, rectangles and ellipses of `BrushLabels`, `PolygonLabels`, ... or of `Brush` with
`Labels` are read; what has no area or no label is left out and counted. Results of one label are
united. The export does not hold the list of labels: those that are met are sorted by name. Of a
task with several annotations the ground truth counts, or else the newest that was not skipped;
predictions do not count. https://labelstud.io/guide/export
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from tagclip.data.formats.annotation import AnnotatedImage, Segment, polygons_mask
from tagclip.data.formats.export_file import (
    checked_size,
    find_image,
    located,
    located_mask,
    need,
    read_items,
    report_left_out,
)
from tagclip.data.formats.rle_pack import check_rle_pack, decode_rle_pack
from tagclip.data.formats.shapes import box_mask, ellipse_mask
from tagclip.data.image_io import image_size
from tagclip.errors import DatasetError

__all__ = ["class_names", "image_names", "read"]

_LOGGER = logging.getLogger(__name__)
# With one of these keys in its value a result is a region, with or without an area.
_REGIONS = {"rle", "points", "x", "vertices"}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
_IMAGE = re.compile(r"\.(jpe?g|png|bmp|tiff?|webp|gif|jfif|jp2)($|[?&])", re.IGNORECASE)


class _Task(NamedTuple):
    number: object
    data: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]


def class_names(path: str | Path) -> tuple[str, ...]:
    """Labels of all regions, sorted: an export names none that is not used."""
    names = set()
    for task in _tasks(path):
        with located(path, f"task {task.number}"):
            regions = filter(_kind, task.results)
            names |= {label for result in regions for label in _labels(result, task.results)}
    return tuple(sorted(names))


def read(path: str | Path, images: str | Path | None = None) -> Iterator[AnnotatedImage]:
    """Read the tasks that have an annotation, one after the other.

    Args:
        path: the json.
        images: the folder of the images. Of the path that a task gives, the longest end that is a
            file there is the image; of an upload its name, or that without the eight digits that
            Label Studio puts before it. None: the whole path, or the name of the upload.

    Raises:
        DatasetError: the file is damaged, or holds no annotation.
    """
    left_out: Counter[str] = Counter()
    is_empty = True
    for task in _tasks(path):
        with located(path, f"task {task.number}"):
            annotated = _image(path, task, images, left_out)
        is_empty = False
        yield annotated
    if is_empty:
        raise DatasetError(
            f"{path}: found no annotation, expected one or more; predictions do not count: accept "
            "them in Label Studio, and export again"
        )
    report_left_out(path, left_out, ("regions",))


def image_names(path: str | Path) -> dict[str, list[str]]:
    """Number of every task -> what its image may be called, the likeliest first."""
    names = {}
    for task in _tasks(path):
        with located(path, f"task {task.number}"):
            names[str(task.number)] = _names(task.data)
    return names


def _tasks(path: str | Path) -> Iterator[_Task]:
    """The tasks with the results of the annotation that counts, one after the other."""
    several = 0
    # JSON-MIN has an item per annotation, those of a task behind each other.
    for _, group in groupby(enumerate(read_items(path, "Label Studio")), partial(_key, path)):
        items = [item for _, item in group]
        with located(path):
            number, data = items[0].get("id"), items[0].get("data")
            annotations = items
            if data is not None:
                annotations = items[0].get("annotations", items[0].get("completions")) or []
            done = [a for a in annotations if not (a.get("was_cancelled") or a.get("skipped"))]
            if not done:
                continue
            several += len(done) > 1
            best = _best(done)
            results = best["result"] if data is not None else _minimal_results(best)
            task = _Task(number, best if data is None else data, results)
        yield task
    if several:
        _LOGGER.warning(
            "%s: %d tasks have several annotations; the ground truth counts, or else the newest",
            path,
            several,
        )


def _key(path: str | Path, entry: tuple[int, Any]) -> tuple[str, object]:
    """Equal for the items of one task."""
    index, item = entry
    with located(path):
        return ("task", index) if "data" in item else ("min", item["id"])


def _best(annotations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    def rank(annotation: Mapping[str, Any]) -> tuple[bool, str]:
        times = (annotation.get(key) for key in ("updated_at", "created_at"))
        return bool(annotation.get("ground_truth")), str(next(filter(None, times), ""))

    return max(annotations, key=rank)


def _minimal_results(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The regions of a task of JSON-MIN, written as JSON has them."""
    values = [v for regions in task.values() if isinstance(regions, list) for v in regions]
    return [{**v, "value": v} for v in values if isinstance(v, dict)]


def _kind(result: Mapping[str, Any]) -> str:
    """The key of `_MASKS` that a region with an area has; "" if it is none."""
    value = result.get("value")
    if not isinstance(value, dict) or value.get("closed") is False:
        return ""
    kind = next((key for key in _MASKS if key in value), "")
    # A key point has a width, too.
    return "" if kind == "width" and "height" not in value else kind


def _labels(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of a region, as a list; empty if it has none."""
    found = _own_labels(result)
    if not found and result.get("id") is not None:
        # Brush beside Labels: two results of one id, of which one has the label.
        found = [n for r in results if r.get("id") == result["id"] for n in _own_labels(r)]
    if not all(isinstance(name, str) for name in found):
        raise DatasetError(f"found the labels {found}, expected texts; export it again")
    names = list(dict.fromkeys(found))
    if len(names) > 1:
        raise DatasetError(
            f"found a region with the labels {', '.join(names)}, expected one; leave it one"
        )
    return names


def _own_labels(result: Mapping[str, Any]) -> list[str]:
    value = result.get("value") or {}
    return [n for key, names in value.items() if key.endswith("labels") and names for n in names]


def _image(
    path: str | Path, task: _Task, images: str | Path | None, left_out: Counter[str]
) -> AnnotatedImage:
    file = find_image(_names(task.data), images)
    regions = []
    for result in task.results:
        if "imageDataURL" in (result.get("value") or ()):
            raise DatasetError(
                "found a region of the Bitmask tool, expected brushes, polygons, rectangles or "
                "ellipses; annotate with one of them"
            )
        labels = _labels(result, task.results) if _kind(result) else []
        if labels:
            regions.append((labels[0], result))
        elif not _REGIONS.isdisjoint(result.get("value") or ()):
            left_out["regions"] += 1
    size = _size([result for _, result in regions], file, images)
    segments = []
    for label, result in regions:
        mask = _MASKS[_kind(result)](size, result["value"])
        segments.append(Segment(label, located_mask(path, mask)))
    return AnnotatedImage(file, size, tuple(segments))


def _size(
    regions: Sequence[Mapping[str, Any]], file: str, images: str | Path | None
) -> tuple[int, int]:
    """The size of the image that all regions are of."""
    sizes = set()
    for region in regions:
        if region.get("image_rotation"):
            raise DatasetError(
                f"found an image turned by {region['image_rotation']} degrees, expected 0; turn "
                "the file itself and annotate that"
            )
        if region.get("item_index"):
            raise DatasetError("found several images in one task, expected one per task")
        if region.get("original_width") is not None:
            sizes.add(checked_size(region.get("original_height"), region["original_width"]))
    if len(sizes) > 1:
        raise DatasetError(f"found regions of images of {len(sizes)} sizes, expected one")
    if not sizes and images is None:
        raise DatasetError(
            "found no original_width and original_height, expected them; name the folder of the "
            "images with --images"
        )
    return sizes.pop() if sizes else image_size(Path(images or "", file))


def _names(data: Mapping[str, Any]) -> list[str]:
    """What the image of a task may be called, the likeliest first."""
    texts = {text for text in data.values() if isinstance(text, str)}
    addresses = {text for text in texts if _IMAGE.search(_path(text))} or texts
    if len(addresses) != 1:
        raise DatasetError(
            f"found {len(addresses)} addresses of images in the task's data, expected one"
        )
    path = _path(addresses.pop()).replace("\\", "/").strip("/")
    parts = path.split("/")
    names = ["/".join(parts[index:]) for index in range(len(parts))]
    if path.startswith("data/upload/"):
        # Its folders are Label Studio's own.
        return [parts[-1], _UPLOAD.sub("", parts[-1])]
    return names


def _path(address: str) -> str:
    """The path of an address, also of one that Label Studio serves from a storage."""
    split = urlsplit(address)
    query = parse_qs(split.query)
    if "d" in query:
        return query["d"][0]
    if "fileuri" in query:
        code = query["fileuri"][0]
        try:
            return _path(base64.urlsafe_b64decode(code + "=" * (-len(code) % 4)).decode())
        except (binascii.Error, UnicodeDecodeError):
            return split.path
    return unquote(split.path) if split.scheme or split.query else unquote(address)


def _brush(size: tuple[int, int], value: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    code = bytes(need(value, "rle", list, "brush"))
    check_rle_pack(code, size)
    return partial(decode_rle_pack, code, size)


def _polygon(size: tuple[int, int], value: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    scale = np.array([size[1], size[0]]) / 100
    return polygons_mask(size, [(np.asarray(value["points"], float) * scale).ravel()])


def _ellipse(size: tuple[int, int], value: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    width, height = size[1] / 100, size[0] / 100
    return ellipse_mask(
        size,
        (value["x"] * width, value["y"] * height),
        (value["radiusX"] * width, value["radiusY"] * height),
        value.get("rotation", 0),
    )


def _rectangle(size: tuple[int, int], value: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    width, height = size[1] / 100, size[0] / 100
    x, y = value["x"] * width, value["y"] * height
    corners = (x, y, x + value["width"] * width, y + value["height"] * height)
    # Turned around its first corner.
    return box_mask(size, corners, value.get("rotation", 0), pivot=0)


_MASKS = {"rle": _brush, "points": _polygon, "radiusX": _ellipse, "width": _rectangle}
