"""Labels as tasks of Label Studio with pre-annotations, and the labelling config that shows them.

Polygons are those of `trace_polygons` with corners of pixels as vertices, in percent of the image;
a mask is one brush region per class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from tagclip.data.formats.labelled_image import LabelledImage, Shapes, class_masks
from tagclip.data.formats.polygons import trace_polygons
from tagclip.data.formats.rle_pack import encode_rle_pack
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import open_atomic, write_atomic
from tagclip.utils.text import json_text

__all__ = ["IMAGE_URL", "write_label_studio"]

# Of Label Studio's local storage; below it is a path in LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
IMAGE_URL = "/data/local-files/?d="
_TAGS = {"polygons": "polygonlabels", "masks": "brushlabels"}
_ELEMENTS = {"polygons": "PolygonLabels", "masks": "BrushLabels"}


def write_label_studio(
    output: Path,
    images: Iterable[LabelledImage],
    vocabulary: Vocabulary,
    shapes: Shapes,
    image_url: str = IMAGE_URL,
) -> list[Path]:
    """Write tasks.json and label_config.xml.

    Args:
        output: folder.
        images: with their labels.
        vocabulary: their classes.
        shapes: "polygons" or "masks".
        image_url: what stands before the file of an image in its task.

    Returns:
        Both files.

    Raises:
        OSError: one cannot be written.
    """
    tasks, config = output / "tasks.json", output / "label_config.xml"
    write_atomic(config, _config(vocabulary, shapes))
    with open_atomic(tasks) as file:
        file.write(b"[")
        between = "\n"
        for image in images:
            prediction = {
                "model_version": "TagCLIP",
                "result": list(_results(image.labels, vocabulary, shapes)),
            }
            data = {"image": image_url + quote(image.file)}
            file.write(
                f"{between}{json_text({'data': data, 'predictions': [prediction]})}".encode()
            )
            between = ",\n"
        file.write(b"\n]\n")
    return [tasks, config]


def _config(vocabulary: Vocabulary, shapes: Shapes) -> str:
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(color).hex()}"/>\n'
        for name, color in zip(vocabulary.names, vocabulary.colors, strict=True)
    )
    element = _ELEMENTS[shapes]
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <{element} name="label" toName="image">\n{labels}  </{element}>\n</View>\n'
    )


def _results(
    labels: np.ndarray, vocabulary: Vocabulary, shapes: Shapes
) -> Iterator[dict[str, Any]]:
    height, width = labels.shape
    common = {
        "from_name": "label",
        "to_name": "image",
        "type": _TAGS[shapes],
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    values = ((k, value) for k, mask in class_masks(labels) for value in _values(mask, shapes))
    for number, (k, value) in enumerate(values):
        value[_TAGS[shapes]] = [vocabulary.classes[k].name]
        yield {"id": f"region{number}", **common, "value": value}


def _values(mask: np.ndarray, shapes: Shapes) -> Iterator[dict[str, Any]]:
    if shapes == "masks":
        yield {"format": "rle", "rle": list(encode_rle_pack(mask))}
        return
    height, width = mask.shape
    for polygon in trace_polygons(mask, "corners"):
        yield {"points": (polygon / (width, height) * 100).tolist(), "closed": True}
