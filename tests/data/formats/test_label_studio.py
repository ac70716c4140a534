"""Exports as Label Studio's converter wrote them; choices and damage as small changes of them."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.annotated_scene import CAR, ELLIPSE, HEIGHT, LINE, SKY, SPOT, TREE, WIDTH, painted
from helpers.paths import STORED
from PIL import Image

from tagclip.data.formats import label_studio, label_studio_png
from tagclip.data.formats.annotation import paint
from tagclip.errors import DatasetError

FILES = STORED / "label_studio"
NAMES = ("car (old)", "road/wet", "sky", "tree")
VALUES = {name: index + 1 for index, name in enumerate(NAMES)}


@pytest.fixture
def task() -> dict[str, Any]:
    return json.loads((FILES / "json.json").read_text())[0]


def region(kind: str, label: str, **value: object) -> dict[str, Any]:
    value |= {f"{kind}labels": [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"id": "x", "type": f"{kind}labels", "value": value, **size}


def read(tmp_path: Path, *tasks: dict[str, Any], images: Path | None = None) -> list:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(list(tasks)))
    return list(label_studio.read(path, images))


@pytest.mark.parametrize("name", ["json.json", "json_min.json"])
def test_stored_exports(name: str) -> None:
    assert label_studio.class_names(FILES / name) == NAMES
    (image,) = label_studio.read(FILES / name)
    assert (image.file, image.size) == ("0a1b2c3d-a.png", (HEIGHT, WIDTH))
    names = ["tree", "road/wet", "car (old)", "tree", "sky"]
    assert [segment.name for segment in image.segments] == names
    for segment, mask in zip(image.segments, (TREE, LINE, CAR, SPOT, SKY), strict=True):
        assert (pickle.loads(pickle.dumps(segment)).mask() == mask).all()
    # Larger areas first: 40, 24, 24 (the later one over the earlier), 12, 2 pixels.
    expected = painted((1, CAR), (4, TREE), (3, SKY), (2, LINE), (4, SPOT))
    assert (paint(image, VALUES, 255, 0) == expected).all()


def test_stored_masks(tmp_path: Path) -> None:
    """One file per region, with 0 and 255 or 0 and 128; the polygon is not among them."""
    assert label_studio_png.class_names(FILES / "png") == ("car (old)", "road-wet", "tree")
    (image,) = label_studio_png.read(FILES / "png")
    assert (image.file, image.size) == ("task-7", (HEIGHT, WIDTH))
    found = {}
    for segment in image.segments:
        found[segment.name] = found.get(segment.name, False) | segment.mask()
    assert found.keys() == {"car (old)", "road-wet", "tree"}
    assert (found["tree"] == TREE | SPOT).all()
    assert (found["car (old)"] == CAR).all() and (found["road-wet"] == LINE).all()
    # With the json beside it, the image has its name.
    shutil.copytree(FILES / "png", tmp_path / "png")
    shutil.copy(FILES / "json.json", tmp_path / "png" / "project.json")
    (named,) = label_studio_png.read(tmp_path / "png")
    assert named.file == "0a1b2c3d-a.png"


def test_the_newest_masks_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for annotation, value in ((9, 5), (10, 7)):
        mask = np.zeros((3, 4), np.uint8)
        mask[:, : annotation - 8] = value
        name = f"task-12-annotation-{annotation}-by-a@b.c-tag-x-y-0.png"
        Image.fromarray(mask).save(tmp_path / name)
    (image,) = label_studio_png.read(tmp_path)
    assert [(s.name, s.mask().sum()) for s in image.segments] == [("x-y", 6)]
    assert "1 tasks have several annotations" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "found no PNG"),
        (["mask.png"], "mask.png: found this name, expected task-N-annotation"),
        (["task-1-annotation-2-by-3-tag-a-0.png"], "cannot decode this mask"),
    ],
)
def test_folders_without_masks(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"no png")
    with pytest.raises(DatasetError, match=message):
        list(label_studio_png.read(tmp_path))


def test_colour_is_no_mask(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "task-1-annotation-2-by-3-tag-a-0.png")
    (image,) = label_studio_png.read(tmp_path)
    with pytest.raises(DatasetError, match="found the mode RGB, expected gray"):
        image.segments[0].mask()


def test_rectangles_and_ellipses(tmp_path: Path, task: dict[str, Any]) -> None:
    ellipse = {"x": 300 / WIDTH, "y": 600 / HEIGHT, "radiusX": 300 / WIDTH, "radiusY": 200 / HEIGHT}
    box = {"x": 0, "y": 0, "width": 50, "height": 400 / HEIGHT, "rotation": 0}
    # Around its first corner, (6, 0), by a quarter: what is right of it comes below.
    turned = {**box, "x": 50, "width": 100 * 4 / WIDTH, "height": 600 / HEIGHT, "rotation": 90}
    task["annotations"][0]["result"] = [
        region("ellipse", "a", **ellipse),
        region("rectangle", "b", **box),
        region("rectangle", "c", **turned),
    ]
    (image,) = read(tmp_path, task)
    for segment, mask in zip(image.segments, (ELLIPSE, SKY, SKY), strict=True):
        assert (segment.mask() == mask).all(), segment.name


def test_brush_beside_labels(tmp_path: Path, task: dict[str, Any]) -> None:
    """Two results of one id: the first has no label, the other repeats the region, or not."""
    brush = task["annotations"][0]["result"][0]["value"]
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    bare = {"format": "rle", "rle": brush["rle"]}
    task["annotations"][0]["result"] = [
        {"id": "1", "type": "brush", "value": bare, **size},
        {"id": "1", "type": "labels", "value": {**bare, "labels": ["tree"]}, **size},
        {"id": "2", "type": "brush", "value": bare, **size},
        {"id": "2", "type": "labels", "value": {"labels": ["car"]}, **size},
    ]
    (image,) = read(tmp_path, task)
    assert [segment.name for segment in image.segments] == ["tree", "tree", "car"]
    assert all((segment.mask() == TREE).all() for segment in image.segments)


def test_what_has_no_area_is_counted(
    tmp_path: Path, task: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    brush = task["annotations"][0]["result"][0]
    unlabelled = {**brush, "id": "y", "value": {**brush["value"], "brushlabels": []}}
    task["annotations"][0]["result"] += [
        region("keypoint", "nose", x=10, y=10, width=1),
        region("polygon", "path", points=[[0, 0], [9, 9], [20, 20]], closed=False),
        unlabelled,
        {"id": "c", "type": "choices", "value": {"choices": ["night"]}},
    ]
    (image,) = read(tmp_path, task)
    assert len(image.segments) == 5
    assert "3 regions" in caplog.text
    assert label_studio.class_names(tmp_path / "export.json") == NAMES


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ([{"created_at": "2026-01-02"}, {"created_at": "2026-01-03"}], "new"),
        ([{"created_at": "2026-01-04"}, {"created_at": "2026-01-03"}], "old"),
        ([{"created_at": "1", "updated_at": "3"}, {"created_at": "2", "updated_at": "2"}], "old"),
        ([{"ground_truth": True, "created_at": "1"}, {"created_at": "2"}], "old"),
        ([{"created_at": "1"}, {"created_at": "2", "was_cancelled": True}], "old"),
    ],
)
def test_the_annotation_that_counts(
    tmp_path: Path,
    task: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    changes: list[dict[str, Any]],
    label: str,
) -> None:
    old = task["annotations"][0]
    old["result"] = old["result"][:1]
    new = copy.deepcopy(old)
    for annotation, change, name in zip((old, new), changes, ("old", "new"), strict=True):
        annotation["result"][0]["value"]["brushlabels"] = [name]
        annotation |= change
    task["annotations"] = [old, new]
    (image,) = read(tmp_path, task)
    assert [segment.name for segment in image.segments] == [label]
    assert ("several annotations" in caplog.text) == (not new.get("was_cancelled"))
    assert label_studio.class_names(tmp_path / "export.json") == (label,)


def test_several_annotations_of_json_min(tmp_path: Path) -> None:
    (first,) = json.loads((FILES / "json_min.json").read_text())
    second = {**first, "updated_at": "2027-01-01", "tag": first["tag"][:1], "poly": []}
    (image,) = read(tmp_path, first, second)
    assert [segment.name for segment in image.segments] == ["tree"]


def test_predictions_do_not_count(tmp_path: Path, task: dict[str, Any]) -> None:
    task["predictions"], task["annotations"] = task["annotations"], []
    with pytest.raises(DatasetError, match="found no annotation.*accept them in Label Studio"):
        read(tmp_path, task)


def fileuri(address: str) -> str:
    return base64.urlsafe_b64encode(address.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("address", "alone", "there", "found"),
    [
        ("/data/upload/1/0a1b2c3d-a.png", "0a1b2c3d-a.png", "0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("/data/upload/1/0a1b2c3d-a.png", "0a1b2c3d-a.png", "a.png", "a.png"),
        ("/data/upload/1/0a1b2c3d-a%20b.png", "0a1b2c3d-a b.png", "a b.png", "a b.png"),
        ("/data/local-files/?d=set/x/a%20b.png", "set/x/a b.png", "x/a b.png", "x/a b.png"),
        ("/data/local-files/?d=set\\x\\a.png", "set/x/a.png", "a.png", "a.png"),
        ("s3://bucket/x/y/a.png", "x/y/a.png", "y/a.png", "y/a.png"),
        ("https://host/x/a.jpg?token=1", "x/a.jpg", "a.jpg", "a.jpg"),
        (
            f"/tasks/7/resolve/?fileuri={fileuri('gs://bucket/x/a.png')}",
            "x/a.png",
            "a.png",
            "a.png",
        ),
        ("x/a#1.png", "x/a#1.png", "x/a#1.png", "x/a#1.png"),
    ],
)
def test_names_of_images(
    tmp_path: Path, task: dict[str, Any], address: str, alone: str, there: str, found: str
) -> None:
    task["data"] = {"image": address, "note": "some text", "number": 3}
    assert read(tmp_path, task)[0].file == alone
    file = tmp_path / "images" / there
    file.parent.mkdir(parents=True)
    file.touch()
    assert read(tmp_path, task, images=tmp_path / "images")[0].file == found


def test_sizes_of_the_files_where_there_are_no_others(tmp_path: Path, task: dict[str, Any]) -> None:
    for result in task["annotations"][0]["result"]:
        del result["original_width"], result["original_height"]
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    (image,) = read(tmp_path, task, images=tmp_path)
    assert image.size == (HEIGHT, WIDTH)
    assert (image.segments[0].mask() == TREE).all()


def change(**changes: object):
    def apply(task: dict[str, Any]) -> None:
        result = task["annotations"][0]["result"][0]
        for key, value in changes.items():
            (result["value"] if key in ("rle", "brushlabels") else result)[key] = value

    return apply


def no_sizes(task: dict[str, Any]) -> None:
    for result in task["annotations"][0]["result"]:
        del result["original_width"], result["original_height"]


def far_away(task: dict[str, Any]) -> None:
    task["annotations"][0]["result"][4]["value"]["points"] = [[200, 200], [300, 200], [200, 300]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(rle=[0, 0]), "task 7: found a brush that ends after 2 bytes"),
        (
            change(rle=[0, 0, 1, 128, 57, 27, 254, 55]),
            "found a brush of 384 values .* expected 432",
        ),
        (change(rle=[300] * 8), "found damaged annotations"),
        (change(original_width=13), "task 7: found regions of images of 2 sizes"),
        (change(original_height=None), "found the image size 12 x None, expected width and height"),
        (no_sizes, "found no original_width and original_height.*name the folder"),
        (change(image_rotation=90), "turned by 90 degrees, expected 0"),
        (change(item_index=1), "found several images in one task"),
        (change(brushlabels=["a", "b"]), "found a region with the labels a, b, expected one"),
        (change(value={"imageDataURL": "data:"}), "found a region of the Bitmask tool"),
        (lambda task: task.update(data={}), "found 0 addresses of images"),
        (lambda task: task.update(data={"a": "a.png", "b": "b.png"}), "found 2 addresses"),
        (lambda task: task.update(data={"a": "../../a.png"}), "found the image name '../../a.png'"),
        (lambda task: task.update(annotations=[3]), "found damaged annotations"),
        (far_away, "found a polygon at x 24..36, y 18..27, outside the 12x9 image"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, task: dict[str, Any], damage, message: str) -> None:
    damage(task)
    with pytest.raises(DatasetError, match=message) as raised:
        read(tmp_path, task)
    assert str(raised.value).startswith(f"{tmp_path / 'export.json'}: ")
    assert "\n" not in str(raised.value)


def test_a_code_that_ends_early_is_found_when_it_is_painted(
    tmp_path: Path, task: dict[str, Any]
) -> None:
    del task["annotations"][0]["result"][0]["value"]["rle"][-5:]
    (image,) = read(tmp_path, task)
    with pytest.raises(DatasetError, match="export.json: found a brush that ends after 2. bytes"):
        paint(image, VALUES, 255, 0)


@pytest.mark.parametrize("content", ["", "{", "3", "[[]]", '{"a": 1}'])
def test_other_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    for function in (label_studio.class_names, lambda path: list(label_studio.read(path))):
        with pytest.raises(DatasetError, match=r"a\.json: found "):
            function(path)


def test_nothing_is_logged_without_need(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        list(label_studio.read(FILES / "json.json"))
    assert not caplog.text
