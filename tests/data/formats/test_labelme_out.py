"""labelme's json: as labelme 6 checks it on reading, and painted as it paints (Pillow)."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary
from PIL import Image, ImageDraw

from tagclip.data.formats.labelme_out import write_labelme


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_the_files(tmp_path: Path, shapes: str) -> None:
    images = labelled_images(tmp_path / "images")
    assert write_labelme(tmp_path / "out", images, odd_vocabulary(), shapes) == [tmp_path / "out"]
    assert (tmp_path / "out" / "labels.txt").read_text().splitlines() == NAMES
    for image in images:
        path = tmp_path / "out" / f"{image.stem}.json"
        content = json.loads(path.read_text())
        height, width = image.labels.shape
        assert content.keys() == {
            "version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"
        }  # fmt: skip
        assert (content["imageHeight"], content["imageWidth"]) == (height, width)
        assert content["imageData"] is None and "\\" not in content["imagePath"]
        assert (path.parent / content["imagePath"]).samefile(image.path)
        painted = np.full((height, width), -1)
        for shape in content["shapes"]:
            assert shape["shape_type"] == shapes[:-1] and shape["flags"] == {}
            mask = read_mask(shape, height, width)
            assert mask.any() and (painted[mask] == -1).all()
            painted[mask] = NAMES.index(shape["label"])
        assert (painted == image.labels).all()


def read_mask(shape: dict, height: int, width: int) -> np.ndarray:
    """The pixels of a shape."""
    image = Image.new("1", (width, height))
    if shape["shape_type"] == "polygon":
        assert len(shape["points"]) >= 3
        points = [(float(x), float(y)) for x, y in shape["points"]]
        ImageDraw.Draw(image).polygon(points, outline=1, fill=1)
    else:
        (x0, y0), (x1, y1) = shape["points"]
        part = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
        assert part.size == (x1 - x0 + 1, y1 - y0 + 1)
        image.paste(part.convert("1"), (x0, y0))
    return np.array(image)
