"""Labels as tasks of Label Studio with pre-annotations, and the labelling config that shows them.

Polygons are those of `trace_polygons` with corners of pixels as vertices, in percent of the image;
a mask is one brush region per class, in the run-length code of @thi.ng/rle-pack
(https://github.com/thi-ng/umbrella, packages/rle-pack): 32 bits for the number of bytes, 5 for the
bits of a byte less 1, four times 4 for the bits of a length less 1; then for each run a bit, two
bits which of the four sizes its length has, the length less 1, and the byte.
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
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import open_atomic, write_atomic
from tagclip.utils.text import json_text

__all__ = ["IMAGE_URL", "encode_brush", "write_label_studio"]

# Of Label Studio's local storage; below it is a path in LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
IMAGE_URL = "/data/local-files/?d="
_TAGS = {"polygons": "polygonlabels", "masks": "brushlabels"}
_ELEMENTS = {"polygons": "PolygonLabels", "masks": "BrushLabels"}
# Bits of a length, as Label Studio's own encoder has them.
_SIZES = np.array([3, 4, 8, 16])


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
        yield {"format": "rle", "rle": list(encode_brush(mask))}
        return
    height, width = mask.shape
    for polygon in trace_polygons(mask, "corners"):
        yield {"points": (polygon / (width, height) * 100).tolist(), "closed": True}


def encode_brush(mask: np.ndarray) -> bytes:
    """Encode a (H, W) bool mask as ``value.rle`` of a brush region.

    Each pixel has four bytes, red, green, blue and alpha, all 255 on the mask and 0 elsewhere.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff([*starts, flat.size]) * 4
    # A run is at most as long as the largest size can say.
    longest = 1 << int(_SIZES[-1])
    pieces = -(-lengths // longest)
    values = np.repeat(flat[starts], pieces)
    rest = lengths - (pieces - 1) * longest
    lengths = np.full(len(values), longest)
    lengths[np.cumsum(pieces) - 1] = rest
    kinds = np.searchsorted(1 << _SIZES, lengths)
    sizes = _SIZES[kinds]
    # A block: 1, its kind in 2 bits, the length, the byte; its bits count from the left.
    codes = (((4 | kinds) << sizes | (lengths - 1)) << 8) | np.where(values, 255, 0)
    counts = 3 + sizes + 8
    head = f"{4 * flat.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    ends = np.cumsum(counts)
    shifts = np.repeat(ends, counts) - 1 - np.arange(ends[-1])
    bits = (np.repeat(codes, counts) >> shifts) & 1
    return np.packbits(np.concatenate([[c == "1" for c in head], bits.astype(bool)])).tobytes()
