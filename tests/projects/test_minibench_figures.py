"""Ranks, table, curves and bars of the report, without a run."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.projects.minibench.report import metric_rows
from tagclip.projects.minibench.report_figures import draw_per_class_iou, draw_training_curve
from tagclip.projects.minibench.report_gallery import spread_ranks
from tagclip.structures.vocabulary import Vocabulary


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(2, 12))
def test_ranks_reach_from_first_to_last(total: int, count: int) -> None:
    ranks = spread_ranks(total, count)
    assert len(ranks) == len(set(ranks)) == min(total, count)
    assert ranks == sorted(ranks) and ranks[0] == 1 and ranks[-1] == total
    gaps = np.diff(ranks)
    assert total < 2 or gaps.max() - gaps.min() <= 1


def test_metric_rows_count_defined_classes_only() -> None:
    metrics = {"mIoU": 25.0, "mIoU-seen": 50.0, "mIoU-unseen": 0.0, "hIoU": None}
    averaged = {"mIoU": 2, "mIoU-seen": 1, "mIoU-unseen": 1}
    assert metric_rows({"classes_averaged": averaged, "metrics": metrics}) == [
        ("mIoU", "25.00", "2"),
        ("mIoU-seen", "50.00", "1"),
        ("mIoU-unseen", "0.00", "1"),
        ("hIoU", "n/a", ""),
    ]


def test_metric_rows_by_the_split_where_other_masks_trained_the_model() -> None:
    own = {"mIoU": 25.0, "mIoU-unseen": None, "hIoU": None}
    by_split = {"mIoU": 25.0, "mIoU-unseen": 5.0, "hIoU": 8.0, "hIoU-absent-as-0": 4.0}
    result = {
        "classes_averaged": {"mIoU": 2, "mIoU-unseen": 0},
        "metrics": own,
        "classes_averaged_by_split": {"mIoU": 2, "mIoU-unseen": 1},
        "metrics_by_split": by_split,
    }
    assert metric_rows(result)[len(own) :] == [
        ("mIoU-unseen by split", "5.00", "1"),
        ("hIoU by split", "8.00", ""),
        ("hIoU-absent-as-0 by split", "4.00", ""),
    ]


def test_curves_are_what_was_logged() -> None:
    curve = {
        19: {"total_loss": 3.0, "lr": 0.1},
        39: {"total_loss": 2.0, "lr": 0.2, "pixel_accuracy": 50.0, "loss_dice": 0.5},
        40: {"sem_seg/hIoU": 30.0},
    }
    losses, rate, scores = draw_training_curve(curve).axes
    points = {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()}
    assert points == {"total": [[19, 3.0], [39, 2.0]], "Dice": [[39, 0.5]]}
    assert rate.get_lines()[0].get_xydata().tolist() == [[19, 0.1], [39, 0.2]]
    points = {line.get_label(): line.get_xydata().tolist() for line in scores.get_lines()}
    assert points == {"pixel accuracy, training": [[39, 50.0]], "hIoU, test": [[40, 30.0]]}


def test_a_run_without_curve_has_an_empty_one() -> None:
    assert [len(axes.get_lines()) for axes in draw_training_curve({}).axes] == [0, 0, 0]


def test_bars_are_sorted_within_seen_and_unseen() -> None:
    vocabulary = Vocabulary.from_names(["a", "b", "c", "d", "e"], seen=["b", "c", "e"])
    figure = draw_per_class_iou([60.0, 20.0, None, 0.0, 90.0], vocabulary)
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["e", "b", "c", "★ a", "★ d"]
    assert [bar.get_width() for bar in axes.patches] == [90, 20, 0, 60, 0]
    assert [bar.get_hatch() is not None for bar in axes.patches] == [False] * 3 + [True] * 2
    assert [text.get_text() for text in axes.texts] == ["90.0", "20.0", "n/a", "60.0", "0.0"]
    assert figure.get_supxlabel() == "dashed: mIoU-seen 55.0, mIoU-unseen 30.0"
    means = [line.get_xdata()[0] for line in axes.get_lines()]
    assert means == [55, 55, 55, 30, 30]
