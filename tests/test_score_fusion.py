"""Streamed fusion against full-size planes in float64, and its exactness across settings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.gating import gate_scores, trusty_probability
from tagclip.modeling.score_fusion import InferenceSettings, ScoreFusion
from tagclip.modeling.sliding_window import WindowGrid

CLASSES = 7


def build(grid: WindowGrid, padded: tuple[int, int], trusty: bool = True) -> ScoreFusion:
    generator = torch.Generator().manual_seed(0)
    shape = (len(grid), CLASSES, 5, 4)
    return ScoreFusion(
        class_logits=torch.randn(shape, generator=generator) * 3,
        trusty_logits=torch.randn(len(grid), 1, 5, 4, generator=generator) if trusty else None,
        seen_mask=torch.arange(CLASSES) % 3 > 0,
        grid=grid,
        padded_size=padded,
        gate=partial(gate_scores, mode="both", bias=0.1),
        trusty_map=partial(trusty_probability, target="novel"),
        workspace_mib=1,
    )


def naive(fusion: ScoreFusion, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """All classes, all planes, float64, padded to the whole image."""
    grid = fusion.grid
    total = torch.zeros(CLASSES + 1, grid.height, grid.width, dtype=torch.float64)
    count = torch.zeros(grid.height, grid.width, dtype=torch.float64)
    logits = torch.cat([fusion.class_logits, fusion.trusty_logits], dim=1).double()
    full = F.interpolate(logits, fusion.padded_size, mode="bilinear")
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
    tied = ScoreFusion(
        **{
            **vars(fusion),
            "class_logits": torch.zeros(1, CLASSES, 5, 4),
            "seen_mask": torch.zeros(CLASSES, dtype=torch.bool),
        }
    )
    assert tied.labels((8, 8))["sem_seg_labels"].unique().tolist() == [0]


def test_no_trusty_map_without_a_token() -> None:
    fusion = build(WindowGrid.cover(8, 8, 8, 8), (8, 8), trusty=False)
    assert set(fusion.labels((8, 8))) == {"sem_seg_labels", "sem_seg_scores"}


def test_whole_mode_has_one_window_of_the_image() -> None:
    settings = InferenceSettings("whole", 16, 12, 4, 256, "labels")
    grid = settings.grid(50, 31)
    assert (len(grid), grid.window_height, grid.window_width) == (1, 50, 31)


@pytest.mark.parametrize(("mode", "output"), [("tile", "labels"), ("slide", "masks")])
def test_unknown_settings_are_refused(mode: str, output: str) -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        InferenceSettings(mode, 16, 12, 4, 256, output)
