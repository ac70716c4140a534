"""Label Studio's SDK: our labelling config checks our predictions, its converter decodes them."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.label_interface import LabelInterface
from pycocotools import mask as coco_mask

from tagclip.data.formats.label_studio_out import IMAGE_URL, write_label_studio
from tagclip.data.formats.rle_pack import encode_rle_pack


def written(folder: Path, shapes: str) -> tuple[str, list[dict], list[np.ndarray]]:
    """Config, tasks and label maps."""
    images = labelled_images(folder / "images")
    tasks, config = write_label_studio(folder, images, odd_vocabulary(), shapes)
    content = json.loads(tasks.read_text())
    files = [unquote(task["data"]["image"].removeprefix(IMAGE_URL)) for task in content]
    assert files == [image.file for image in images]
    return config.read_text(), content, [image.labels for image in images]


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_the_predictions_fit_the_config(tmp_path: Path, shapes: str) -> None:
    config, tasks, _ = written(tmp_path, shapes)
    interface = LabelInterface(config)
    interface.validate()
    assert interface.get_control("label").labels == NAMES
    for task in tasks:
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []


def test_brush_regions(tmp_path: Path) -> None:
    _, tasks, maps = written(tmp_path, "masks")
    for task, labels in zip(tasks, maps, strict=True):
        found = np.full_like(labels, -1)
        for region in task["predictions"][0]["result"]:
            size = region["original_height"], region["original_width"]
            assert size == labels.shape
            alpha = brush.decode_rle(region["value"]["rle"]).reshape(*size, 4)[:, :, 3]
            found[alpha > 0] = NAMES.index(region["value"]["brushlabels"][0])
        assert (found == labels).all()


def test_long_runs() -> None:
    mask = np.zeros((300, 500), bool)
    mask[100:290, :] = True
    found = brush.decode_rle(list(encode_rle_pack(mask))).reshape(300, 500, 4)
    assert (found == np.where(mask, 255, 0)[..., None]).all()


def test_polygons_in_its_export_to_coco(tmp_path: Path) -> None:
    """As if all predictions were accepted."""
    config, tasks, maps = written(tmp_path, "polygons")
    for number, task in enumerate(tasks, 1):
        result = task.pop("predictions")[0]["result"]
        task |= {"id": number, "annotations": [{"id": number, "result": result}]}
    (tmp_path / "in.json").write_text(json.dumps(tasks))
    converter = Converter(config, str(tmp_path), download_resources=False)
    converter.convert_to_coco(str(tmp_path / "in.json"), str(tmp_path / "out"), is_dir=False)
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    # It knows the size of an image by its regions only.
    found = {
        row["id"]: np.full((row["height"], row["width"]), -1, np.int32)
        for row in content["images"]
        if row["height"]
    }
    for row in content["annotations"]:
        labels = found[row["image_id"]]
        code = coco_mask.frPyObjects(row["segmentation"], *labels.shape)
        labels[coco_mask.decode(code)[..., 0] > 0] = NAMES.index(names[row["category_id"]])
    expected = [labels for labels in maps if (labels >= 0).any()]
    assert len(found) == len(expected)
    for labels, wanted in zip(found.values(), expected, strict=True):
        assert (labels == wanted).all()
