"""Labels as a file of "CVAT for images 1.1", which a task of CVAT takes as annotations.

CVAT finds the images by their names below the folder that was uploaded, and the classes by their
names among the labels of the task. Polygons are those of `trace_polygons` with corners of pixels as
vertices. A mask is one per class: the lengths of its runs in its bounding box, row by row, the
first of pixels outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np

from tagclip.data.formats.labelled_image import LabelledImage, Shapes, class_masks
from tagclip.data.formats.polygons import trace_polygons
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import open_atomic

__all__ = ["write_cvat"]


def write_cvat(
    output: Path, images: Iterable[LabelledImage], vocabulary: Vocabulary, shapes: Shapes
) -> list[Path]:
    """Write annotations.xml.

    Args:
        output: folder.
        images: with their labels.
        vocabulary: their classes.
        shapes: "polygons" or "masks".

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    path = output / "annotations.xml"
    with open_atomic(path) as file:
        file.write(_head(vocabulary).encode())
        for number, image in enumerate(images):
            height, width = image.labels.shape
            lines = [
                f'<image id="{number}" name={quoteattr(image.file)} width="{width}" '
                f'height="{height}">',
                *_shapes(image.labels, vocabulary, shapes),
                "</image>\n",
            ]
            file.write("\n".join(lines).encode())
        file.write(b"</annotations>\n")
    return [path]


def _head(vocabulary: Vocabulary) -> str:
    labels = "".join(
        f"<label><name>{escape(name)}</name><color>#{bytes(color).hex()}</color>"
        "<attributes></attributes></label>\n"
        for name, color in zip(vocabulary.names, vocabulary.colors, strict=True)
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
        f"<meta><task><labels>\n{labels}</labels></task></meta>\n"
    )


def _shapes(labels: np.ndarray, vocabulary: Vocabulary, shapes: Shapes) -> Iterator[str]:
    for k, mask in class_masks(labels):
        label = quoteattr(vocabulary.classes[k].name)
        common = f'label={label} source="auto" occluded="0" z_order="0"'
        if shapes == "masks":
            x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
            runs = ", ".join(map(str, _runs(mask[y : y + height, x : x + width])))
            box = f'left="{x}" top="{y}" width="{width}" height="{height}"'
            yield f'<mask {common} rle="{runs}" {box}></mask>'
        else:
            for polygon in trace_polygons(mask, "corners"):
                points = ";".join(f"{x},{y}" for x, y in polygon.tolist())
                yield f'<polygon {common} points="{points}"></polygon>'


def _runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a (H, W) bool mask, row by row, the first of False."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs
