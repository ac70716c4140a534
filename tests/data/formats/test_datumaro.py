"""The json that datumaro wrote, and small changes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.annotated_scene import BOX, CAR, ELLIPSE, HEIGHT, SKY, TREE, WIDTH, painted
from helpers.paths import STORED
from PIL import Image

from tagclip.data.formats import datumaro
from tagclip.data.formats.annotation import paint
from tagclip.errors import DatasetError

FOLDER = STORED / "datumaro"
FILE = FOLDER / "annotations" / "train.json"
NAMES = ("tree", "car", "sky", "road")
VALUES = {name: index + 1 for index, name in enumerate(NAMES)}


@pytest.fixture
def content() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def write(tmp_path: Path, content: object, name: str = "train") -> Path:
    path = tmp_path / "annotations" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("path", [FOLDER, FILE])
def test_the_stored_export(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert datumaro.class_names(path) == NAMES
    (image,) = datumaro.read(path)
    assert (image.file, image.size) == ("train/sub_a.jpg", (HEIGHT, WIDTH))
    expected = [("road", ELLIPSE), ("tree", TREE), ("sky", SKY), ("car", CAR), ("road", BOX)]
    assert [segment.name for segment in image.segments] == [name for name, _ in expected]
    for segment, (name, mask) in zip(image.segments, expected, strict=True):
        # datumaro's ellipse reaches from (0, 4) to (6, 8), as that of the scene.
        assert (segment.mask() == mask).all(), name
        assert not segment.is_ignored
    layers = ((VALUES[name], mask) for name, mask in expected)
    assert (paint(image, VALUES, 255, 0) == painted(*layers)).all()
    assert "no class: 1 points, 1 polyline" in caplog.text and "1 label" not in caplog.text


def test_crowds_are_ignored(tmp_path: Path, content: dict[str, Any]) -> None:
    content["items"][0]["annotations"][2]["attributes"] = {"is_crowd": True}
    (image,) = datumaro.read(write(tmp_path, content))
    assert [segment.is_ignored for segment in image.segments] == [False] * 3 + [True, False]
    assert (paint(image, VALUES, 255, 0)[CAR & ~BOX] == 255).all()


@pytest.mark.parametrize(
    ("there", "path", "found"),
    [
        ("images/train/sub_a.jpg", "sub_a.jpg", "train/sub_a.jpg"),
        ("images/sub_a.jpg", "sub_a.jpg", "sub_a.jpg"),
        ("images/train/sub/a.jpg", None, "train/sub/a.jpg"),
    ],
)
def test_names_of_images(
    tmp_path: Path, content: dict[str, Any], there: str, path: str | None, found: str
) -> None:
    content["items"][0]["image"] = {"path": path}
    file = tmp_path / there
    file.parent.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(file)
    write(tmp_path, content)
    # Without a size that of the file counts.
    (image,) = datumaro.read(tmp_path)
    assert (image.file, image.size) == (found, (HEIGHT, WIDTH))
    (image,) = datumaro.read(tmp_path, tmp_path / "images")
    assert image.file == found


def test_subsets_follow_each_other(tmp_path: Path, content: dict[str, Any]) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    write(tmp_path, content, "val")
    assert [i.file for i in datumaro.read(tmp_path)] == ["train/sub_a.jpg", "val/sub_a.jpg"]
    content["categories"]["label"]["labels"].reverse()
    write(tmp_path, content, "val")
    with pytest.raises(DatasetError, match="val.json: found the labels road, sky, car, tree, exp"):
        list(datumaro.read(tmp_path))


def annotation(index: int, **changes: object):
    def apply(content: dict[str, Any]) -> None:
        content["items"][0]["annotations"][index] |= changes

    return apply


def item(**changes: object):
    return lambda content: content["items"][0].update(changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.pop("dm_format_version"), "found dm_format_version None, expected 1.0"),
        (lambda c: c.update(dm_format_version="2.0"), "found dm_format_version '2.0'"),
        (lambda c: c.pop("categories"), "found damaged annotations .KeyError: 'categories'"),
        (lambda c: c.update(items=3), "found damaged annotations"),
        (lambda c: c.update(items=[3]), "found damaged annotations"),
        (annotation(0, label_id=4), "sub/a: found label_id 4, expected 0..3"),
        (annotation(0, label_id=-1), "sub/a: found label_id -1, expected 0..3"),
        (annotation(0, label_id=True), "sub/a: found label_id True, expected 0..3"),
        (annotation(0, points=[1, 2, 3]), "found a polygon of 3 numbers"),
        (
            annotation(0, attributes={"is_crowd": "false"}),
            "sub/a: attributes: is_crowd is 'false', expected 0, 1, true or false",
        ),
        (annotation(1, rle={"counts": "a", "size": [9, 13]}), "a mask of 13x9 pixels, expected 12"),
        (annotation(1, rle={"counts": [5, 5], "size": [9, 12]}), "run lengths of 10 pixels"),
        (annotation(3, bbox=[1, 2, 3]), "found damaged annotations"),
        (item(image=None), "found no image, expected one"),
        (item(image={"path": "a.jpg", "size": [0, 4]}), "found the image size 4 x 0"),
        (item(image={"path": "a.jpg"}), "no such image"),
        (item(image={"path": "../../a.jpg", "size": [9, 12]}), "found the image name"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, content: dict[str, Any], damage, message: str) -> None:
    damage(content)
    path = write(tmp_path, content)
    with pytest.raises(DatasetError, match=message) as raised:
        list(datumaro.read(path))
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_a_damaged_code_is_found_when_it_is_painted(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    content["items"][0]["annotations"][1]["rle"]["counts"] = "a0"
    path = write(tmp_path, content)
    with pytest.raises(DatasetError) as raised:
        (image,) = datumaro.read(path)
        paint(image, VALUES, 255, 0)
    assert str(raised.value).startswith(f"{path}: ")


def test_annotations_without_a_label_are_counted(
    tmp_path: Path, content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    annotation(1, label_id=None)(content)
    (image,) = datumaro.read(write(tmp_path, content))
    assert np.count_nonzero(paint(image, VALUES, 255, 0) == 1) == 0
    assert "no class: 1 mask without a label, 1 points, 1 polyline" in caplog.text
    assert "not read" not in caplog.text


def test_kinds_that_are_not_read_are_called_so(
    tmp_path: Path, content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    annotation(1, type="rotated_bbox")(content)
    list(datumaro.read(write(tmp_path, content)))
    assert "for it covers no pixels or has no class: 1 points, 1 polyline\n" in caplog.text
    said = "for this kind is not read: 1 rotated_bbox; export it as polygons or masks\n"
    assert said in caplog.text


@pytest.mark.parametrize("degrees", [90.0, -90, None])
def test_boxes_are_turned_as_cvat_says(
    tmp_path: Path, content: dict[str, Any], degrees: float | None
) -> None:
    box = {"id": 0, "type": "bbox", "label_id": 0, "bbox": [2, 3, 6, 2]}
    box["attributes"] = {"occluded": False, "rotation": degrees}
    content["items"][0]["annotations"] = [box]
    (image,) = datumaro.read(write(tmp_path, content))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    if degrees is None:
        expected[3:5, 2:8] = True
    else:
        expected[1:7, 4:6] = True
    assert np.array_equal(image.segments[0].mask(), expected)


def test_boxes_are_turned_clockwise(tmp_path: Path, content: dict[str, Any]) -> None:
    box = {"id": 0, "type": "bbox", "label_id": 0, "bbox": [1, 4, 10, 1]}
    content["items"][0]["annotations"] = [{**box, "attributes": {"rotation": 30}}]
    (image,) = datumaro.read(write(tmp_path, content))
    y, x = np.nonzero(image.segments[0].mask())
    # Down to the right, as y points down.
    assert np.corrcoef(x, y)[0, 1] > 0.8


def test_no_export(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found no annotations/.*json"):
        datumaro.class_names(tmp_path)


def test_ellipses_are_turned_too(tmp_path: Path, content: dict[str, Any]) -> None:
    ellipse = {"id": 0, "type": "ellipse", "label_id": 0}
    masks = []
    for points, attributes in (([2, 3, 8, 5], {"rotation": 90}), ([4, 1, 6, 7], {})):
        change = {**ellipse, "points": points, "attributes": attributes}
        content["items"][0]["annotations"] = [change]
        (image,) = datumaro.read(write(tmp_path, content))
        masks.append(image.segments[0].mask())
    assert np.array_equal(*masks) and masks[0].sum(0).max() > masks[0].sum(1).max()
