"""The tiles of a CPU, against float64 and against planes of whole classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fusion_cases import (
    GATES,
    SCENES,
    assert_near_reference,
    fusion_case,
    reference_scores,
)
from helpers.largest_tensor import LargestTensor
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.modeling.inference import tiles
from tagclip.modeling.inference.fusion import BestClass, ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.tiles import TiledFusion
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid

SIZE = (37, 53)


def tiled(fusion: ScoreFusion, size: tuple[int, int] = SIZE, tile: tuple[int, int] = (1, 2)):
    parts = fusion.views, fusion.seen_mask, fusion.gate, fusion.trusty_target
    return TiledFusion(*parts, tile).best(size, most_left=1)


def planes_best(fusion: ScoreFusion, size: tuple[int, int]) -> BestClass:
    best = BestClass(size, torch.device("cpu"))
    for start, scores in fusion.chunks(size):
        best.add(start, scores)
    return best


def check(fusion: ScoreFusion, size: tuple[int, int] = SIZE) -> None:
    labels, scores, trusty = tiled(fusion, size)
    is_clear = assert_near_reference(fusion, size, labels, scores, trusty)
    own = planes_best(fusion, size).labels(torch.int64)
    assert np.array_equal(labels.numpy()[is_clear], own.numpy()[is_clear])


def blobs(classes: int = 60, seed: int = 0) -> ScoreFusion:
    """As a trained model: a few classes stand out, each somewhere."""
    generator = torch.Generator().manual_seed(seed)
    grid = WindowGrid.cover(80, 120, 80, 48)
    logits = torch.randn(len(grid), classes + 1, 10, 10, generator=generator) - 5
    for place in range(5):
        logits[:, 11 * place, 2 * place : 2 * place + 3] += 8
    view = ViewLogits(logits[:, :-1], logits[:, -1:] + 5, grid, (80, 80))
    seen = torch.arange(classes) % 3 > 0
    return ScoreFusion((view,), seen, Gate(), "seen", workspace_mib=8)


@pytest.mark.parametrize("scene", SCENES)
def test_scenes(scene: str) -> None:
    check(fusion_case(scene, target="novel"))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("target", ["seen", None])
def test_gates(gate: str, target: str | None) -> None:
    check(fusion_case("mirrored windows", target=target, **GATES[gate]))
    check(replace(blobs(), gate=Gate(**GATES[gate])), (80, 120))


@pytest.mark.parametrize("classes", [1, 2, 300])
def test_numbers_of_classes(classes: int) -> None:
    check(fusion_case("views", classes), (20, 33))


@pytest.mark.parametrize("seen", [True, False])
def test_one_side_only(seen: bool) -> None:
    fusion = fusion_case("windows three deep")
    check(replace(fusion, seen_mask=torch.full_like(fusion.seen_mask, seen)))


@given(
    canvas=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    window=st.integers(4, 40),
    stride=st.floats(0.2, 1),
    patch=st.integers(2, 7),
    mirrored=st.booleans(),
    spread=st.sampled_from([0.1, 2.0, 15.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_any_geometry(canvas, size, window, stride, patch, mirrored, spread, seed) -> None:
    grid = WindowGrid.cover(*canvas, window, max(1, int(stride * window)))
    cells = (-(-grid.window_height // patch), -(-grid.window_width // patch))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(grid), 10, *cells, generator=generator) * spread
    padded = (patch * cells[0], patch * cells[1])
    view = ViewLogits(logits[:, :9], logits[:, 9:], grid, padded, mirrored)
    fusion = ScoreFusion((view,), torch.arange(9) % 2 > 0, Gate(), "seen", workspace_mib=8)
    labels, scores, trusty = tiled(fusion, size)
    planes, expected_trusty = reference_scores(fusion, size)
    np.testing.assert_allclose(scores, planes.max(axis=0), atol=2e-6, rtol=0)
    chosen = np.take_along_axis(planes, labels.numpy()[None], axis=0)[0]
    assert (planes.max(axis=0) - chosen).max() <= 4e-6
    np.testing.assert_allclose(trusty, expected_trusty, atol=2e-6, rtol=0)


@pytest.mark.parametrize("fusion", [fusion_case("views", 40), blobs()], ids=["noise", "blobs"])
def test_no_bit_depends_on_tiles_passes_or_threads(
    fusion: ScoreFusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (150, 219)
    expected = tiled(fusion, size, (100, 100))
    threads = torch.get_num_threads()
    try:
        for tile, floats, number in (
            ((1, 1), 2**18, 1), ((2, 7), 2**14, 3), ((5, 3), 2**20, 2)
        ):  # fmt: skip
            torch.set_num_threads(number)
            monkeypatch.setattr(tiles, "_TILE_FLOATS", floats)
            assert all(map(torch.equal, tiled(fusion, size, tile), expected))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("base, spread", [(0, 1e-6), (-90, 4)], ids=["near ties", "tiny scores"])
def test_no_label_depends_on_tiles_where_scores_are_near(base: float, spread: float) -> None:
    """As the sum with the gate's term rounds, and as differences are below 1e-38."""
    fusion = fusion_case("windows three deep", 60, form="additive" if base == 0 else "product")
    fusion.views[0].class_logits.mul_(spread / 4).add_(base)
    expected = tiled(fusion, (60, 70), (100, 100))
    for floats in (2**7, 2**9, 2**11):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiles, "_TILE_FLOATS", floats)
            assert all(map(torch.equal, tiled(fusion, (60, 70), (1, 2)), expected))


def test_classes_that_cannot_win_are_left_out() -> None:
    fusion = blobs(300)
    with LargestTensor() as mode:
        tiled(fusion, (160, 240), (2, 2))
    assert mode.elements < 300 * 160 * 240 / 10
    # Nothing stands out.
    assert TiledFusion(
        fusion_case("views", 60).views, torch.ones(60) > 0, Gate(), "seen"
    ).best((40, 40)) is None  # fmt: skip


def test_ties_go_to_the_first_class() -> None:
    fusion = fusion_case("one window", classes=6)
    logits = fusion.views[0].class_logits
    logits[:, 1] = logits[:, 2] = logits[:, 4] = 9.0
    labels, _, _ = tiled(replace(fusion, gate=Gate(mode="none", bias=0.0)))
    assert labels.unique().tolist() == [1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_does_not_fit_goes_the_other_way(bad: float) -> None:
    fusion = blobs()
    assert TiledFusion.fits(fusion.views)
    assert not TiledFusion.fits(fusion_case("views", classes=7).views)
    view = replace(fusion.views[0], padded_size=(81, 80))
    assert not TiledFusion.fits((view,))
    for logits in (fusion.views[0].class_logits, fusion.views[0].trusty_logits):
        kept = logits[0, 0, 0, 0].clone()
        logits[0, 0, 0, 0] = bad
        assert not TiledFusion.fits(fusion.views)
        logits[0, 0, 0, 0] = kept


def test_labels_of_a_fusion_come_from_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    fusion, size = blobs(), (80, 120)
    found = fusion.labels(size, threshold=0.2)
    monkeypatch.setattr(TiledFusion, "fits", lambda views: False)
    expected = fusion.labels(size, threshold=0.2)
    assert found.keys() == expected.keys()
    assert (found["sem_seg_labels"] == -1).any()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        torch.testing.assert_close(found[name], values, atol=1e-3, rtol=0)


def test_half_precision_around_it_changes_nothing() -> None:
    fusion = blobs()
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled(fusion)
    assert all(map(torch.equal, found, tiled(fusion)))
