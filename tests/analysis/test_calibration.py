"""Trusty map as detector and as probability, against loops over pixels and pairs of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.detection import by_class

from tagclip.analysis.calibration import BINS, TrustyCounts, detector_figures

SEEN = np.array([True, False, True, False, True])


class Pixels:
    """Labels of very different frequency (the last class has none) and a map on them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.truth = rng.choice(4, 150, p=[0.7, 0.05, 0.05, 0.2])
        # Values in the middle of the fine bins, of which some are equal; and the two ends.
        steps = rng.integers(1, 40, 150) + 10 * SEEN[self.truth]
        self.trusty = np.clip((steps * 90 + 0.5) / 4500, 0, 1).astype(np.float32)
        self.trusty[:2] = 0, 1

    def counts(self) -> TrustyCounts:
        counts = TrustyCounts(SEEN)
        for part in np.array_split(np.arange(150), 4):
            counts.add(self.truth[part], self.trusty[part])
        return counts

    def weights(self, balanced: bool) -> np.ndarray:
        if not balanced:
            return np.ones(150)
        return np.array([1 / (self.truth == k).sum() for k in self.truth])


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_detectors_count_weighted_pairs_and_thresholds(seed: int, balanced: bool) -> None:
    pixels = Pixels(seed)
    weights, won, total = pixels.weights(balanced), 0.0, 0.0
    is_seen = SEEN[pixels.truth]
    for i, j in itertools.product(np.flatnonzero(is_seen), np.flatnonzero(~is_seen)):
        a, b = pixels.trusty[i], pixels.trusty[j]
        total += weights[i] * weights[j]
        won += weights[i] * weights[j] * (1.0 if a > b else 0.5 if a == b else 0.0)
    expected = {
        "AUROC": 100 * won / total,
        **by_class(pixels.trusty, pixels.truth, SEEN, balanced),
    }
    found = detector_figures(pixels.counts().counts, SEEN, balanced)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("sharpness", "loss"), [(2.5, 0.1), (6, 4), (12, 15)])
def test_bins_cost_little_unless_a_map_is_too_sure(
    sharpness: float, loss: float, balanced: bool
) -> None:
    """Against the values themselves; docs/evaluation.md has these figures, of pixels."""
    rng = np.random.default_rng(0)
    truth = rng.choice(5, 40000, p=[0.6, 0.03, 0.2, 0.07, 0.1])
    logits = sharpness * rng.normal(np.where(SEEN[truth], 1, -1))
    trusty = 1 / (1 + np.exp(-logits))
    counts = TrustyCounts(SEEN)
    counts.add(truth, trusty)
    found = detector_figures(counts.counts, SEEN, balanced)
    exact = by_class(trusty, truth, SEEN, balanced)
    assert found["AUPR"] == pytest.approx(exact["AUPR"], abs=loss)
    # A threshold inside a bin calls fewer seen pixels unseen than its edge.
    assert 0 <= found["FPR95"] - exact["FPR95"] < 0.7


def test_a_map_finer_than_its_bins_has_ties() -> None:
    """All unseen pixels, and a tenth of the seen ones, lie below the first edge."""
    truth = np.repeat([0, 1], 1000)
    trusty = np.concatenate([np.full(900, 0.9), np.full(100, 2e-5), np.full(1000, 1e-5)])
    counts = TrustyCounts(SEEN)
    counts.add(truth, trusty)
    found = detector_figures(counts.counts, SEEN, False)
    assert found == pytest.approx({"AUROC": 95, "AUPR": 100 * 10 / 11, "FPR95": 10})


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_reliability_and_error_equal_loops(seed: int, balanced: bool) -> None:
    pixels = Pixels(seed)
    weights = pixels.weights(balanced)
    diagram, error = pixels.counts().reliability(balanced), 0.0
    for index in range(BINS):
        inside = [i for i in range(150) if min(int(pixels.trusty[i] * BINS), BINS - 1) == index]
        mass = sum(weights[i] for i in inside)
        assert diagram.mass[index] == pytest.approx(mass / weights.sum())
        if not inside:
            assert np.isnan(diagram.confidence[index]) and np.isnan(diagram.share[index])
            continue
        confidence = sum(weights[i] * float(pixels.trusty[i]) for i in inside) / mass
        share = sum(weights[i] for i in inside if SEEN[pixels.truth[i]]) / mass
        assert diagram.confidence[index] == pytest.approx(confidence)
        assert diagram.share[index] == pytest.approx(share)
        error += mass / weights.sum() * abs(confidence - share)
    assert diagram.error == pytest.approx(100 * error)


def test_a_map_that_is_right_about_itself_has_no_error() -> None:
    counts = TrustyCounts(SEEN)
    for trusty in (0.1, 0.3, 0.7):
        truth = np.array([0] * round(1000 * trusty) + [1] * round(1000 * (1 - trusty)))
        counts.add(truth, np.full(1000, trusty))
    assert counts.reliability(False).error == pytest.approx(0, abs=1e-9)
    # The same map, one way off by 0.2 everywhere.
    counts = TrustyCounts(SEEN)
    counts.add(np.array([0] * 500 + [1] * 500), np.full(1000, 0.3))
    assert counts.reliability(False).error == pytest.approx(20)


def test_means_and_histograms_are_of_their_side() -> None:
    pixels = Pixels(0)
    counts, is_seen = pixels.counts(), SEEN[pixels.truth]
    for side in (True, False):
        values = pixels.trusty[is_seen == side]
        assert counts.mean(side) == pytest.approx(values.mean())
        expected = np.histogram(values, 45, (0, 1))[0]
        np.testing.assert_allclose(counts.histogram(side), 100 * expected / expected.sum())
    assert np.isnan(TrustyCounts(SEEN).mean(True))
    empty = detector_figures(TrustyCounts(SEEN).counts, SEEN, True)
    assert np.isnan(list(empty.values())).all()
    assert np.isnan(TrustyCounts(SEEN).reliability(True).error)
