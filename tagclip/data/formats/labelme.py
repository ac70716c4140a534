"""labelme json files, one per image (https://github.com/wkentaro/labelme)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tagclip.data.datasets.walk import files_below
from tagclip.data.formats.annotation import (
    MAX_COORDINATE,
    AnnotatedImage,
    Segment,
    check_finite,
)
from tagclip.data.formats.export_file import checked_size, located, need, read_json
from tagclip.data.image_io import image_size
from tagclip.errors import DatasetError
from tagclip.utils.text_file import read_text_file

__all__ = ["class_names", "read"]

# What labelme's converters call what has no class, and what nothing covers.
_IGNORED, _BACKGROUND = "__ignore__", "_background_"
# Pixels: what labelme's converters make of lines and points.
_LINE_WIDTH, _POINT_RADIUS = 10, 5
_LARGEST_RADIUS = 1e5
# Numbers of points by shape; in open-ended ones the last, or any more.
_POINTS = {
    "polygon": (3,),
    "oriented_rectangle": (4,),
    "rectangle": (2, 4),
    "circle": (2,),
    "line": (2,),
    "linestrip": (2,),
    "point": (1,),
    "mask": (2,),
}
_OPEN_ENDED = ("polygon", "linestrip")


def class_names(path: Path) -> tuple[str, ...]:
    """Names in labels.txt, beside the json files or above; without one all labels, sorted.

    ``_background_`` is called background; ``__ignore__`` is no class.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.resolve().parent):
        if (place / "labels.txt").is_file():
            with located(place / "labels.txt"):
                lines = read_text_file(place / "labels.txt").splitlines()
            names = [line.strip() for line in lines if line.strip()]
            break
    else:
        trees = ((read_json(file, "labelme"), file) for file in _files(path))
        names = sorted({label for tree, file in trees for label, _ in _shapes(tree, file)})
    return tuple(dict.fromkeys(map(_name, filter(_IGNORED.__ne__, names))))


def read(path: Path, images: Path | None = None) -> Iterator[AnnotatedImage]:
    """Read json files; a later shape lies over an earlier one, as labelme's converters paint them.

    Args:
        path: a folder, with all below it, or one file.
        images: their folder, for files without a size; by default each lies where its json says.

    Raises:
        DatasetError: a file is missing or damaged, or holds another shape.
    """
    root = path if path.is_dir() else path.parent
    for json in _files(path):
        tree = read_json(json, "labelme")
        # Written on another system, the path has backslashes.
        written = need(tree, "imagePath", str, str(json)).replace("\\", "/")
        file = (json.parent.relative_to(root) / PureWindowsPath(written).name).as_posix()
        size = (tree.get("imageHeight"), tree.get("imageWidth"))
        if not all(isinstance(side, int) and side > 0 for side in size):
            size = image_size(images / file if images else json.parent / written)
        with located(json):
            size = checked_size(*size)
        segments = []
        for order, (label, shape) in enumerate(_shapes(tree, json)):
            where = f"{json}, shapes[{order}]"
            mask = partial(_mask, size, *_checked(shape, size, where))
            segments.append(Segment(_name(label), mask, order, label == _IGNORED))
        yield AnnotatedImage(file, size, tuple(segments))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in files_below(path) if file.suffix.lower() == ".json")
    if not files:
        raise DatasetError(f"{path}: found no json files, expected those of labelme")
    return files


def _shapes(tree: object, json: Path) -> list[tuple[str, dict[str, Any]]]:
    shapes = need(tree, "shapes", list, str(json))
    return [
        (need(shape, "label", str, f"{json}, shapes[{n}]"), shape) for n, shape in enumerate(shapes)
    ]


def _name(label: str) -> str:
    return "background" if label == _BACKGROUND else label


def _checked(
    shape: dict[str, Any], size: tuple[int, int], where: str
) -> tuple[str, list[tuple[float, float]], str]:
    """Kind, points x, y, and png of a mask as base64."""
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind not in _POINTS:
        raise DatasetError(
            f"{where}: shape_type is {kind!r}, expected one of {', '.join(_POINTS)}; change it in "
            "labelme"
        )
    points = _points(need(shape, "points", list, where), kind, where)
    low, high = points.min(0), points.max(0)
    if kind == "rectangle" and len(points) == 4:
        corners = [[x, y] for x in (low[0], high[0]) for y in (low[1], high[1])]
        if sorted(points.tolist()) != corners:
            raise DatasetError(
                f"{where}: found 4 points of a rectangle that are no corners of an upright box, "
                "expected these, or 2 opposite ones; make it a polygon"
            )
        points = np.stack([low, high])
    if kind == "circle":
        radius = math.dist(*points)
        low, high = points[0] - radius, points[0] + radius
    is_near = bool(np.abs(points).max() <= MAX_COORDINATE)
    # Of much larger ones Pillow 12.3 does not come to an end.
    is_near &= kind != "circle" or radius <= _LARGEST_RADIUS
    if not is_near or (high < 0).any() or (low > size[::-1]).any():
        raise DatasetError(
            f"{where}: found a {kind} at x {low[0]:g}..{high[0]:g}, y {low[1]:g}..{high[1]:g}, "
            f"outside the {size[1]}x{size[0]} image; is this the image that was annotated?"
        )
    png = need(shape, "mask", str, where) if kind == "mask" else ""
    if kind == "mask":
        _decode(png, where)
    return kind, [tuple(point) for point in points.tolist()], png


def _points(given: list[Any], kind: str, where: str) -> np.ndarray:
    """(N, 2) points x, y, as many as the shape has."""
    try:
        points = np.array(given, float)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if given and (points.ndim != 2 or points.shape[1] != 2):
        raise DatasetError(f"{where}: found points of a {kind} that are no x, y; remove or mend it")
    counts = _POINTS[kind]
    if len(given) not in counts and not (kind in _OPEN_ENDED and len(given) > counts[-1]):
        expected = " or ".join([*map(str, counts), *["more"] * (kind in _OPEN_ENDED)])
        raise DatasetError(
            f"{where}: found {len(given)} points x, y of a {kind}, expected {expected}; remove or "
            "mend it"
        )
    with located(where):
        check_finite(points)
    return points


def _mask(
    size: tuple[int, int], kind: str, points: Sequence[tuple[float, float]], png: str
) -> np.ndarray:
    if kind == "mask":
        # Of the box's two points the first need not be the upper left one.
        return _placed(size, np.min(points, 0), _decode(png, "mask"))
    picture = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(picture)
    if kind == "rectangle":
        (x0, x1), (y0, y1) = map(sorted, zip(*points, strict=True))
        draw.rectangle((x0, y0, x1, y1), fill=1, outline=1)
    elif kind in ("circle", "point"):
        (x, y), radius = points[0], _POINT_RADIUS
        if kind == "circle":
            radius = math.dist(*points)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif kind in ("line", "linestrip"):
        draw.line(points, fill=1, width=_LINE_WIDTH)
    else:
        draw.polygon(points, fill=1, outline=1)
    return np.asarray(picture)


def _placed(size: tuple[int, int], corner: Sequence[float], mask: np.ndarray) -> np.ndarray:
    """A mask of a part of the image, with its upper left corner x, y; what is outside is cut."""
    result, (x, y) = np.zeros(size, bool), map(int, corner)
    top, left = max(y, 0), max(x, 0)
    part = mask[top - y : size[0] - y, left - x : size[1] - x]
    result[top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


def _decode(png: str, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=["PNG"]) as mask:
            return np.asarray(mask.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{where}: mask is no readable png; draw it again") from error
