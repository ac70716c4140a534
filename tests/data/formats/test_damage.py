"""Values of the wrong kind, in every format: one line, at once, with the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tagclip.data.formats import reader
from tagclip.errors import DatasetError

_BAD = [None, True, -1, 0, 1e99, float("nan"), 10**30, "", "x", [], {}, [None], ["x"], [[1], 2]]
_TREES: dict[str, tuple[str, Any]] = {
    "coco": (
        "a.json",
        {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 12}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5]]},
                {
                    "image_id": 1,
                    "category_id": 1,
                    "segmentation": {"size": [9, 12], "counts": [50, 8, 50]},
                },
            ],
        },
    ),
    "labelme": (
        "a.json",
        {
            "imagePath": "a.jpg",
            "imageHeight": 9,
            "imageWidth": 12,
            "shapes": [
                {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [5, 0], [5, 5]]},
                {"label": "cat", "shape_type": "circle", "points": [[4, 4], [5, 0]]},
            ],
        },
    ),
    "datumaro": (
        "a.json",
        {
            "dm_format_version": "1.0",
            "categories": {"label": {"labels": [{"name": "cat"}]}},
            "items": [
                {
                    "id": "a",
                    "image": {"path": "a.jpg", "size": [9, 12]},
                    "annotations": [
                        {"type": "polygon", "label_id": 0, "points": [0, 0, 5, 0, 5, 5]},
                        {"type": "bbox", "label_id": 0, "bbox": [0, 0, 3, 4], "z_order": 2},
                        {"type": "ellipse", "label_id": 0, "points": [0, 0, 3, 4]},
                    ],
                }
            ],
        },
    ),
    "label-studio": (
        "a.json",
        [
            {
                "id": 1,
                "data": {"image": "/data/upload/1/a.jpg"},
                "annotations": [
                    {
                        "result": [
                            {
                                "original_width": 12,
                                "original_height": 9,
                                "value": {
                                    "points": [[0, 0], [50, 0], [50, 50]],
                                    "polygonlabels": ["cat"],
                                },
                            },
                            {
                                "original_width": 12,
                                "original_height": 9,
                                "value": {"rle": [0], "brushlabels": ["cat"]},
                            },
                        ]
                    }
                ],
            }
        ],
    ),
    "supervisely": (
        "ds/ann/a.jpg.json",
        {
            "size": {"height": 9, "width": 12},
            "objects": [
                {
                    "classTitle": "cat",
                    "geometryType": "polygon",
                    "points": {"exterior": [[0, 0], [5, 0], [5, 5]], "interior": []},
                },
                {
                    "classTitle": "cat",
                    "geometryType": "bitmap",
                    "bitmap": {"origin": [0, 0], "data": ""},
                },
            ],
        },
    ),
}


def _places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(tree, (dict, list)):
        return [place]
    below = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [place, *(found for key, value in below for found in _places(value, (*place, key)))]


@pytest.mark.parametrize("form", _TREES)
def test_any_value_may_be_any_other(form: str, tmp_path: Path) -> None:
    name, tree = _TREES[form]
    path, module = tmp_path / name, reader(form)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path if path.parent == tmp_path else tmp_path
    (tmp_path / "meta.json").write_text('{"classes": [{"title": "cat"}]}')
    refused = 0
    for place in _places(tree)[1:]:
        for bad in _BAD:
            damaged = json.loads(json.dumps(tree))
            parent = damaged
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = bad
            path.write_text(json.dumps(damaged))
            try:
                names = module.class_names(source)
                for image in module.read(source):
                    for segment in image.segments:
                        assert segment.mask().shape == image.size
                        assert isinstance(segment.name, str)
                assert all(isinstance(each, str) for each in names)
            except DatasetError as error:
                refused += 1
                assert "\n" not in str(error) and str(tmp_path) in str(error), (place, bad)
    assert refused > 100
