"""AUROC, AUPR and FPR at 95 % TPR against single pairs, and single thresholds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers.detection import detection_by_thresholds
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.evaluation.detection import (
    MEASURES,
    auroc,
    average_precision,
    detection,
    false_positive_rate,
)


def histogram(scores: list[int]) -> np.ndarray:
    return np.bincount(np.int64(scores), minlength=6)


sides = st.lists(st.integers(0, 5), max_size=12)


@settings(max_examples=60, deadline=None)
@given(positive=sides, negative=sides)
def test_auroc_counts_pairs_and_half_of_the_ties(positive: list[int], negative: list[int]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    expected = 100 * sum(pairs) / len(pairs) if pairs else math.nan
    found = auroc(histogram(positive), histogram(negative))
    assert found == pytest.approx(expected, nan_ok=True)


# Twenty and more: 95 % of them are reached before all are.
@settings(max_examples=100, deadline=None)
@given(
    positive=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    negative=st.lists(st.integers(0, 5), min_size=1, max_size=30),
)
def test_a_plateau_is_one_step(positive: list[int], negative: list[int]) -> None:
    expected = detection_by_thresholds(*([(s, 1) for s in side] for side in (positive, negative)))
    found = detection(histogram(positive), histogram(negative))
    assert found.keys() == MEASURES.keys() == {"AUROC", *expected}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    # Only the order of the scores counts.
    spread = [np.insert(histogram(side), [0, 3, 6], 0) for side in (positive, negative)]
    assert detection(*spread) == pytest.approx(found)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
def test_masses_count_like_pixels(counts: list[tuple[int, int]]) -> None:
    positive, negative = np.array(counts).T
    if not (positive.any() and negative.any()):
        return
    # Sevenths and thirds, which floats only round.
    scored = [
        [(bin_, Fraction(int(n), part)) for bin_, n in enumerate(side) if n]
        for side, part in ((positive, 7), (negative, 3))
    ]
    expected = detection_by_thresholds(*scored)
    assert average_precision(positive / 7, negative / 3) == pytest.approx(expected["AUPR"])
    assert false_positive_rate(positive / 7, negative / 3) == pytest.approx(expected["FPR95"])


def test_a_share_that_floats_just_miss_is_reached() -> None:
    # 40 equal masses, of which 38 are 95 %: added up they are less than 0.95 of the sum.
    positive, negative = np.full(40, 1 / 67), np.ones(40)
    assert np.cumsum(positive)[37] < 0.95 * np.cumsum(positive)[-1]
    assert false_positive_rate(positive, negative) == pytest.approx(95)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_score_that_says_nothing_has_the_values_of_chance(share: float) -> None:
    flat = np.ones(1000)
    found = detection(share * flat, (1 - share) * flat)
    assert found["AUROC"] == pytest.approx(50) and found["FPR95"] == pytest.approx(95)
    assert found["AUPR"] == pytest.approx(100 * share)
    constant = detection(np.array([0, 20 * share]), np.array([0, 20 * (1 - share)]))
    assert constant == pytest.approx({"AUROC": 50, "AUPR": 100 * share, "FPR95": 100})


def test_one_side_alone_has_no_value() -> None:
    some, none = np.array([0, 3]), np.array([0, 0])
    for pair in ((some, none), (none, some), (none, none)):
        assert all(math.isnan(value) for value in detection(*pair).values())


def test_very_many_pixels_do_not_overflow() -> None:
    many, more = np.array([0, 10**12, 0]), np.array([0, 0, 10**12])
    assert detection(many, many) == {"AUROC": 50, "AUPR": 50, "FPR95": 100}
    assert detection(more, many) == {"AUROC": 100, "AUPR": 100, "FPR95": 0}
    assert detection(many, more) == {"AUROC": 0, "AUPR": 50, "FPR95": 100}
