"""datumaro, whose code CVAT exports with: our CVAT and COCO files, pixel by pixel."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from datumaro import Dataset
from datumaro.components.annotation import AnnotationType
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary

from tagclip.data.formats.cvat_out import write_cvat
from tagclip.evaluation.coco_json import write_coco


def painted(dataset: Dataset, sizes: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """(H, W) indices of our classes on each image, all annotations as masks of datumaro."""
    dataset.transform("polygons_to_masks")
    names = [label.name for label in dataset.categories()[AnnotationType.label]]
    order = list(map(NAMES.index, names))
    found = {}
    for item in dataset:
        labels = np.full(sizes[item.id], -1, np.int32)
        for annotation in item.annotations:
            # Of a COCO file it makes a box, too.
            if annotation.type == AnnotationType.bbox:
                continue
            assert (labels[annotation.image.astype(bool)] == -1).all()
            labels[annotation.image.astype(bool)] = order[annotation.label]
        found[item.id] = labels
    return found


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_cvat(tmp_path: Path, shapes: str) -> None:
    images = labelled_images(tmp_path / "images")
    write_cvat(tmp_path, images, odd_vocabulary(), shapes)
    found = painted(
        Dataset.import_from(str(tmp_path / "annotations.xml"), "cvat"),
        {image.stem: image.labels.shape for image in images},
    )
    assert found.keys() == {image.stem for image in images}
    for image in images:
        assert (found[image.stem] == image.labels).all(), image.file


def test_coco(tmp_path: Path) -> None:
    images = labelled_images(tmp_path / "images" / "val")
    write_coco(tmp_path / "annotations", images, odd_vocabulary())
    shutil.move(
        tmp_path / "annotations/annotations.json", tmp_path / "annotations/instances_val.json"
    )
    dataset = Dataset.import_from(str(tmp_path), "coco_instances")
    found = painted(dataset, {image.stem: image.labels.shape for image in images})
    for image in images:
        assert (found[image.stem] == image.labels).all(), image.file
