"""Label Studio's SDK writes its exports of one scene; we read the same regions from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated_scene import CAR, HEIGHT, LINE, SKY_OUTLINE, SPOT, TREE, WIDTH
from helpers.paths import STORED
from label_studio_sdk.converter import Converter, brush
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip.data.formats import reader

CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">
<Label value="unused"/><Label value="road/wet"/><Label value="tree"/><Label value="car (old)"/>
</BrushLabels><PolygonLabels name="poly" toName="image"><Label value="sky"/></PolygonLabels>
</View>"""
FORMATS = ("JSON", "JSON_MIN", "BRUSH_TO_PNG", "BRUSH_TO_COCO", "COCO")


def result(number: int, kind: str, name: str, label: str, **value: object) -> dict:
    return {
        "id": f"r{number}",
        "type": f"{kind}labels",
        "from_name": name,
        "to_name": "image",
        "origin": "manual",
        "image_rotation": 0,
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": {**value, f"{kind}labels": [label]},
    }


def write(folder: Path) -> None:
    """A folder per format of one annotated task."""
    regions = [("tree", TREE, 255), ("road/wet", LINE, 255), ("car (old)", CAR, 255)]
    results = [
        result(i, "brush", "tag", label, format="rle", rle=brush.mask2rle(np.uint8(mask * value)))
        for i, (label, mask, value) in enumerate([*regions, ("tree", SPOT, 128)])
    ]
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in SKY_OUTLINE]
    results.append(result(9, "polygon", "poly", "sky", points=points, closed=True))
    annotation = {"id": 3, "completed_by": 1, "was_cancelled": False, "result": results}
    annotation["created_at"] = "2026-01-01T00:00:00Z"
    task = {"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-a.png"}, "predictions": []}
    source = folder / "tasks.json"
    source.write_text(json.dumps([{**task, "annotations": [annotation]}]))
    converter = Converter(CONFIG, str(folder), download_resources=False)
    for name in FORMATS:
        (folder / name).mkdir()
        converter.convert(str(source), str(folder / name), name, is_dir=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label_studio")
    write(folder)
    return folder


@pytest.mark.parametrize("name", ["JSON/result.json", "JSON_MIN/result.json"])
def test_the_stored_json_is_what_it_writes(written: Path, name: str) -> None:
    stored = STORED / "label_studio" / f"{name.split('/')[0].lower()}.json"
    assert json.loads(stored.read_text()) == json.loads((written / name).read_text())


def test_the_stored_masks_are_what_it_writes(written: Path) -> None:
    files = sorted((written / "BRUSH_TO_PNG").glob("*.png"))
    stored_files = sorted(STORED.glob("label_studio/png/*.png"))
    assert [file.name for file in files] == [file.name for file in stored_files]
    for file in files:
        stored = np.asarray(Image.open(STORED / "label_studio" / "png" / file.name))
        assert (np.asarray(Image.open(file)) == stored).all()
        assert len(np.unique(stored)) == 2


def test_brushes_decode_to_what_its_own_decoder_gives(written: Path) -> None:
    regions = json.loads((written / "JSON" / "result.json").read_text())[0]["annotations"][0]
    (image,) = reader("label-studio").read(written / "JSON" / "result.json")
    compared = 0
    for region, segment in zip(regions["result"], image.segments, strict=True):
        if region["type"] == "brushlabels":
            alpha = brush.decode_rle(region["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[:, :, 3]
            assert (segment.mask() == (alpha > 0)).all()
            compared += 1
    assert compared == 4


def test_its_coco_loses_pixels(written: Path) -> None:
    """docs/other_tools.md recommends the json: brushes come back smaller, lines not at all."""
    content = json.loads((written / "BRUSH_TO_COCO" / "result_coco.json").read_text())
    names = {row["id"]: row["name"] for row in content["categories"]}
    # In the order in which they are met; what is not painted is missing.
    assert list(names.values()) == ["tree", "road/wet", "car (old)", "sky"]
    areas = {}
    for row in content["annotations"]:
        code = coco_mask.frPyObjects(row["segmentation"], HEIGHT, WIDTH)
        areas[names[row["category_id"]]] = (row["area"], int(coco_mask.decode(code).sum()))
    assert areas == {"tree": (15, 15), "car (old)": (36, 36), "sky": (24, 24)}
    assert (TREE.sum(), SPOT.sum(), CAR.sum(), LINE.sum()) == (24, 2, 40, 12)
