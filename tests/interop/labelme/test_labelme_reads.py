"""labelme: its own reader and painting give the predicted pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary
from labelme._label_file import read_label_file
from labelme.utils import shapes_to_label

from tagclip.data.formats.labelme_out import write_labelme


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_labelme_paints_the_same_pixels(tmp_path: Path, shapes: str) -> None:
    images = labelled_images(tmp_path / "images")
    write_labelme(tmp_path / "out", images, odd_vocabulary(), shapes)
    values = {name: k + 1 for k, name in enumerate(NAMES)}
    for image in images:
        # Checks the size of the image, which it finds itself.
        data = read_label_file(str(tmp_path / "out" / f"{image.stem}.json"))
        assert data.image_data == image.path.read_bytes()
        labels, _ = shapes_to_label(image.labels.shape, data.shapes, values)
        assert (labels - 1 == image.labels).all(), image.file
        for shape in data.shapes:
            single, _ = shapes_to_label(image.labels.shape, [shape], values)
            inside = image.labels[single > 0]
            assert np.unique(inside).tolist() == [NAMES.index(shape["label"])]
