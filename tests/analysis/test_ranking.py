"""Orders of images, and what they are worth, against counting."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import label_maps, odd_vocabulary
from helpers.segment_folders import label_rows
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagclip.analysis.ranking import (
    GainCurve,
    ImageSummary,
    draw_gain,
    image_summary,
    ranked,
    unseen_share,
)
from tagclip.errors import DatasetError
from tagclip.evaluation.segment_rows import failed_row
from tagclip.structures.vocabulary import ClassEntry, Vocabulary
from tagclip.visualization.class_charts import save_chart

SHARES = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])


def image(name: str, unseen: float | None, score: float | None = None) -> ImageSummary:
    return ImageSummary(name, 4, 5, unseen, unseen, score, {}, None)


def test_a_row_is_summed_up() -> None:
    labels = label_maps()[1]
    (row,) = label_rows({"a.png": labels}, odd_vocabulary())
    row["segments"][0]["score"] = 0.25
    found = image_summary(row)
    names = odd_vocabulary().names
    assert found.classes == pytest.approx({n: (labels == k).mean() for k, n in enumerate(names)})
    scores = np.where(labels == 0, 0.25, 0.75)[labels >= 0]
    assert found.score == pytest.approx(scores.mean())
    assert (found.height, found.width, found.error) == (*labels.shape, None)
    empty = image_summary(failed_row("b.png", "no image", labels=False))
    assert empty == ("b.png", None, None, None, None, None, {}, "no image")


@given(st.lists(SHARES), st.sampled_from(["unseen", "other", "score", "id"]), st.integers(1, 9))
def test_orders(values: list[float | None], order: str, limit: int) -> None:
    """Every pair stands as it should, and a limit cuts the same list."""
    images = [image(f"{9 - n}", value, value) for n, value in enumerate(values)]
    found = ranked(images, order)
    assert sorted(found, key=id) == sorted(images, key=id)
    for a, b in itertools.pairwise(found):
        first, second = (None, None) if order == "id" else (a.unseen, b.unseen)
        if first == second:
            assert a.image_id < b.image_id or len(values) > 9
        else:
            larger = order != "score"
            assert second is None or (first > second if larger else first < second)
    assert ranked(iter(images), order, limit) == found[:limit]


def test_the_best_and_a_random_order() -> None:
    """Against all orders of a short list."""
    wanted = [True, True, False, False, False]
    curve = GainCurve.of(wanted)
    assert curve.found.tolist() == [0, 1, 2, 2, 2, 2] == curve.best().tolist()
    mean, deviation = curve.random()
    orders = list(itertools.permutations(wanted))
    for n in range(6):
        counts = [sum(order[:n]) for order in orders]
        assert mean[n] == pytest.approx(statistics.mean(counts))
        assert deviation[n] == pytest.approx(statistics.pstdev(counts))
    assert GainCurve.of(wanted[::-1]).found.tolist() == [0, 0, 0, 0, 1, 2]


def test_the_share_of_unseen_classes_in_a_label_file(tmp_path: Path) -> None:
    entries = tuple(ClassEntry(value, name) for value, name in ((7, "cat"), (0, "dog")))
    words = Vocabulary("toy", entries, seen=(False, True))
    values = np.array([[7, 0, 0, 255], [255, 0, 255, 255]], np.uint8)
    for name, array in (("a", values), ("void", values * 0 + 255), ("b", values * 0 + 9)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    assert unseen_share(str(tmp_path / "a.png"), words) == 0.25
    assert unseen_share(str(tmp_path / "void.png"), words) == 0
    with pytest.raises(DatasetError, match="b.png"):
        unseen_share(str(tmp_path / "b.png"), words)


def test_the_figure_shows_the_curve(tmp_path: Path) -> None:
    curve = GainCurve.of([True, False, True, False])
    figure = draw_gain({"by $w$": curve}, "title")
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["by $w$"] == [[0, 0], [25, 50], [50, 50], [75, 100], [100, 100]]
    assert lines["best possible"] == [[0, 0], [25, 50], [50, 100], [75, 100], [100, 100]]
    with Image.open(save_chart(figure, tmp_path / "a.png")) as picture:
        assert picture.size[0] > 600
