"""Labels as json files of labelme, one per image.

Polygons are those of `trace_polygons` with border pixels as vertices: labelme rasterises with
Pillow and paints the outline. A mask is one shape of type "mask" per class (labelme 5.3 and later):
a PNG of its bounding box, whose two corners are pixels of it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tagclip.data.formats.labelled_image import LabelledImage, Shapes, class_masks
from tagclip.data.formats.polygons import trace_polygons
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import files_atomic, write_atomic
from tagclip.utils.text import json_text

__all__ = ["write_labelme"]

# The first version that knows all that is written.
_VERSION = "5.3.0"


def write_labelme(
    output: Path, images: Iterable[LabelledImage], vocabulary: Vocabulary, shapes: Shapes
) -> list[Path]:
    """Write STEM.json for each image, and labels.txt, the classes for ``labelme --labels``.

    Files that are there are replaced when all are written, or none is.

    Args:
        output: folder. ``imagePath`` leads from the json to the image, which labelme reads itself.
        images: with their labels.
        vocabulary: their classes.
        shapes: "polygons" or "masks".

    Returns:
        The folder.

    Raises:
        OSError: a file cannot be written.
    """
    with files_atomic(output) as folder:
        _write(folder, output, images, vocabulary, shapes)
    return [output]


def _write(
    folder: Path,
    output: Path,
    images: Iterable[LabelledImage],
    vocabulary: Vocabulary,
    shapes: Shapes,
) -> None:
    """Write into a folder what will lie in another one."""
    write_atomic(folder / "labels.txt", "".join(f"{name}\n" for name in vocabulary.names))
    for image in images:
        path = output / f"{image.stem}.json"
        height, width = image.labels.shape
        content = {
            "version": _VERSION,
            "flags": {},
            "shapes": list(_shapes(image.labels, vocabulary, shapes)),
            "imagePath": Path(os.path.relpath(image.path, path.parent)).as_posix(),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_atomic(folder / f"{image.stem}.json", json_text(content) + "\n")


def _shapes(labels: np.ndarray, vocabulary: Vocabulary, shapes: Shapes) -> Iterator[dict[str, Any]]:
    for k, mask in class_masks(labels):
        common = {"label": vocabulary.classes[k].name, "group_id": None, "flags": {}}
        if shapes == "masks":
            x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
            part = mask[y : y + height, x : x + width].view(np.uint8)
            png = cv2.imencode(".png", part * 255)[1].tobytes()
            corners = [[x, y], [x + width - 1, y + height - 1]]
            code = base64.b64encode(png).decode("ascii")
            yield {**common, "points": corners, "shape_type": "mask", "mask": code}
        else:
            for polygon in trace_polygons(mask, "centers"):
                yield {**common, "points": polygon.tolist(), "shape_type": "polygon"}
