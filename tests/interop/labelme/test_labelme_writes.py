"""labelme: what its writer writes is painted as its own converter paints it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelme._label_file import read_label_file, write_label_file
from labelme.utils import img_arr_to_b64, shapes_to_label
from PIL import Image

from tagclip.data.formats.annotation import paint
from tagclip.data.formats.labelme import class_names, read

HEIGHT, WIDTH = 60, 80
POINTS = {"polygon": 5, "oriented_rectangle": 4, "rectangle": 2, "circle": 2, "line": 2}
POINTS |= {"linestrip": 4, "point": 1}


def random_shapes(rng: np.random.Generator) -> list[dict]:
    """Every kind, with points between pixels; some circles reach beyond the border."""
    shapes = []
    for kind, number in [*POINTS.items(), *POINTS.items()]:
        points = (rng.random((number, 2)) * (WIDTH - 1, HEIGHT - 1)).tolist()
        shapes.append({"shape_type": kind, "points": points})
    mask = rng.random((11, 17)) < 0.6
    box = [[20.4, 30.7], [36.2, 40.9]]
    png = img_arr_to_b64(mask.astype(np.uint8))
    shapes.append({"shape_type": "mask", "points": box, "mask": png})
    order = rng.permutation(len(shapes))
    return [{"label": "abcde"[i % 5], "flags": {}, "group_id": None, **shapes[i]} for i in order]


@pytest.mark.parametrize("seed", range(20))
def test_shapes_are_painted_as_labelme_does(tmp_path: Path, seed: int) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "x.jpg")
    json_file = tmp_path / "x.json"
    write_label_file(
        str(json_file),
        shapes=random_shapes(np.random.default_rng(seed)),
        image_path="x.jpg",
        image_height=HEIGHT if seed % 2 else None,
        image_width=WIDTH if seed % 2 else None,
    )
    assert json.loads(json_file.read_text())["version"] == "6.3.1"
    names = class_names(tmp_path)
    values = {name: index + 1 for index, name in enumerate(names)}
    expected, _ = shapes_to_label((HEIGHT, WIDTH), read_label_file(str(json_file)).shapes, values)
    (image,) = read(tmp_path)
    assert np.array_equal(paint(image, values, 255, 0), expected)
    assert len(np.unique(expected)) > 3
