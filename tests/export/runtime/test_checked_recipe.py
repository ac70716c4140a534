"""A model.json that something has damaged: no wrong label file, but one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.bench import refused
from helpers.clip_files import sha256
from helpers.tiny_export import example as example
from PIL import Image

from tagclip.export.runtime.class_vectors import ClassVectors

onnx = pytest.importorskip("onnx")
NAMES, IDS, IGNORED = ("red", "green"), [7, 300], 0
# Scores of a pixel are its red and its green.
VECTORS = np.eye(2, 3, dtype=np.float32)


def write_model(path: Path, takes_words: bool) -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    shapes = {
        ("image" if takes_words else "images"): (kinds.UINT8, ["b", 3, "h", "w"]),
        **({"class_vectors": (kinds.FLOAT, ["k", 3]), "seen": (kinds.BOOL, ["k"])} if takes_words
           else {}),
    }  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Cast", [next(iter(shapes))], ["floats"], to=kinds.FLOAT),
        helper.make_node(
            "Einsum", ["class_vectors", "floats"], ["scores"], equation="kd,bdhw->bkhw"
        ),
    ]
    scores = helper.make_tensor_value_info("scores", kinds.FLOAT, ["b", "k", "h", "w"])
    baked = [] if takes_words else [onnx.numpy_helper.from_array(VECTORS, "class_vectors")]
    graph = helper.make_graph(nodes, "graph", inputs, [scores], baked)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


class Exported:
    """A folder as of `tagclip export`, whose model needs no training, and an image for it."""

    def __init__(self, folder: Path, tool: ModuleType, takes_words: bool) -> None:
        self.folder, self.tool, self.labels = folder, tool, folder / "labels.png"
        write_model(folder / "model.onnx", takes_words)
        self.image = folder / "image.png"
        colours = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 0)], np.uint8)
        Image.fromarray(colours.repeat(2, 0)[:, None].repeat(5, 1)).save(self.image)
        self.recipe: dict[str, Any] = {
            "class_names": [*NAMES],
            "class_ids": IDS,
            "ignore_label": IGNORED,
            "channel_order": "RGB",
            "resize": {"short_side": 0, "long_side": 0, "library": "cv2"},
            "windows": {"size": [4, 4], "stride": [2, 2]},
            "background_threshold": 0.5,
        }
        files = ["model.onnx"]
        if takes_words:
            content = ClassVectors(NAMES, VECTORS, np.array([True, False]), "a" * 64).content()
            (folder / "vectors.npz").write_bytes(content)
            files.append("vectors.npz")
            self.recipe["words"] = {
                "text_model": "text.onnx", "merges": "merges.txt.gz", "vectors": "vectors.npz",
                "dim": 3, "context_length": 77, "templates": ["{}"], "clip": "a" * 64,
                "unknown_classes": "match", "seen_names": ["red"],
            }  # fmt: skip
        self.recipe["files"] = {name: {"sha256": sha256(folder / name)} for name in files}

    def run(self, changes: dict[str, Any]) -> Callable[[], Any]:
        """A call of run-onnx with other values in model.json."""
        recipe = {key: value for key, value in (self.recipe | changes).items() if value != "gone"}
        (self.folder / "model.json").write_text(json.dumps(recipe))
        words = [self.folder, self.image, self.labels]
        return lambda: self.tool.main(self.tool.parse_args(list(map(str, words))))


@pytest.fixture(params=[False, True], ids=["baked", "words"])
def exported(request: pytest.FixtureRequest, tmp_path: Path, example: ModuleType) -> Exported:
    return Exported(tmp_path, example, request.param)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({}, [7, 300, 0]),
        ({"format": 1}, [7, 300, 0]),
        ({"class_ids": [0, 65535], "ignore_label": 255}, [0, 65535, 255]),
        # An earlier version had neither.
        ({"class_ids": "gone", "ignore_label": "gone"}, [0, 1, 255]),
        ({"windows": {"size": None, "stride": None}, "background_threshold": None}, [7, 300, 7]),
    ],
)
def test_labels_are_those_of_the_recipe(
    exported: Exported, changes: dict[str, Any], values: list[int]
) -> None:
    exported.run(changes)()
    with Image.open(exported.labels) as picture:
        assert (np.array(picture) == np.repeat(values, 2)[:, None].repeat(5, 1)).all()


_IDS = "expected 2 different numbers in 0..65535, one per class name"
DAMAGES = {
    "format": (
        (2, 0, "1", None, True),
        "expected 1, which this version reads; run it with the version that wrote it, or",
    ),
    "class_ids": (
        ([0, 70000], [0, -1], [3], [1, 2, 3], [4, 4], ["1", "2"], [1, True], [1, 2.0], "12", None),
        _IDS,
    ),
    "ignore_label": (
        (7, -1, 65536, "0", None, 255.0, "gone"),
        "expected a number in 0..65535, no class's id",
    ),
    "class_names": (
        ("ab", [], [1, 2], ["red", "red"], ["red", " "], {"red": 0, "green": 1}),
        "expected a list of different texts, one or more",
    ),
    "channel_order": (("rgb", None), "expected RGB or BGR"),
    "background_threshold": (("0.5", float("nan"), True), "expected a number or null"),
    "resize": (
        (
            {"short_side": -4, "long_side": 0, "library": "cv2"},
            {"short_side": 0, "long_side": "0", "library": "cv2"},
            {"short_side": 0, "long_side": 0, "library": "cv"},
            {"short_side": 0, "long_side": 0, "library": "cv2", "interpolation": "bicubic"},
        ),
        "expected ",
    ),
    "windows": (
        (
            {"size": [2, 2], "stride": [3, 2]},
            {"size": [2], "stride": [2]},
            {"size": [2, 2], "stride": [0, 2]},
            {"size": None, "stride": [2, 2]},
        ),
        "expected pixels of two sides, the stride not longer, or nulls",
    ),
}


@pytest.mark.parametrize("key", DAMAGES)
def test_a_damaged_value_is_one_line(exported: Exported, key: str) -> None:
    values, expected = DAMAGES[key]
    for value in values:
        where = f"ConfigError: {exported.folder / 'model.json'}: found {key}"
        line = refused(exported.run({key: value}), where, expected)
        assert line.endswith("export again") and not exported.labels.exists()


def test_names_are_as_many_as_the_model_has_and_those_of_its_vectors(exported: Exported) -> None:
    wrong, expected = [["red"], ["red", "green", "blue"]], "expected 2, as many as the model"
    if "words" in exported.recipe:
        wrong, expected = [*wrong, ["green", "red"]], "than vectors.npz has, expected its 2"
    for names in wrong:
        call = exported.run({"class_names": names, "class_ids": [7, 300, 9][: len(names)]})
        refused(call, f"{exported.folder / 'model.json'}: found ", expected, "export again")
        assert not exported.labels.exists()
