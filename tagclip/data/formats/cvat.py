"""CVAT's export "CVAT for images 1.1": annotations.xml.

Polygons, masks, boxes and ellipses are read; other shapes are left out and counted.
`z_order` is the painting order, and of equal ones the order of the file, as in CVAT's own masks.
https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from tagclip.data.formats.annotation import AnnotatedImage, Segment, polygons_mask
from tagclip.data.formats.export_file import checked_size, find_image, located, report_left_out
from tagclip.data.formats.shapes import box_mask, ellipse_mask
from tagclip.errors import DatasetError

__all__ = ["class_names", "read"]

_CHUNK = 1 << 20
# Tag of a shape and its attributes, or of an image and its attributes.
_Tag = tuple[str, dict[str, str]]


def class_names(path: str | Path) -> tuple[str, ...]:
    """Names of the labels, in the order of the project or task."""
    names: list[str] = []
    for kind, content in _parse(_file(path)):
        if kind == "image":
            break
        names.append(content)
    return tuple(names)


def read(path: str | Path, images: str | Path | None = None) -> Iterator[AnnotatedImage]:
    """Read the images one after the other.

    Args:
        path: annotations.xml, or the folder that holds it.
        images: not needed, the file holds the sizes.

    Raises:
        DatasetError: the file is missing or damaged, or is the export for videos.
    """
    path = _file(path)
    left_out: Counter[str] = Counter()
    for kind, content in _parse(path):
        if kind == "image":
            (_, image), *shapes = content
            with located(path, image.get("name", "image without a name")):
                annotated = _image(image, shapes, left_out)
            yield annotated
    report_left_out(path, left_out, _WITHOUT_AREA)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / "annotations.xml" if path.is_dir() else path


def _image(image: Mapping[str, str], shapes: list[_Tag], left_out: Counter[str]) -> AnnotatedImage:
    size = checked_size(image.get("height"), image.get("width"))
    masks = []
    for kind, shape in shapes:
        if kind in _MASKS:
            # The sort is stable: of equal orders the later one comes last.
            masks.append((int(shape.get("z_order", 0)), shape["label"], _MASKS[kind](size, shape)))
        elif kind != "tag":
            left_out[kind] += 1
    masks.sort(key=lambda mask: mask[0])
    segments = (Segment(name, mask, order) for order, (_, name, mask) in enumerate(masks))
    return AnnotatedImage(find_image([image["name"]], None), size, tuple(segments))


def _polygon(size: tuple[int, int], shape: Mapping[str, str]) -> Callable[[], np.ndarray]:
    points = [float(value) for pair in shape["points"].split(";") for value in pair.split(",")]
    return polygons_mask(size, [points])


def _box(size: tuple[int, int], shape: Mapping[str, str]) -> Callable[[], np.ndarray]:
    corners = [float(shape[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
    return box_mask(size, corners, float(shape.get("rotation", 0)))


def _ellipse(size: tuple[int, int], shape: Mapping[str, str]) -> Callable[[], np.ndarray]:
    cx, cy, rx, ry = (float(shape[key]) for key in ("cx", "cy", "rx", "ry"))
    return ellipse_mask(size, (cx, cy), (rx, ry), float(shape.get("rotation", 0)))


def _mask(size: tuple[int, int], shape: Mapping[str, str]) -> Callable[[], np.ndarray]:
    left, top, width, height = (int(shape[key]) for key in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape["rle"].split(",")]
    if min(left, top, width, height) < 0 or left + width > size[1] or top + height > size[0]:
        raise DatasetError(
            f"found a mask of {width}x{height} pixels at ({left}, {top}), expected it within the "
            f"image of {size[1]}x{size[0]}; export the annotations again"
        )
    if min(runs) < 0 or sum(runs) != width * height:
        raise DatasetError(
            f"found run lengths of {sum(runs)} pixels, expected {width}x{height}; export the "
            "annotations again"
        )
    return partial(_runs, size, (left, top, width, height), runs)


def _runs(size: tuple[int, int], box: tuple[int, int, int, int], runs: list[int]) -> np.ndarray:
    """Runs go along the rows of the box and begin with zeros."""
    left, top, width, height = box
    mask = np.zeros(size, bool)
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = values.reshape(height, width)
    return mask


_WITHOUT_AREA = ("points", "polyline", "skeleton")
_MASKS = {"polygon": _polygon, "mask": _mask, "box": _box, "ellipse": _ellipse}


def _parse(path: Path) -> Iterator[tuple[str, Any]]:
    """("label", name) of every label, then ("image", its tag and those of its shapes)."""
    elements = _Elements()
    with located(path):
        try:
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    elements.parser.Parse(chunk, False)
                    yield from elements.take()
                elements.parser.Parse(b"", True)
        except (expat.ExpatError, OSError) as error:
            raise DatasetError(
                f"found {error}, expected CVAT's annotations.xml; unpack the zip, or export the "
                "task again"
            ) from error
    yield from elements.take()


class _Elements:
    """Labels and images of the xml, as soon as they are complete."""

    def __init__(self) -> None:
        self._found: list[tuple[str, Any]] = []
        self._open: list[str] = []
        self._image: list[_Tag] = []
        self._text: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler, self.parser.EndElementHandler = self._start, self._end
        self.parser.CharacterDataHandler = self._text.append
        # Without one there are no entities, so that nothing expands and nothing else is opened.
        self.parser.StartDoctypeDeclHandler = self._refuse

    def take(self) -> list[tuple[str, Any]]:
        """What has been completed since the last call."""
        found, self._found = self._found, []
        return found

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "annotations":
            raise DatasetError(f"found <{tag}>, expected <annotations>: is this CVAT's xml?")
        if tag == "track":
            raise DatasetError(
                'found a track, expected images: export the task as "CVAT for images 1.1"'
            )
        if tag == "image":
            self._image = [(tag, attributes)]
        elif self._open[-1:] == ["image"]:
            self._image.append((tag, attributes))
        self._open.append(tag)
        self._text.clear()

    def _end(self, tag: str) -> None:
        self._open.pop()
        # Attributes of a label have names, too.
        if tag == "name" and self._open[-2:] == ["labels", "label"]:
            self._found.append(("label", "".join(self._text)))
        elif tag == "image":
            self._found.append((tag, tuple(self._image)))

    @staticmethod
    def _refuse(*_: object) -> None:
        raise DatasetError("found a document type, expected none: CVAT writes none")
