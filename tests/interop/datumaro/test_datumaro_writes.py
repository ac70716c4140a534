"""Datumaro writes one scene in its own format, CVAT's, VOC's, KITTI's and COCO's; what we read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datumaro import (
    AnnotationType,
    Bbox,
    Dataset,
    DatasetItem,
    Ellipse,
    LabelCategories,
    Mask,
    MaskCategories,
    Polygon,
)
from datumaro.components.annotation import Label, Points, PolyLine
from datumaro.components.media import Image as Media
from helpers.annotated_scene import CAR, HEIGHT, SKY_OUTLINE, TREE, WIDTH
from helpers.paths import STORED
from PIL import Image

from tagclip.data.formats import reader

NAMES = ["tree", "car", "sky", "road"]
COLORS = {0: (0, 128, 0), 1: (0, 0, 142), 2: (70, 130, 180), 3: (128, 64, 128)}


def dataset(annotations: list, colors: bool = False) -> Dataset:
    categories = {AnnotationType.label: LabelCategories.from_iterable(NAMES)}
    if colors:
        categories[AnnotationType.mask] = MaskCategories(COLORS)
    media = Media.from_numpy(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    item = DatasetItem("sub/a", subset="train", media=media, annotations=annotations)
    return Dataset.from_iterable([item], categories=categories)


def scene() -> list:
    return [
        Polygon([float(v) for point in SKY_OUTLINE for v in point], label=2, z_order=2),
        Mask(TREE, label=0, z_order=1),
        Mask(CAR, label=1, z_order=3),
        Bbox(9, 5, 3, 4, label=3, z_order=4),
        Ellipse(0, 4, 6, 8, label=3),
        PolyLine([0, 0, 3, 3], label=3),
        Points([1, 1], label=3),
        Label(1),
    ]


def write(folder: Path) -> None:
    for name in ("datumaro", "cvat"):
        dataset(scene(), colors=True).export(str(folder / name), name, save_media=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datumaro")
    write(folder)
    return folder


def test_the_stored_json_is_what_it_writes(written: Path) -> None:
    stored = STORED / "datumaro" / "annotations" / "train.json"
    assert json.loads(stored.read_text()) == json.loads(
        (written / "datumaro" / "annotations" / "train.json").read_text()
    )


def test_the_stored_xml_is_what_it_writes(written: Path) -> None:
    stored = STORED / "cvat" / "datumaro.xml"
    assert stored.read_text() == (written / "cvat" / "train.xml").read_text()


def test_masks_are_those_that_it_reads_itself(written: Path) -> None:
    again = Dataset.import_from(str(written / "datumaro"), "datumaro")
    (item,) = again
    (image,) = reader("datumaro").read(written / "datumaro")
    assert (written / "datumaro" / "images" / image.file).is_file()
    # Ours are in painting order.
    masks = sorted((a for a in item.annotations if hasattr(a, "image")), key=lambda a: a.z_order)
    ours = [s for s in image.segments if s.name in ("tree", "car")]
    assert len(masks) == len(ours) == 2
    for mask, segment in zip(masks, ours, strict=True):
        assert (segment.mask() == mask.image.astype(bool)).all()


def test_voc_without_colors_leaves_them_out(written: Path, tmp_path: Path) -> None:
    dataset([Mask(TREE, label=0), Mask(CAR, label=1)]).export(str(tmp_path), "voc_segmentation")
    lines = (tmp_path / "labelmap.txt").read_text().split("\n")[1:-1]
    assert lines == [f"{name}:::" for name in ("background", *NAMES)]
    shutil.rmtree(tmp_path / "SegmentationClass")
    masks = [Mask(TREE, label=0), Mask(CAR, label=1)]
    dataset(masks, colors=True).export(str(tmp_path / "b"), "voc_segmentation")
    text = (tmp_path / "b" / "labelmap.txt").read_text()
    assert "car:0,0,142::" in text.split("\n")


def test_kitti_gives_the_first_class_to_unlabelled_pixels(tmp_path: Path) -> None:
    dataset([Mask(TREE, label=0), Mask(CAR, label=1)], colors=True).export(str(tmp_path), "kitti")
    (file,) = tmp_path.glob("**/semantic/**/*.png")
    labels = np.asarray(Image.open(file))
    assert set(np.unique(labels[~CAR])) == {0} and (labels[CAR] == 1).all()


def test_coco_calls_every_mask_a_crowd(tmp_path: Path) -> None:
    polygon = Polygon([float(v) for point in SKY_OUTLINE for v in point], label=2)
    dataset([Mask(TREE, label=0), polygon]).export(str(tmp_path), "coco_instances")
    content = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    assert [row["iscrowd"] for row in content["annotations"]] == [1, 0]
