"""The Triton kernel in Triton's interpreter, on the CPU; `test_triton_fusion` runs this file.

TRITON_INTERPRET has to be 1 before triton is imported, so these tests have a process of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fusion_cases import GATES, SCENES, assert_near_reference, fusion_case
from helpers.largest_tensor import LargestTensor

from tagclip.modeling.inference import triton_fusion
from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.inference.triton_fusion import TILE, fused_labels

SIZE = (3, 9)


def fused(fusion: ScoreFusion, size: tuple[int, int] = SIZE, tile: tuple[int, int] = TILE) -> tuple:
    return fused_labels(
        fusion.views, fusion.seen_mask, fusion.gate, fusion.trusty_target, size, tile
    )


def check(fusion: ScoreFusion, size: tuple[int, int] = SIZE) -> None:
    """Against float64 and against torch's way."""
    labels, scores, trusty = fused(fusion, size)
    assert (labels.dtype, scores.dtype) == (torch.int32, torch.float32)
    is_clear = assert_near_reference(fusion, size, labels, scores, trusty)
    own_labels, own_scores = fusion.best(size)
    assert np.array_equal(labels.numpy()[is_clear], own_labels.numpy()[is_clear])
    torch.testing.assert_close(scores, own_scores, atol=4e-6, rtol=0)
    if trusty is not None:
        torch.testing.assert_close(trusty, fusion.trusty(size), atol=4e-6, rtol=0)


@pytest.mark.parametrize("scene", SCENES)
def test_scenes(scene: str) -> None:
    check(fusion_case(scene, target="novel"))


@pytest.mark.parametrize("gate", GATES)
def test_gates(gate: str) -> None:
    check(fusion_case("mirrored windows", target="seen", **GATES[gate]))


@pytest.mark.parametrize("gate", ["both", "lift"])
def test_without_a_trusty_token(gate: str) -> None:
    check(fusion_case("windows side by side", target=None, **GATES[gate]), (1, 40))


@pytest.mark.parametrize("classes", [1, 171])
def test_numbers_of_classes(classes: int) -> None:
    check(fusion_case("windows side by side", classes), (2, 12))


@pytest.mark.parametrize("width", [66, 70, 75, 80])
def test_tiles_hold_all_columns_that_are_read(width: int) -> None:
    check(fusion_case("a little larger than the result"), (1, width))


def test_no_bit_depends_on_the_tile() -> None:
    fusion, size = fusion_case("views", classes=5), (2, 5)
    expected = fused(fusion, size)
    for tile in ((2, 8), (4, 4), (8, 2), (64, 128)):
        found = fused(fusion, size, tile)
        assert all(map(torch.equal, found, expected)), tile


def test_no_tensor_is_larger_than_the_labels() -> None:
    size = (1, 90)
    for classes in (7, 40):
        fusion = fusion_case("windows side by side", classes)
        with LargestTensor() as mode:
            fused(fusion, size)
        # The interpreter takes the results as bytes.
        assert mode.elements == 4 * 90


def test_ties_go_to_the_first_class() -> None:
    fusion = fusion_case("one window", classes=6)
    logits = fusion.views[0].class_logits
    # Class 1 is seen as 4 is; the best of all, in another chunk, too.
    logits[:, 1] = logits[:, 4] = 9.0
    for classes in (1, 4, 8):
        labels, _, _ = fused(replace(fusion, seen_mask=torch.ones(6) > 0), tile=(classes, 16))
        assert labels.unique().tolist() == [1]


@pytest.mark.parametrize("classes", [2, 16])
def test_nan_is_handed_on_where_it_is(classes: int) -> None:
    fusion = fusion_case("windows side by side", classes=7)
    # The second of the three windows.
    fusion.views[0].class_logits[1, 2] = torch.nan
    size = (fusion.views[0].grid.height, fusion.views[0].grid.width)
    labels, scores, trusty = fused(fusion, size, (classes, 32))
    own_labels, own_scores = fusion.best(size)
    assert torch.equal(scores.isnan(), own_scores.isnan())
    assert 0 < scores.isnan().sum() < scores.numel() and not trusty.isnan().any()
    # As in `BestClass`, the best of the classes before.
    assert torch.equal(labels[scores.isnan()], own_labels.int()[scores.isnan()])


@pytest.mark.parametrize("target", ["novel", None])
def test_the_labels_of_a_fusion_come_from_the_kernel(
    target: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = fusion_case("views", target=target)
    threshold = float(fusion.best(SIZE)[1].median())
    expected, ranked = fusion.labels(SIZE, threshold), fusion.labels(SIZE, top_k=2)
    calls = []

    def counted(*args: object) -> tuple:
        calls.append(args)
        return fused_labels(*args)

    monkeypatch.setattr("tagclip.modeling.inference.fusion.fused_labels", counted)
    monkeypatch.setattr(triton_fusion, "is_available", lambda device: True)
    found = fusion.labels(SIZE, threshold)
    assert found.keys() == expected.keys() and len(calls) == 1
    assert torch.equal(found["sem_seg_labels"], expected["sem_seg_labels"])
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        torch.testing.assert_close(found[name], values, atol=1e-3, rtol=0)
    labels, scores = fusion.best(SIZE)
    assert len(calls) == 2 and labels.dtype == torch.int16
    assert torch.equal(scores.half(), found["sem_seg_scores"])
    # Rankings are torch's work.
    assert torch.equal(fusion.labels(SIZE, top_k=2)["top_labels"], ranked["top_labels"])
    assert len(calls) == 2
