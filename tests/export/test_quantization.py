"""Quantized files against the model itself, on MiniBench's images and its trained CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.clip_files import fails
from helpers.paths import REPOSITORY
from helpers.tiny_export import eager

from tagclip import TagCLIPPredictor, load_config
from tagclip.errors import ConfigError
from tagclip.export.onnx import WindowModel, class_inputs, to_onnx
from tagclip.export.quantization import quantize
from tagclip.export.runtime.session import open_model
from tagclip.projects.minibench.generate import scene

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RUNTIMES = ("onnxruntime", "openvino")


@dataclass
class Exported:
    """A model, its files, and the inputs of its graph for a window."""

    predictor: TagCLIPPredictor
    content: bytes
    int8: bytes
    inputs: Callable[[np.ndarray], dict[str, np.ndarray]]


def windows(subset: str, count: int) -> list[np.ndarray]:
    """(1, 3, 96, 96) uint8 BGR."""
    scenes = [scene(subset, index).image for index in range(count)]
    return [np.ascontiguousarray(image[None, :, :, ::-1].transpose(0, 3, 1, 2)) for image in scenes]


CALIBRATION = windows("val", 12)


def load_model(resize: str) -> TagCLIPPredictor:
    path = "projects/TrainingFree/configs/maskclip_minibench_composition.yaml"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.TAGCLIP.TEST.MODE", "whole"]
    return TagCLIPPredictor(
        load_config(REPOSITORY / path, [*opts, "MODEL.CLIP.POS_EMBED_RESIZE", resize])
    )


@pytest.fixture(scope="module", params=["baked", "input"])
def exported(request: pytest.FixtureRequest) -> Exported:
    predictor = load_model("bilinear")
    model, vocabulary = predictor.model, predictor.vocabulary
    if request.param == "baked":
        content = to_onnx(WindowModel(model, vocabulary, (96, 96)))
        inputs = lambda window: {"images": window}  # noqa: E731
    else:
        content = to_onnx(WindowModel(model, None))
        vectors, seen = class_inputs(model, vocabulary)
        inputs = lambda window: {"image": window, "class_vectors": vectors, "seen": seen}  # noqa: E731
    return Exported(predictor, content, quantize(content, map(inputs, CALIBRATION)), inputs)


def changed(found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> float:
    """Share of the labels of scores that differ."""
    pairs = zip(found, expected, strict=True)
    return float(np.mean([(a.argmax(1) != b.argmax(1)).mean() for a, b in pairs]))


def test_labels_are_the_models(exported: Exported) -> None:
    """What torch computes is the reference, on images that did not calibrate."""
    images = windows("test", 8)
    expected = [eager(exported.predictor, image)[0] for image in images]
    run = open_model(exported.int8, threads=1)
    scores = [run(exported.inputs(image)) for image in images]
    assert 0 < changed(scores, expected) < 0.04
    assert changed(expected[:1], expected[1:2]) > 0.3
    assert len(exported.int8) < 0.6 * len(exported.content)


@pytest.mark.parametrize("kind", ["content", "int8"])
def test_openvino_computes_the_same(exported: Exported, kind: str) -> None:
    pytest.importorskip("openvino")
    content = getattr(exported, kind)
    first, second = (open_model(content, runtime, threads=1) for runtime in RUNTIMES)
    found = []
    for image in windows("test", 3):
        a, b = first(exported.inputs(image)), second(exported.inputs(image))
        assert a.shape == b.shape and a.dtype == b.dtype == np.float32
        found.append((a, b))
    # In int8, a value on the border of two may be rounded to either.
    limit = {"content": 1e-5, "int8": 0.03}[kind]
    assert max(np.abs(a - b).max() for a, b in found) < limit
    assert changed(*zip(*found, strict=True)) < {"content": 1e-4, "int8": 2e-3}[kind]


def test_openvino_refuses_what_it_computes_otherwise() -> None:
    pytest.importorskip("openvino")
    predictor = load_model("bicubic")
    model, vocabulary, window = predictor.model, predictor.vocabulary, {"images": CALIBRATION[0]}
    content = to_onnx(WindowModel(model, vocabulary))
    parts = ("--runtime openvino", "POS_EMBED_RESIZE", "onnxruntime", "--size")
    fails(ConfigError, lambda: open_model(content, "openvino"), *parts)
    fixed = to_onnx(WindowModel(model, vocabulary, (96, 96)))
    found, expected = open_model(fixed, "openvino")(window), open_model(content)(window)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_same_windows_give_the_same_bytes(exported: Exported) -> None:
    shuffled = [CALIBRATION[index] for index in np.random.default_rng(0).permutation(12)]
    assert quantize(exported.content, map(exported.inputs, shuffled)) == exported.int8
    assert quantize(exported.content, map(exported.inputs, CALIBRATION[:3])) != exported.int8


def test_what_is_int8(exported: Exported) -> None:
    """The patch embedding and the four linear layers of each block, and no other product; 7-bit
    weights, of which no pair overflows."""
    blocks = len(exported.predictor.model.backbone.blocks)
    graph = onnx.load_from_string(exported.int8).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    products = 0
    for node in graph.node:
        if node.op_type not in ("MatMul", "Conv", "Gemm"):
            continue
        sources = [made_by.get(name) for name in node.input[:2]]
        kinds = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
        assert kinds[0] == kinds[1], node.name
        products += kinds[0]
        if kinds[0]:
            weights = tensors[sources[1].input[0]]
            assert weights.dtype == np.int8 and np.abs(weights.astype(int)).max() <= 64
            channels = weights.shape[0 if node.op_type == "Conv" else 1]
            assert len(tensors[sources[1].input[1]]) == channels
    assert products == 1 + 4 * blocks
    assert [value.name for value in graph.input] == list(exported.inputs(CALIBRATION[0]))


def test_without_windows(exported: Exported) -> None:
    with pytest.raises(ValueError, match="No data"):
        quantize(exported.content, [])
