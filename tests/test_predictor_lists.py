"""A list of images: the bits of single calls on a CPU, full batches of windows elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.pictures import picture
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import changed
from PIL import Image

from tagclip import Prediction, TagCLIPPredictor
from tagclip.data.prepared_image import PreparedImage
from tagclip.errors import ConfigError, DatasetError
from tagclip.modeling import CLIPViT, TagCLIP

# With a short side of 64 pixels, and windows of 64 that advance by 48: 1, 2, 2, 1, 5 windows.
SHAPES = [(64, 64), (40, 56), (56, 40), (96, 96), (64, 250)]
WINDOWS = [1, 2, 2, 1, 5]


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    """Config whose MODEL.WEIGHTS is a checkpoint."""
    return changed(tiny_cfg, "MODEL.WEIGHTS", str(save_tiny(tiny_cfg, tmp_path / "output")))


@pytest.fixture
def images() -> list[np.ndarray]:
    return [picture(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Windows of each call of the backbone from now on."""
    found: list[int] = []
    forward = CLIPViT.forward

    def counted(self: CLIPViT, windows: torch.Tensor) -> Any:
        found.append(len(windows))
        return forward(self, windows)

    monkeypatch.setattr(CLIPViT, "forward", counted)
    return found


def assert_equal(found: Prediction, expected: Prediction) -> None:
    assert found.keys() == expected.keys() and found.file == expected.file
    for key, value in expected.items():
        assert torch.equal(found[key], value) if torch.is_tensor(value) else found[key] == value


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96)),
        ("MODEL.TAGCLIP.TEST.MODE", "whole"),
    ],
)
def test_on_a_cpu_results_have_the_bits_of_single_calls(
    cfg: CfgNode, opts: tuple, images: list[np.ndarray], batches: list[int]
) -> None:
    predictor = TagCLIPPredictor(changed(cfg, "MODEL.TAGCLIP.TEST.WINDOW_BATCH", 8, *opts))
    predictor.set_vocabulary(["cat", "zebra", "sky"], context=["dog"])
    expected = [predictor(image, top_k=2) for image in images]
    alone = len(batches)
    found = predictor(images, top_k=2)
    assert [*map(type, found)] == [Prediction] * len(images)
    for pair in zip(found, expected, strict=True):
        assert_equal(*pair)
    assert batches == [1] * 2 * alone


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [1] * 11), (2, [2] * 5 + [1]), (4, [4, 4, 3]), (6, [6, 5]), (8, [8, 3]),
     (11, [11]), (99, [11])],
)  # fmt: skip
def test_images_share_batches_elsewhere(
    cfg: CfgNode,
    images: list[np.ndarray],
    batches: list[int],
    limit: int,
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more windows at a time than are allowed, and scores up to rounding."""
    predictor = TagCLIPPredictor(cfg)
    single = [predictor(image) for image in images]
    assert len(batches) == sum(WINDOWS)
    batches.clear()
    monkeypatch.setattr(TagCLIP, "_windows_per_batch", lambda self: limit)
    inputs = [predictor.preparer(image, "").input for image in images]
    asked = predictor.asked.all
    together = list(predictor.model.encode_each(inputs, asked))
    assert batches == expected
    for item, fusion in zip(inputs, together, strict=True):
        (view,), (alone,) = fusion.views, predictor.model.encode(item, asked).views
        torch.testing.assert_close(view.class_logits, alone.class_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(view.trusty_logits, alone.trusty_logits, rtol=1e-5, atol=1e-5)
    for found, alone in zip(predictor(images), single, strict=True):
        assert found.labels.shape == alone.labels.shape
        torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-3)
        assert (found.labels == alone.labels).float().mean() > 0.999


def test_few_images_are_held_at_a_time(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one batch."""
    predictor = TagCLIPPredictor(cfg)
    monkeypatch.setattr(TagCLIP, "_windows_per_batch", lambda self: 3)
    taken = 0

    def inputs() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for seed in range(10):
            taken += 1
            yield predictor.preparer(picture(64, 64, seed), "").input

    fusions = predictor.model.encode_each(inputs(), predictor.asked.all)
    ahead = [taken - number for number, _ in enumerate(fusions)]
    assert ahead == [3, 2, 1, 3, 2, 1, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("budget", "expected"), [(0, WINDOWS), (30719, WINDOWS), (30720, [3, 3, 5]), (10**6, [8, 3])]
)
def test_what_waits_for_a_batch_is_within_the_budget(
    cfg: CfgNode,
    images: list[np.ndarray],
    batches: list[int],
    budget: int,
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 3 bytes for a pixel, and 384 for 4 x 4 logits of five classes and the token: of the
    first two images 64 x (64 + 90) pixels and 1 + 2 windows."""
    predictor = TagCLIPPredictor(cfg)
    monkeypatch.setattr(TagCLIP, "_windows_per_batch", lambda self: 8)
    prepared = [predictor.preparer(image, "") for image in images]
    found = list(predictor.segment_prepared(prepared, budget=budget))
    assert batches == expected
    for outputs, image in zip(found, prepared, strict=True):
        assert outputs["sem_seg_labels"].shape == image.size


def test_an_error_of_the_model_leaves_no_thread(
    cfg: CfgNode, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the error."""
    predictor = TagCLIPPredictor(cfg)

    def fail(self: CLIPViT, windows: torch.Tensor) -> Any:
        assert any("read_ahead" in thread.name for thread in threading.enumerate())
        raise RuntimeError("of the model")

    monkeypatch.setattr(CLIPViT, "forward", fail)
    with pytest.raises(RuntimeError, match="of the model") as error:
        predictor(images * 20)
    assert not any("read_ahead" in thread.name for thread in threading.enumerate())
    assert error.traceback


def test_an_empty_list_has_no_results(cfg: CfgNode) -> None:
    assert TagCLIPPredictor(cfg)([]) == []


@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), "image 11: found an array (4, 5), expected a BGR array "),
        (Path("image 1.png"), "image 11: image 1.png: no such image"),
        (Image.new("RGB", (3000, 3000)), "image 11: image has 3000x3000 pixels, INPUT"),
        (np.zeros((1, 6000, 3), np.uint8), "image 11: image of 6000x1 pixels: a short side of"),
    ],
)
def test_an_error_says_which_image(
    cfg: CfgNode, image: Any, message: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TagCLIPPredictor(changed(cfg, "INPUT.MAX_PIXELS", 5000))
    monkeypatch.setattr(TagCLIP, "_windows_per_batch", lambda self: limit)
    with pytest.raises(DatasetError) as error:
        predictor([*[picture()] * 11, image, picture()])
    assert str(error.value).startswith(message), str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DatasetError) as error:
        predictor(image)
    assert not str(error.value).startswith("image 0")


def test_prepared_images_have_the_tensors_of_calls(cfg: CfgNode, images: list[np.ndarray]) -> None:
    """Of other classes than those that are set; errors keep their places."""
    predictor = TagCLIPPredictor(cfg)
    asked = predictor.resolve(["cat", "zebra", "sky"], context=["dog"])
    stream: list[PreparedImage | DatasetError] = [
        predictor.preparer.attempt(image, f"{number}") for number, image in enumerate(images)
    ]
    first, last = DatasetError("first"), DatasetError("last")
    stream = [first, *stream[:2], DatasetError("1"), DatasetError("2"), *stream[2:], last]
    found = list(predictor.segment_prepared(iter(stream), asked, top_k=2))
    assert [error for error in found if isinstance(error, DatasetError)] == [
        error for error in stream if isinstance(error, DatasetError)
    ]
    predictor.set_vocabulary(["cat", "zebra", "sky"], context=["dog"])
    calls = iter(predictor(images, top_k=2))
    for outputs, source in zip(found, stream, strict=True):
        if isinstance(source, DatasetError):
            assert outputs is source
        else:
            expected = next(calls)
            assert {*outputs, "class_names"} == {*expected}
            assert all(torch.equal(value, expected[key]) for key, value in outputs.items())


def test_prepared_images_may_all_be_broken_or_none(cfg: CfgNode) -> None:
    predictor = TagCLIPPredictor(cfg)
    assert list(predictor.segment_prepared([])) == []
    errors = [DatasetError("1"), DatasetError("2")]
    assert list(predictor.segment_prepared(errors)) == errors
    with pytest.raises(ConfigError, match="top_k: found 99, expected 0 to 5"):
        next(predictor.segment_prepared([], top_k=99))
