"""CVAT's SDK decodes the masks that we write."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from cvat_sdk.masks import decode_mask, encode_mask
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary

from tagclip.data.formats.cvat_out import write_cvat


def test_masks(tmp_path: Path) -> None:
    images = labelled_images(tmp_path / "images")
    (path,) = write_cvat(tmp_path, images, odd_vocabulary(), "masks")
    elements = ElementTree.parse(path).findall("image")
    for element, image in zip(elements, images, strict=True):
        height, width = image.labels.shape
        painted = np.full((height, width), -1)
        for shape in element:
            runs = list(map(int, shape.get("rle").split(",")))
            x, y, w, h = (int(shape.get(key)) for key in ("left", "top", "width", "height"))
            # As the server turns the attributes into points.
            points = [*runs, x, y, x + w - 1, y + h - 1]
            mask = decode_mask(points, image_width=width, image_height=height).astype(bool)
            assert list(map(int, encode_mask(mask))) == points
            painted[mask] = NAMES.index(shape.get("label"))
        assert (painted == image.labels).all()
