"""Confusions against counts one by one; their charts; counting and sizing of results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip import Vocabulary
from tagclip.analysis.confusion_charts import draw_confusion_bars, draw_confusion_map
from tagclip.analysis.confusions import (
    ALL,
    confused_classes,
    group_confusions,
    kind_share,
    list_confusions,
    share_text,
)
from tagclip.analysis.result_images import count_pixels

counts_of = st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=5, max_size=5)


@given(counts_of, st.lists(st.booleans(), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_confusions_are_sorted_and_grouped(rows: list[list[int]], flags: list[bool]) -> None:
    counts, seen = np.array(rows), np.array(flags)
    pairs = list_confusions(counts[:, :-1], counts.sum(axis=1))
    expected = {
        (i, j): 100 * rows[i][j] / sum(rows[i])
        for i in range(5)
        for j in range(5)
        if i != j and rows[i][j]
    }
    assert {(p.true, p.predicted): p.share for p in pairs} == pytest.approx(expected)
    assert [p.share for p in pairs] == sorted((p.share for p in pairs), reverse=True)
    groups = group_confusions(pairs, seen, 99)
    assert sum(map(len, groups.values())) == len(pairs)
    for kind, found in groups.items():
        # Without unseen classes nothing is called seen.
        assert (kind == ALL) == seen.all()
        true, predicted = (
            (word == "seen" for word in kind.split(" taken for ")) if kind != ALL else (True, True)
        )
        assert all((seen[p.true], seen[p.predicted]) == (true, predicted) for p in found)
        pixels = sum(sum(row) for row, flag in zip(rows, flags, strict=True) if flag == true)
        share = 100 * sum(p.pixels for p in found) / max(pixels, 1)
        assert kind_share(counts, seen, kind) == pytest.approx(share)


def test_shares_name_their_pixels() -> None:
    assert share_text("unseen taken for seen", "1.0") == "1.0 % of all unseen pixels"
    assert share_text(ALL, "1.0") == "1.0 % of all labelled pixels"


def large() -> tuple[np.ndarray, Vocabulary]:
    """Counts of 171 classes, the last 15 unseen."""
    names = [f"class {k}" for k in range(171)]
    counts = np.random.default_rng(0).integers(0, 50, (171, 172))
    counts[7] = 0
    return counts, Vocabulary.from_names(names, seen=[k < 156 for k in range(171)])


def test_the_map_shows_few_classes_of_many() -> None:
    counts, vocabulary = large()
    seen, pixels = vocabulary.seen_mask, counts.sum(axis=1)
    pairs = list_confusions(counts[:, :-1], pixels)
    groups = group_confusions(pairs, seen, 50)
    classes = confused_classes(groups, seen, 24)
    assert len(classes) == 24 and {pairs[0].true, pairs[0].predicted} <= set(classes)
    flags = seen[classes].tolist()
    assert flags == sorted(flags, reverse=True) and 6 <= flags.count(False) < 15
    assert confused_classes({"": []}, seen[:9], 24) == list(range(9))
    figure = draw_confusion_map(counts[:, :-1], pixels, [7, *classes], vocabulary, "title")
    axes = figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (25, 26) and (shown[0] == 0).all()
    assert shown[1:].sum(axis=1) == pytest.approx(100)
    first = classes[0]
    assert shown[1, 1] == pytest.approx(100 * counts[first, first] / pixels[first])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[1] == f"class {first}" and labels[-1] == f"★ class {classes[-1]}"
    written = {(*map(int, t.get_position()), t.get_text()) for t in axes.texts}
    y, x = np.argwhere(shown >= 1)[0]
    assert (x, y, f"{shown[y, x]:.0f}") in written and len(written) == (shown >= 1).sum()
    # Nothing is left when all classes are shown and every pixel has one.
    full = draw_confusion_map(counts[:5, :5], counts[:5, :5].sum(axis=1), range(5), vocabulary, "")
    assert np.asarray(full.axes[0].images[0].get_array()).shape == (5, 5)


def test_bars_are_as_long_as_the_shares() -> None:
    counts, vocabulary = large()
    pairs = list_confusions(counts[:, :-1], counts.sum(axis=1))
    groups = group_confusions(pairs, vocabulary.seen_mask, 4)
    figure = draw_confusion_bars(groups, dict.fromkeys(groups, 1.0), vocabulary, "title")
    (axes,) = figure.axes
    shares = [pair.share for found in groups.values() for pair in found]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares)
    assert len(shares) == 16 and max(axes.get_xticks()) <= 100
    first = groups["unseen taken for seen"][0]
    label = f"★ class {first.true} taken for class {first.predicted}"
    assert axes.get_yticklabels()[0].get_text() == label
    assert f"({first.pixels:,} pixels)" in axes.texts[0].get_text()


def test_pixels_without_a_class_are_counted_apart() -> None:
    truth, labels = np.array([[0, 1, 255, 1]]), np.array([[0, -1, -1, 0]])
    assert count_pixels(truth, labels, 2).tolist() == [[1, 0, 0], [1, 0, 1]]
    for wrong in (np.array([[0, 2, 0, 0]]), np.array([[-2, 0, 0, 0]]), labels.T):
        with pytest.raises(ValueError, match="found"):
            count_pixels(truth, wrong, 2)
