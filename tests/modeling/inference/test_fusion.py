"""Streamed fusion against full-size planes in float64, views, and exactness across settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.largest_tensor import LargestTensor
from helpers.tiny_run import changed
from helpers.toy_views import SIZE as TOY_SIZE
from helpers.toy_views import toy_views
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.data.inference_input import InferenceInput
from tagclip.errors import ConfigError
from tagclip.modeling.inference.fusion import InferenceSettings, ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import ViewLogits, WindowGrid

CLASSES = 7


def build(grid: WindowGrid, padded: tuple[int, int], trusty: bool = True) -> ScoreFusion:
    generator = torch.Generator().manual_seed(0)
    shape = (len(grid), CLASSES, 5, 4)
    view = ViewLogits(
        class_logits=torch.randn(shape, generator=generator) * 3,
        trusty_logits=torch.randn(len(grid), 1, 5, 4, generator=generator) if trusty else None,
        grid=grid,
        padded_size=padded,
    )
    seen = torch.arange(CLASSES) % 3 > 0
    return ScoreFusion((view,), seen, Gate("both", bias=0.1), "novel", workspace_mib=1)


def naive(fusion: ScoreFusion, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """All classes, all planes, float64, padded to the whole image."""
    (view,) = fusion.views
    grid = view.grid
    total = torch.zeros(CLASSES + 1, grid.height, grid.width, dtype=torch.float64)
    count = torch.zeros(grid.height, grid.width, dtype=torch.float64)
    logits = torch.cat([view.class_logits, view.trusty_logits], dim=1).double()
    full = F.interpolate(logits, view.padded_size, mode="bilinear")
    full = full[..., : grid.window_height, : grid.window_width].sigmoid()
    for index, (rows, columns) in enumerate(grid):
        seen_probability = 1 - full[index, -1]
        for k in range(CLASSES):
            seen = bool(fusion.seen_mask[k])
            score = full[index, k]
            total[k, rows, columns] += (
                (score - 0.1) * seen_probability if seen else score * (1 - seen_probability)
            )
        total[-1, rows, columns] += seen_probability
        count[rows, columns] += 1
    scores = F.interpolate((total / count)[None], size, mode="bilinear")[0]
    return scores[:-1], scores[-1]


@pytest.mark.parametrize("size", [(50, 61), (30, 40), (101, 33)])
def test_scores_and_labels_equal_the_naive_planes(size: tuple[int, int]) -> None:
    fusion = build(WindowGrid.cover(50, 61, 33, 20), (40, 36))
    expected, trusty = naive(fusion, size)
    scores = fusion.scores(size)
    torch.testing.assert_close(scores["sem_seg"].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores["trusty"].double(), trusty, atol=1e-3, rtol=0)
    labels = fusion.labels(size)
    assert labels["sem_seg_labels"].dtype == torch.int16
    assert torch.equal(labels["sem_seg_labels"].long(), scores["sem_seg"].argmax(0))
    assert torch.equal(labels["sem_seg_scores"], scores["sem_seg"].amax(0).half())
    assert torch.equal(labels["trusty"], scores["trusty"])


@pytest.mark.parametrize("step", [2, 3, 100])
def test_chunks_of_classes_give_the_same_labels(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunked path that a GPU takes, run here on the CPU."""
    fusion = build(WindowGrid.cover(50, 61, 33, 20), (40, 36))
    one_by_one = fusion.labels((64, 80))
    monkeypatch.setattr(ScoreFusion, "classes_per_chunk", lambda self, size: step)
    chunked = fusion.labels((64, 80))
    assert torch.equal(one_by_one["sem_seg_labels"], chunked["sem_seg_labels"])


def test_ties_go_to_the_first_class() -> None:
    grid = WindowGrid.cover(8, 8, 8, 8)
    fusion = build(grid, (8, 8))
    view = replace(fusion.views[0], class_logits=torch.zeros(1, CLASSES, 5, 4))
    tied = replace(fusion, views=(view,), seen_mask=torch.zeros(CLASSES, dtype=torch.bool))
    assert tied.labels((8, 8))["sem_seg_labels"].unique().tolist() == [0]


def test_pixels_below_the_threshold_have_no_class() -> None:
    fusion = build(WindowGrid.cover(50, 61, 33, 20), (40, 36))
    best, labels = fusion.scores((30, 40))["sem_seg"].max(0)
    threshold = float(best.median())
    found = fusion.labels((30, 40), threshold)
    assert torch.equal(found["sem_seg_labels"].long(), torch.where(best < threshold, -1, labels))
    assert torch.equal(found["sem_seg_scores"], best.half())


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("ranked", [3, 5, None])
def test_top_classes_equal_a_stable_sort(
    step: int, ranked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = build(WindowGrid.cover(50, 61, 33, 20), (40, 36))
    # Two equal classes: the first one goes before the other.
    logits = fusion.views[0].class_logits
    logits[:, 2] = logits[:, 0]
    fusion.seen_mask[2] = fusion.seen_mask[0]
    scores = fusion.scores((30, 40))["sem_seg"][:ranked]
    expected, order = scores.sort(dim=0, descending=True, stable=True)
    monkeypatch.setattr(ScoreFusion, "classes_per_chunk", lambda self, size: step)
    found = fusion.labels((30, 40), top_k=3, ranked=ranked)
    assert torch.equal(found["top_labels"].long(), order[:3])
    assert torch.equal(found["top_scores"], expected[:3].half())


@pytest.mark.parametrize("top_k", [0, 2])
def test_no_tensor_grows_with_the_classes(top_k: int) -> None:
    largest = []
    for repeats in (10, 30):
        fusion = build(WindowGrid.cover(50, 61, 33, 20), (40, 36))
        logits = fusion.views[0].class_logits.repeat(1, repeats, 1, 1)
        view = replace(fusion.views[0], class_logits=logits)
        many = replace(fusion, views=(view,), seen_mask=fusion.seen_mask.repeat(repeats))
        with LargestTensor() as mode:
            many.labels((300, 400), 0.1, top_k)
        largest.append(mode.elements)
    assert largest[0] == largest[1]


@pytest.mark.parametrize("step", [1, 3])
def test_nan_stays_visible(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = build(WindowGrid.cover(8, 8, 8, 8), (8, 8))
    fusion.views[0].class_logits[:, 2] = torch.nan
    monkeypatch.setattr(ScoreFusion, "classes_per_chunk", lambda self, size: step)
    assert fusion.labels((8, 8))["sem_seg_scores"].isnan().all()


@pytest.mark.parametrize(
    ("threshold", "output", "expected"),
    [
        (-0.1, "labels", "a number from 0 to 1"),
        (1.5, "labels", "a number from 0 to 1"),
        (0.3, "scores", r"0 \(off\), or OUTPUT labels"),
    ],
)
def test_a_threshold_that_means_nothing_is_refused(
    threshold: float, output: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"BACKGROUND_THRESHOLD: found .* expected {expected}"):
        InferenceSettings("slide", 16, 12, 4, 256, output, threshold)


def test_auto_is_for_labels_alone() -> None:
    with pytest.raises(ConfigError, match="BACKGROUND: found auto .* expected threshold, or OUTP"):
        InferenceSettings("slide", 16, 12, 4, 256, "scores", background="auto")
    assert InferenceSettings("slide", 16, 12, 4, 256, "labels", background="auto").may_be_other


def test_pixels_with_a_margin_below_0_get_no_class() -> None:
    """In two views of several windows, one of them mirrored: the mean of the margins decides."""
    fusion, planes = toy_views(margins=True, mode="none"), []
    for view in fusion.views:
        grid = view.grid
        total, count = torch.zeros(2, grid.height, grid.width, dtype=torch.float64)
        full = F.interpolate(view.margins.double(), view.padded_size, mode="bilinear")
        for margin, (rows, columns) in zip(full[:, 0], grid, strict=True):
            total[rows, columns] += margin[: grid.window_height, : grid.window_width]
            count[rows, columns] += 1
        plane = F.interpolate((total / count)[None, None], TOY_SIZE, mode="bilinear")[0, 0]
        planes.append(plane.flip(-1) if view.mirrored else plane)
    expected = sum(planes) / 2
    torch.testing.assert_close(fusion.margin(TOY_SIZE).double(), expected, atol=1e-3, rtol=0)
    bare = replace(fusion, views=tuple(replace(view, margins=None) for view in fusion.views))
    labels = bare.labels(TOY_SIZE)["sem_seg_labels"]
    assert (labels >= 0).all() and bare.margin(TOY_SIZE) is None
    found, ranked = fusion.labels(TOY_SIZE), fusion.labels(TOY_SIZE, top_k=2)
    sure = expected.abs() > 1e-2
    assert torch.equal(
        found["sem_seg_labels"][sure], torch.where(expected < 0, -1, labels).short()[sure]
    )
    assert torch.equal(ranked["sem_seg_labels"], found["sem_seg_labels"])
    assert (ranked["top_labels"] >= 0).all()


def test_no_trusty_map_without_a_token() -> None:
    fusion = build(WindowGrid.cover(8, 8, 8, 8), (8, 8), trusty=False)
    assert set(fusion.labels((8, 8))) == {"sem_seg_labels", "sem_seg_scores"}


def test_whole_mode_has_one_window_of_the_image() -> None:
    settings = InferenceSettings("whole", 16, 12, 4, 256, "labels")
    grid = settings.grid(50, 31)
    assert (len(grid), grid.window_height, grid.window_width) == (1, 50, 31)


@pytest.mark.parametrize(("mode", "output"), [("tile", "labels"), ("slide", "masks")])
def test_unknown_settings_are_refused(mode: str, output: str) -> None:
    with pytest.raises(ConfigError, match="(MODE: found .tile.|OUTPUT: found .masks.), expected"):
        InferenceSettings(mode, 16, 12, 4, 256, output)


def test_the_cpu_answers_where_the_accelerator_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = build(WindowGrid.cover(50, 61, 33, 20), (40, 36))
    expected = fusion.labels((30, 40))
    chunks, calls = ScoreFusion.chunks, []

    def full(self: ScoreFusion, size: tuple[int, int]) -> Any:
        calls.append(self)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("full")
        return chunks(self, size)

    monkeypatch.setattr(ScoreFusion, "chunks", full)
    found = fusion.labels((30, 40))
    assert len(calls) == 2 and calls[0] is fusion and calls[1] is not fusion
    assert all(torch.equal(found[key], expected[key]) for key in expected)


# Several views of an image: the mean of separately computed scores

IMAGE = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
SIZE = IMAGE.shape[:2]
VIEWS = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 70), "TEST.AUG.MAX_SIZE", 0)


@pytest.fixture
def model(tiny_cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    model.inference_settings = replace(model.inference_settings, output="scores")
    # Differences of a random model are small: make them visible.
    with torch.no_grad():
        model.sem_seg_head.decoder.logits.query.weight *= 50
    return model


def item(cfg: CfgNode, *opts: object, image: np.ndarray = IMAGE) -> dict:
    return InferenceInput.from_config(changed(cfg, *VIEWS, *opts))(image)


def alone(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    return model([{"image": image, "height": SIZE[0], "width": SIZE[1]}])[0]


def test_views_are_averaged_after_the_gate(tiny_cfg: CfgNode, model: nn.Module) -> None:
    sample = item(tiny_cfg)
    assert len(sample["views"]) == 4
    scores, trusty = np.zeros((5, *SIZE)), np.zeros(SIZE)
    for view in sample["views"]:
        single = alone(model, view["image"])
        step = -1 if view["mirrored"] else 1
        scores += single["sem_seg"].double().numpy()[..., ::step] / 4
        trusty += single["trusty"].double().numpy()[..., ::step] / 4
    found = model([sample])[0]
    np.testing.assert_allclose(found["sem_seg"], scores, atol=1e-6)
    np.testing.assert_allclose(found["trusty"].float(), trusty, atol=1e-3)
    assert np.abs(scores - alone(model, sample["image"])["sem_seg"].numpy()).max() > 0.02


@pytest.mark.parametrize("step", [1, 2, 3])
def test_labels_are_those_of_the_mean_scores(
    tiny_cfg: CfgNode, model: nn.Module, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = item(tiny_cfg)
    best, labels = model([sample])[0]["sem_seg"].max(0)
    threshold = float(best.median())
    settings = replace(model.inference_settings, output="labels", background_threshold=threshold)
    model.inference_settings = settings
    # The chunked path that a GPU takes.
    monkeypatch.setattr(ScoreFusion, "classes_per_chunk", lambda self, size: step)
    found = model([sample])[0]
    assert len(labels.unique()) > 1
    # Two neighbouring classes may score alike up to rounding.
    expected = torch.where(best < threshold, -1, labels)
    assert (found["sem_seg_labels"] != expected).float().mean() < 1e-3
    torch.testing.assert_close(found["sem_seg_scores"].float(), best, atol=1e-3, rtol=0)


def test_a_single_view_changes_no_bit(tiny_cfg: CfgNode, model: nn.Module) -> None:
    plain = InferenceInput.from_config(tiny_cfg)(IMAGE)
    single = item(tiny_cfg, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False)
    listed = plain | {"views": [{"image": plain["image"], "mirrored": False}]}
    expected = model([plain])[0]
    for sample in (single, listed):
        found = model([sample])[0]
        assert torch.equal(found["sem_seg"], expected["sem_seg"])
        assert torch.equal(found["trusty"], expected["trusty"])


def test_the_mirrored_view_of_a_mirrored_image_scores_as_the_image(
    tiny_cfg: CfgNode, model: nn.Module
) -> None:
    turned = np.ascontiguousarray(IMAGE[:, ::-1])
    sample = item(tiny_cfg, "TEST.AUG.MIN_SIZES", (64,), image=turned)
    sample["views"] = [view for view in sample["views"] if view["mirrored"]]
    expected = model([InferenceInput.from_config(tiny_cfg)(IMAGE)])[0]
    found = model([sample])[0]
    for key in ("sem_seg", "trusty"):
        assert torch.equal(found[key].flip(-1), expected[key])
        assert not torch.equal(found[key], expected[key])
