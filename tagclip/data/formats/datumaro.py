"""Datumaro's own export, the json of its format "datumaro" (version 1.0).

Polygons, masks, boxes and ellipses are read; other kinds are left out and counted. `z_order` is
the painting order, and of equal ones the order of the file, as datumaro paints. Crowds of a COCO
file that datumaro has read are ignored pixels, and CVAT's boxes and ellipses are turned as there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tagclip.data.formats.annotation import AnnotatedImage, Segment, polygons_mask, rle_mask
from tagclip.data.formats.export_file import (
    checked_size,
    find_image,
    flag,
    located,
    located_mask,
    need,
    read_json,
    report_left_out,
)
from tagclip.data.formats.shapes import box_mask, ellipse_mask
from tagclip.data.image_io import image_size
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary_class import is_int

__all__ = ["class_names", "read"]


def class_names(path: str | Path) -> tuple[str, ...]:
    """Names of the label categories, in datumaro's order, which is that of its ids."""
    path = _files(path)[0]
    content = _content(path)
    with located(path):
        return _names(content)


def read(path: str | Path, images: str | Path | None = None) -> Iterator[AnnotatedImage]:
    """Read the items one after the other.

    Args:
        path: a json, or the folder of the export, whose subsets are read in the order of names.
        images: the folder of the images; None: that of the export, if it has one.

    Raises:
        DatasetError: a file is missing or damaged, or the subsets differ in their labels.
    """
    names = class_names(path)
    for file in _files(path):
        content = _content(file)
        folder = images or file.parent.parent / "images"
        left_out: Counter[str] = Counter()
        with located(file):
            items = [(item["id"], item) for item in content["items"]]
            if _names(content) != names:
                raise DatasetError(
                    f"found the labels {', '.join(_names(content))}, expected those of the subset "
                    f"before, {', '.join(names)}; convert the subsets one by one"
                )
        for name, item in items:
            with located(file, name):
                annotated = _image(item, file, names, folder, left_out)
            yield annotated
        report_left_out(file, left_out, _WITHOUT_AREA_OR_CLASS)


def _files(path: str | Path) -> list[Path]:
    path = Path(path)
    if not path.is_dir():
        return [path]
    files = sorted((path / "annotations").glob("*.json"))
    if not files:
        raise DatasetError(
            f"{path}: found no annotations/*.json, expected the folder of datumaro's export; name "
            "it, or one of its json files"
        )
    return files


def _content(path: Path) -> Mapping[str, Any]:
    content = read_json(path, "datumaro")
    version = content.get("dm_format_version") if isinstance(content, dict) else None
    if not str(version).startswith("1."):
        raise DatasetError(
            f"{path}: found dm_format_version {version!r}, expected 1.0; export it with datumaro's "
            'format "datumaro"'
        )
    return content


def _names(content: Mapping[str, Any]) -> tuple[str, ...]:
    labels = content["categories"]["label"]["labels"]
    return tuple(need(label, "name", str, "labels") for label in labels)


def _image(
    item: Mapping[str, Any],
    path: Path,
    names: tuple[str, ...],
    folder: str | Path,
    left_out: Counter[str],
) -> AnnotatedImage:
    image = item.get("image")
    if image is None:
        raise DatasetError("found no image, expected one; videos have to be exported as frames")
    # Without a path it is what datumaro itself looks for.
    name = image.get("path") or f"{item['id']}.jpg"
    file = find_image([f"{path.stem}/{name}", name], folder if Path(folder).is_dir() else None)
    given = image.get("size")
    size = checked_size(*given) if given else image_size(Path(folder, file))
    segments = []
    for annotation in item["annotations"]:
        kind = annotation["type"]
        if kind not in _MASKS:
            # These two are about the image as a whole.
            left_out.update([kind] if kind not in ("label", "caption") else [])
        elif annotation.get("label_id") is None:
            left_out[f"{kind} without a label"] += 1
        else:
            name = names[_index(annotation["label_id"], len(names))]
            mask = located_mask(path, _MASKS[kind](size, annotation))
            is_crowd = flag(annotation.get("attributes") or {}, "is_crowd", "attributes")
            segments.append((int(annotation.get("z_order", 0)), name, mask, is_crowd))
    # The sort is stable: of equal orders the later one comes last.
    segments.sort(key=lambda segment: segment[0])
    return AnnotatedImage(
        file, size, tuple(Segment(n, m, order, c) for order, (_, n, m, c) in enumerate(segments))
    )


def _index(label: object, count: int) -> int:
    if not is_int(label) or not 0 <= label < count:
        raise DatasetError(f"found label_id {label!r}, expected 0..{count - 1}; export it again")
    return label


def _polygon(size: tuple[int, int], shape: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    return polygons_mask(size, [shape["points"]])


def _mask(size: tuple[int, int], shape: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    height, width = checked_size(*shape["rle"]["size"])
    if (height, width) != size:
        raise DatasetError(
            f"found a mask of {width}x{height} pixels, expected {size[1]}x{size[0]}, as the image "
            "has; export it again"
        )
    return rle_mask(size, shape["rle"]["counts"])


def _box(size: tuple[int, int], shape: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    x, y, width, height = map(float, shape["bbox"])
    return box_mask(size, (x, y, x + width, y + height), _degrees(shape))


def _ellipse(size: tuple[int, int], shape: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    x0, y0, x1, y1 = map(float, shape["points"])
    center, radii = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2)
    return ellipse_mask(size, center, radii, _degrees(shape))


def _degrees(shape: Mapping[str, Any]) -> float:
    """Clockwise around the centre, as CVAT turns; datumaro's json has no field for it."""
    return float((shape.get("attributes") or {}).get("rotation") or 0)


_MASKS = {"polygon": _polygon, "mask": _mask, "bbox": _box, "ellipse": _ellipse}
_WITHOUT_AREA_OR_CLASS = (
    "points",
    "polyline",
    "skeleton",
    *(f"{kind} without a label" for kind in _MASKS),
)
