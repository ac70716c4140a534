"""What we write for a tool, our reader of that tool takes back, to the pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary

from tagclip.data.formats import reader
from tagclip.data.formats.annotation import paint
from tagclip.data.formats.cvat_out import write_cvat
from tagclip.data.formats.label_studio_out import write_label_studio
from tagclip.data.formats.labelme_out import write_labelme
from tagclip.evaluation.coco_json import write_coco

WRITERS = {"cvat": write_cvat, "label-studio": write_label_studio, "labelme": write_labelme}


@pytest.mark.parametrize(
    ("tool", "shapes"),
    [("coco", ""), *((tool, shapes) for tool in WRITERS for shapes in ("polygons", "masks"))],
)
def test_written_and_read(tmp_path: Path, tool: str, shapes: str) -> None:
    images = labelled_images(tmp_path / "images")
    if tool == "coco":
        written = write_coco(tmp_path / "out", images, odd_vocabulary())
    else:
        written = WRITERS[tool](tmp_path / "out", images, odd_vocabulary(), shapes)
    if tool == "label-studio":
        # As if all were accepted.
        tasks = json.loads(written[0].read_text())
        written[0].write_text(
            json.dumps([task | {"annotations": task["predictions"]} for task in tasks])
        )
    module = reader(tool)
    assert set(module.class_names(written[0])) == set(NAMES)
    values = {name: k for k, name in enumerate(NAMES)}
    found = {image.file: image for image in module.read(written[0], tmp_path / "images")}
    assert found.keys() == {image.file for image in images}
    for image in images:
        read = paint(found[image.file], values, ignore_label=254, unlabelled=255)
        assert (read == np.where(image.labels < 0, 255, image.labels)).all(), image.file
