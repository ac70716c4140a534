"""labelme json: each shape covers what labelme's converters give it, the later over the earlier."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pictures import huge_png
from PIL import Image

from tagclip.data.formats.annotation import paint
from tagclip.data.formats.labelme import class_names, read
from tagclip.errors import DatasetError

HEIGHT, WIDTH = 40, 60


def shape(label: str, kind: str | None, points: list, **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, **more}


def write(path: Path, shapes: list, **changes: Any) -> Path:
    tree = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": "x.jpg",
        "imageData": "not read",
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**tree, **changes}))
    return path


def png(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def mask_of(tmp_path: Path, *arguments: Any, **more: Any) -> np.ndarray:
    (image,) = read(write(tmp_path / "x.json", [shape("a", *arguments, **more)]))
    (segment,) = image.segments
    return segment.mask()


def test_shapes(tmp_path: Path) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    inside = (x >= 5) & (x <= 20) & (y >= 3) & (y <= 11)
    assert np.array_equal(mask_of(tmp_path, "rectangle", [[20, 11], [5, 3]]), inside)
    corners = [[5, 3], [20, 3], [20, 11], [5, 11]]
    # In any order: other programs begin elsewhere, or go around the other way.
    for ring in (corners, corners[::-1], [*corners[2:], *corners[:2]]):
        assert np.array_equal(mask_of(tmp_path, "rectangle", ring), inside)
    for kind in ("polygon", "oriented_rectangle", None):
        assert np.array_equal(mask_of(tmp_path, kind, corners), inside)
    distance = np.hypot(x - 30, y - 20)
    circle = mask_of(tmp_path, "circle", [[30, 20], [30, 12]])
    assert circle[distance < 7.5].all() and not circle[distance > 8.5].any()
    point = mask_of(tmp_path, "point", [[30, 20]])
    assert point[distance < 4.5].all() and not point[distance > 5.6].any()
    for kind in ("line", "linestrip"):
        line = mask_of(tmp_path, kind, [[10, 20], [50, 20]])
        assert set(line.sum(0)[12:48]) == {10}


def test_a_mask_lies_where_its_box_says(tmp_path: Path) -> None:
    part = np.random.default_rng(0).random((6, 9)) < 0.5
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[10:16, 20:29] = part
    found = mask_of(tmp_path, "mask", [[20, 10], [28, 15]], mask=png(part))
    assert np.array_equal(found, expected)
    cut = mask_of(tmp_path, "mask", [[-2, HEIGHT - 4], [6, HEIGHT + 1]], mask=png(part))
    expected[:] = False
    expected[HEIGHT - 4 :, :7] = part[:4, 2:]
    assert np.array_equal(cut, expected)


@pytest.mark.parametrize(
    "points", [[[58, 39], [50, 34]], [[50, 39], [58, 34]], [[58, 34], [50, 39]]]
)
def test_a_mask_lies_in_its_box_whatever_corners_are_named(
    tmp_path: Path, points: list[list[int]]
) -> None:
    part = np.random.default_rng(0).random((6, 9)) < 0.5
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[34:40, 50:59] = part
    assert np.array_equal(mask_of(tmp_path, "mask", points, mask=png(part)), expected)


def test_a_folder(tmp_path: Path) -> None:
    low = shape("tree", "rectangle", [[0, 0], [30, 30]])
    high = shape("_background_", "rectangle", [[0, 0], [59, 39]])
    void = shape("__ignore__", "rectangle", [[0, 0], [5, 5]])
    write(tmp_path / "s" / "a.json", [low, high, void], imagePath="..\\images\\a.jpg")
    write(tmp_path / "b.json", [shape("car", "rectangle", [[0, 0], [9, 9]]), low])
    assert class_names(tmp_path) == ("background", "car", "tree")
    second, first = read(tmp_path)
    assert (first.file, second.file) == ("s/a.jpg", "x.jpg")
    values = {"background": 0, "car": 1, "tree": 2}
    # Later over earlier, though larger.
    painted = paint(first, values, 255, 7)
    assert (painted[:6, :6] == 255).all() and set(np.unique(painted)) == {0, 255}
    assert set(np.unique(paint(second, values, 255, 7))) == {2, 7}
    for encoding in ("utf-8", "utf-8-sig"):
        text = "__ignore__\n_background_\ntree\ncar\n"
        (tmp_path / "labels.txt").write_text(text, encoding=encoding)
        assert (
            class_names(tmp_path)
            == class_names(tmp_path / "b.json")
            == ("background", "tree", "car")
        )


def test_a_file_without_size_asks_the_image(tmp_path: Path) -> None:
    write(tmp_path / "x.json", [], imageHeight=None, imageWidth=None)
    Image.new("RGB", (8, 5)).save(tmp_path / "x.jpg")
    assert [image.size for image in read(tmp_path)] == [(5, 8)]
    (tmp_path / "x.jpg").unlink()
    with pytest.raises(DatasetError, match=r"x\.jpg: no such image"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            shape("a", "star", [[1, 1]]),
            r"shapes\[0\]: shape_type is 'star', expected one of polygon",
        ),
        (
            shape("a", "polygon", [[1, 1], [2, 2]]),
            r"shapes\[0\]: found 2 points x, y of a polygon, expected 3 or more; remove",
        ),
        (shape("a", "linestrip", [[1, 1]]), "found 1 points x, y of a linestrip, expected 2 or mo"),
        *(
            (
                shape("a", kind, [[5, 5]] * number),
                f"found {number} .* of a {kind}, expected {right};",
            )
            for kind, number, right in (
                ("rectangle", 0, "2 or 4"),
                ("rectangle", 3, "2 or 4"),
                ("rectangle", 5, "2 or 4"),
                ("oriented_rectangle", 5, "4"),
                ("circle", 3, "2"),
                ("line", 3, "2"),
                ("point", 2, "1"),
                ("mask", 3, "2"),
            )
        ),
        (
            shape("a", "rectangle", [[5, 3], [20, 4], [20, 11], [5, 11]]),
            r"shapes\[0\]: found 4 points of a rectangle that are no corners of an upright box",
        ),
        (shape("a", "rectangle", [[5, 3], [5, 3], [20, 11], [20, 11]]), "are no corners of an upr"),
        (shape("a", "polygon", [[1], [2], [3]]), "found points of a polygon that are no x, y"),
        (shape("a", "polygon", [["x", 1]] * 3), "that are no x, y"),
        (shape("a", "polygon", [[10**400, 1]] * 3), "that are no x, y"),
        (shape("a", "polygon", [[1, 1], [2, 2, 2], [3, 3]]), "that are no x, y"),
        (shape("a", "polygon", [[1, 1], [2, 2], None, [3, 3]]), "that are no x, y"),
        (
            shape("a", "polygon", [[70, 1], [80, 1], [80, 9]]),
            "at x 70..80, y 1..9, outside the 60x40",
        ),
        (shape("a", "circle", [[90, 9], [92, 9]]), "found a circle at x 88..92"),
        (
            shape("a", "polygon", [[1, 1], [2, float("inf")], [3, 3]]),
            r"shapes\[0\]: found the coordinate inf, expected finite numbers",
        ),
        (shape("a", "mask", [[1, 1], [2, 2]], mask="????"), "mask is no readable png"),
        (shape("a", "mask", [[1, 1], [2, 2]]), "mask is None"),
        ({"points": []}, r"shapes\[0\]: label is None"),
        (3, r"shapes\[0\]: label is None"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, wrong: Any, message: str) -> None:
    path = write(tmp_path / "x.json", [wrong])
    with pytest.raises(DatasetError, match=message) as found:
        list(read(tmp_path))
    assert str(path) in str(found.value)


def test_a_mask_larger_than_pillow_opens(tmp_path: Path) -> None:
    mask = base64.b64encode(huge_png(20000)).decode()
    path = write(tmp_path / "x.json", [shape("a", "mask", [[1, 1], [2, 2]], mask=mask)])
    with pytest.raises(DatasetError, match="mask is no readable png") as found:
        list(read(tmp_path))
    assert str(path) in str(found.value)


def test_a_folder_without_json(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found no json files"):
        class_names(tmp_path)
