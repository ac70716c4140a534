"""The xml of "CVAT for images 1.1": its elements and attributes, and the pixels that they mean."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary
from pycocotools import mask as coco_mask

from tagclip.data.formats.cvat_out import write_cvat

COMMON = {"label", "source", "occluded", "z_order"}


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_the_file(tmp_path: Path, shapes: str) -> None:
    images = labelled_images(tmp_path / "images")
    (path,) = write_cvat(tmp_path, images, odd_vocabulary(), shapes)
    root = ElementTree.parse(path).getroot()
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    labels = root.findall("meta/task/labels/label")
    assert [label.findtext("name") for label in labels] == NAMES
    colors = [bytes.fromhex(label.findtext("color")[1:]) for label in labels]
    assert (np.array([list(color) for color in colors]) == odd_vocabulary().colors).all()
    found = root.findall("image")
    assert [element.get("id") for element in found] == list("01234")
    for element, image in zip(found, images, strict=True):
        assert element.get("name") == image.file
        size = int(element.get("height")), int(element.get("width"))
        assert size == image.labels.shape
        painted = np.full(size, -1)
        for shape in element:
            mask = read_mask(shape, size)
            assert mask.any() and (painted[mask] == -1).all()
            painted[mask] = NAMES.index(shape.get("label"))
        assert (painted == image.labels).all()


def read_mask(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a shape, by the definitions of CVAT's documentation."""
    if shape.tag == "polygon":
        assert set(shape.keys()) == COMMON | {"points"}
        points = [float(v) for pair in shape.get("points").split(";") for v in pair.split(",")]
        return coco_mask.decode(coco_mask.frPyObjects([points], *size))[..., 0] > 0
    assert shape.tag == "mask"
    assert set(shape.keys()) == COMMON | {"rle", "left", "top", "width", "height"}
    left, top, width, height = (int(shape.get(k)) for k in ("left", "top", "width", "height"))
    runs = list(map(int, shape.get("rle").split(",")))
    assert sum(runs) == width * height and all(runs[1:])
    mask = np.zeros(size, bool)
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    mask[top : top + height, left : left + width] = flat.reshape(height, width)
    return mask
