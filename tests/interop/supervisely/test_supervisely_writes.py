"""Supervisely's SDK writes a project of one scene and draws it; we paint the same pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import supervisely as sly
from helpers.annotated_scene import CAR, HEIGHT, SPOT, TREE, WIDTH
from helpers.paths import STORED

from tagclip.data.formats import reader
from tagclip.data.formats.annotation import paint

CLASSES = [
    sly.ObjClass("tree", sly.Bitmap, [0, 128, 0]),
    sly.ObjClass("car", sly.Bitmap, [0, 0, 142]),
    sly.ObjClass("sky", sly.Polygon, [70, 130, 180]),
    sly.ObjClass("sign", sly.Rectangle, [220, 220, 0]),
    sly.ObjClass("nose", sly.Point, [255, 0, 0]),
]


def annotation() -> sly.Annotation:
    tree, car, sky, sign, nose = CLASSES
    outline, hole = [[0, 0], [0, 5], [4, 8], [6, 1]], [[2, 2], [2, 4], [4, 4]]
    figures = [
        sly.Label(sly.Polygon(outline, [hole]), sky),
        sly.Label(sly.Bitmap(TREE), tree),
        sly.Label(sly.Bitmap(CAR), car),
        sly.Label(sly.Bitmap(SPOT), tree),
        sly.Label(sly.Rectangle(5, 9, 8, 11), sign),
        sly.Label(sly.Point(1, 1), nose),
    ]
    return sly.Annotation((HEIGHT, WIDTH), figures)


def write(folder: Path) -> None:
    project = sly.Project(str(folder / "project"), sly.OpenMode.CREATE)
    project.set_meta(sly.ProjectMeta(CLASSES))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    project.create_dataset("ds0").add_item_np("a.png", image, ann=annotation())
    inner = project.create_dataset("inner", ds_path="ds0/datasets/inner")
    inner.add_item_np("b.jpg", image, ann=sly.Annotation((HEIGHT, WIDTH)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervisely")
    write(folder)
    return folder / "project"


def test_the_stored_files_are_what_it_writes(written: Path) -> None:
    stored = STORED / "supervisely"
    names = sorted(path.relative_to(stored) for path in stored.rglob("*.json"))
    assert names == sorted(path.relative_to(written) for path in written.rglob("*.json"))
    for name in names:
        assert json.loads((stored / name).read_text()) == json.loads((written / name).read_text())


def test_we_paint_what_it_draws(written: Path) -> None:
    drawn = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    annotation().draw(drawn)
    module = reader("supervisely")
    names = module.class_names(written)
    assert names == tuple(c.name for c in CLASSES)
    colors = np.array([[0, 0, 0], *(c.color for c in CLASSES)])
    image, empty = module.read(written)
    labels = paint(image, {name: i + 1 for i, name in enumerate(names)}, 255, 0)
    # The point covers a pixel in its drawing, and none in a label map.
    assert (colors[labels] != drawn).any(-1).sum() <= 9
    labels[(drawn == CLASSES[4].color).all(-1)] = 5
    assert (colors[labels] == drawn).all()
    assert (written / image.file).is_file() and (written / empty.file).is_file()
    assert not empty.segments
