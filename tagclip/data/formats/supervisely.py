"""Supervisely's export: meta.json, and DATASET/ann/IMAGE.json beside DATASET/img/IMAGE.

Bitmaps, polygons with holes and rectangles are painted as Supervisely itself paints them: later
objects over earlier ones, and a polygon or rectangle covers the pixels of its corners. Other kinds
are left out and counted. https://docs.supervisely.com/data-organization/00_ann_format_navi
"""

from __future__ import annotations

import base64
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tagclip.data.formats.annotation import AnnotatedImage, Segment, outside_error
from tagclip.data.formats.export_file import (
    checked_size,
    find_image,
    located,
    located_mask,
    need,
    read_json,
    report_left_out,
)
from tagclip.errors import DatasetError

__all__ = ["class_names", "read"]


def class_names(path: str | Path) -> tuple[str, ...]:
    """Titles of the classes, in the order of meta.json."""
    path = Path(path)
    # A data set may be named instead of its project.
    candidates = [folder / "meta.json" for folder in (path, path.parent)]
    meta = next((file for file in candidates if file.is_file()), candidates[0])
    content = read_json(meta, "Supervisely")
    with located(meta):
        return tuple(need(entry, "title", str, "classes") for entry in content["classes"])


def read(path: str | Path, images: str | Path | None = None) -> Iterator[AnnotatedImage]:
    """Read the images one after the other, in the order of their names.

    Args:
        path: the folder of the project, or of one of its data sets.
        images: the folder of the images; None: ``path``.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    path = Path(path)
    files = sorted(path.glob("**/ann/*.json"))
    if not files:
        raise DatasetError(
            f"{path}: found no */ann/*.json, expected the folder of a Supervisely project; unpack "
            "the export and name its folder"
        )
    left_out: Counter[str] = Counter()
    for file in files:
        content = read_json(file, "Supervisely")
        with located(file):
            annotated = _image(content, file, path, images, left_out)
        yield annotated
    report_left_out(path, left_out, _WITHOUT_AREA)


def _image(
    content: Mapping[str, Any],
    file: Path,
    root: Path,
    images: str | Path | None,
    left_out: Counter[str],
) -> AnnotatedImage:
    name = file.name.removesuffix(".json")
    dataset = file.parent.parent.relative_to(root).as_posix()
    names = [f"{dataset}/img/{name}", f"{dataset}/{name}", f"img/{name}", name]
    size = checked_size(content["size"]["height"], content["size"]["width"])
    segments = []
    for thing in content["objects"]:
        # Files of the first years have no geometryType.
        kind = thing.get("geometryType") or ("bitmap" if thing.get("bitmap") else "polygon")
        if kind in _MASKS:
            mask = _MASKS[kind](size, thing)
            mask = located_mask(file, mask)
            title = need(thing, "classTitle", str, f"object {len(segments) + 1}")
            segments.append(Segment(title, mask, len(segments)))
        else:
            left_out[kind] += 1
    names = [name.removeprefix("./") for name in names]
    return AnnotatedImage(find_image(names, images or root), size, tuple(segments))


def _points(content: object) -> np.ndarray:
    """(N, 2) int32 x, y: indices of pixels, which newer versions write as decimals."""
    points = np.asarray(content, float).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > 1 << 20:
        raise DatasetError("found a point that is no pixel; export it again")
    return np.round(points).astype(np.int32)


def _polygon(size: tuple[int, int], thing: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    outline = _points(thing["points"]["exterior"])
    if not len(outline):
        raise DatasetError("found a polygon without points, expected three or more")
    _check_inside("a polygon", size, outline)
    holes = [_points(hole) for hole in thing["points"].get("interior") or []]
    return partial(_fill, size, outline, holes)


def _check_inside(what: str, size: tuple[int, int], outline: np.ndarray) -> None:
    low, high = outline.min(0), outline.max(0)
    # Pixels: that of index 0 is the first, that of the width the first outside.
    if (high < 0).any() or (low >= size[::-1]).any():
        raise outside_error(what, size, low, high)


def _fill(size: tuple[int, int], outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [outline], 1)
    cv2.fillPoly(mask, holes, 0)
    return mask.astype(bool)


def _rectangle(size: tuple[int, int], thing: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    (x0, y0), (x1, y1) = corners = _points(thing["points"]["exterior"])
    _check_inside("a rectangle", size, corners)
    return partial(_fill, size, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), [])


def _bitmap(size: tuple[int, int], thing: Mapping[str, Any]) -> Callable[[], np.ndarray]:
    left, top = map(int, thing["bitmap"]["origin"])
    return partial(_paste, size, (left, top), _png(thing["bitmap"]["data"]))


def _png(data: str) -> bytes:
    content = base64.b64decode(data)
    # Some versions do not compress the PNG once more.
    if content.startswith(b"\x89PNG"):
        return content
    unpacker = zlib.decompressobj()
    try:
        # A mask is a small file: what unpacks to more is none.
        png = unpacker.decompress(content, 1 << 28)
    except zlib.error as error:
        raise DatasetError(f"found a damaged bitmap ({error}); export it again") from error
    if not unpacker.eof:
        raise DatasetError("found a bitmap that ends early, or of more than 256 MiB")
    return png


def _paste(size: tuple[int, int], origin: tuple[int, int], png: bytes) -> np.ndarray:
    left, top = origin
    try:
        with Image.open(io.BytesIO(png)) as image:
            width, height = image.size
            if min(origin) < 0 or left + width > size[1] or top + height > size[0]:
                raise DatasetError(
                    f"found a bitmap of {width}x{height} pixels at ({left}, {top}), expected it "
                    f"within the image of {size[1]}x{size[0]}; export it again"
                )
            if image.has_transparency_data:
                values = np.asarray(image.convert("RGBA"))[:, :, 3]
            else:
                values = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"found a damaged bitmap ({error}); export it again") from error
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = values > 0
    return mask


_WITHOUT_AREA = ("point", "line", "graph")
_MASKS = {"bitmap": _bitmap, "polygon": _polygon, "rectangle": _rectangle}
