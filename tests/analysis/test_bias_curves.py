"""Every bias from one pass, against the argmax of the biased scores at each of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.detection import by_class
from helpers.toy_views import CLASSES, SEEN, SIZE, toy_views

from tagclip.analysis.bias_curves import BiasCounts, BiasCurve, Contest, bias_grid
from tagclip.analysis.calibration import detector_figures
from tagclip.analysis.gate_analysis import GateAnalysis, contest, ungated
from tagclip.errors import ConfigError, DatasetError

# Multiples of 1/8, at which scores of `Pixels` are exactly equal, and others.
GRID = np.array([-40, -3.3, -2, -1, -0.5, -0.3, -0.125, 0, 0.1, 0.25, 0.3, 0.5, 0.875, 1, 2])


class Pixels:
    """Random scores in coarse steps, so that there are ties, and their labels."""

    def __init__(self, seed: int, count: int = 300) -> None:
        rng = np.random.default_rng(seed)
        self.scores = rng.integers(0, 9, (CLASSES, count)) / 8
        self.slope = rng.choice([0, 0.25, 0.5, 1], count)
        # With a trusty map of 0, seen classes score 0.
        self.scores[np.ix_(SEEN, self.slope == 0)] = 0
        # The last class never occurs.
        self.truth = rng.integers(0, CLASSES - 1, count)

    def predict(self, bias: float) -> np.ndarray:
        if np.isinf(bias):
            out = SEEN if bias > 0 else ~SEEN
            return np.where(out[:, None], -1, self.scores).argmax(axis=0)
        return (self.scores - bias * self.slope * SEEN[:, None]).argmax(axis=0)

    def contest(self) -> Contest:
        sides = [np.where(part[:, None], self.scores, -1) for part in (SEEN, ~SEEN)]
        gap = sides[0].max(axis=0) - sides[1].max(axis=0)
        return Contest(sides[0].argmax(axis=0), sides[1].argmax(axis=0), gap, self.slope)

    def means(self, bias: float) -> list[float]:
        """mIoU and mean accuracy of seen and of unseen classes, class by class."""
        predicted, found = self.predict(bias), []
        for part in (SEEN, ~SEEN):
            pairs = []
            for k in np.flatnonzero(part):
                true, taken = self.truth == k, predicted == k
                if true.any():
                    hits = (true & taken).sum()
                    pairs.append((100 * hits / (true | taken).sum(), 100 * hits / true.sum()))
            found.append(np.mean(pairs, axis=0))
        (seen, seen_acc), (unseen, unseen_acc) = found
        return [seen, unseen, seen_acc, unseen_acc]


@pytest.mark.parametrize("seed", range(4))
def test_every_bias_equals_its_own_argmax(seed: int) -> None:
    pixels = Pixels(seed)
    counts = BiasCounts(SEEN, GRID)
    for part in np.array_split(np.arange(300), 3):
        counts.add(pixels.truth[part], pixels.contest()[part])
    curve = counts.curve()
    assert curve.biases.tolist() == [-np.inf, *GRID, np.inf]
    expected = np.array([pixels.means(bias) for bias in curve.biases]).T
    found = [curve.seen, curve.unseen, curve.seen_accuracy, curve.unseen_accuracy]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    for bias in GRID:
        assert (pixels.contest().labels(bias) == pixels.predict(bias)).all()
    s, u = expected[:2]
    hiou = [0 if a + b == 0 else 2 * a * b / (a + b) for a, b in zip(s, u, strict=True)]
    assert curve.best() == int(np.argmax(hiou)) and curve.at(0.3) == 1 + GRID.tolist().index(0.3)


def test_pixels_without_label_are_counted_apart() -> None:
    pixels = Pixels(0)
    hidden = np.arange(300) % 3 == 0
    truth, rest = np.where(hidden, 255, pixels.truth), BiasCounts(SEEN, GRID)
    truth[:3] = -1
    hidden |= truth < 0
    counts = BiasCounts(SEEN, GRID)
    counts.add(truth, pixels.contest())
    rest.add(pixels.truth[~hidden], pixels.contest()[~hidden])
    assert (counts.true == rest.true).all() and not rest.unlabelled.any()
    wins = pixels.contest()[hidden].wins(GRID)
    assert counts.unlabelled.tolist() == np.bincount(wins, minlength=len(GRID) + 1).tolist()
    index = counts.curve().at(0.3)
    unseen = ~SEEN[pixels.contest()[hidden].labels(0.3)]
    assert counts.unseen_share(index) == pytest.approx(100 * unseen.mean())


def test_the_grid_is_dense_where_scores_are() -> None:
    grid = bias_grid([0.1])
    assert (np.diff(grid) > 0).all() and {0.0, 0.1} <= set(grid.tolist())
    inner = grid[np.abs(grid) < 0.5]
    assert np.diff(inner).max() < 0.0012 and grid[0] < -1000 and grid[-1] > 1000


def test_the_detector_counts_pairs_and_thresholds() -> None:
    pixels = Pixels(0)
    # Steps of 1/32 tell all values of (A - U) / B apart, which are multiples of 1/8.
    counts = BiasCounts(SEEN, np.arange(-6, 6, 1 / 32) + 1 / 64)
    counts.add(pixels.truth, pixels.contest())
    with np.errstate(divide="ignore", invalid="ignore"):
        change = pixels.contest().gap / pixels.slope
    tie = np.where(pixels.contest().seen < pixels.contest().unseen, np.inf, -np.inf)
    change = np.where(np.isnan(change), tie, change)
    wins, per_pair = [], []
    for k, j in itertools.product(np.flatnonzero(SEEN), np.flatnonzero(~SEEN)):
        own = [
            (a > b) + (a == b) / 2
            for a in change[pixels.truth == k]
            for b in change[pixels.truth == j]
        ]
        wins += own
        per_pair += [np.mean(own)] if own else []
    for balanced, auroc in ((False, np.mean(wins)), (True, np.mean(per_pair))):
        expected = {"AUROC": 100 * auroc, **by_class(change, pixels.truth, SEEN, balanced)}
        assert detector_figures(counts.true, SEEN, balanced) == pytest.approx(expected)


def curve(seen: list[float], unseen: list[float]) -> BiasCurve:
    values = [np.array(v, dtype=float) for v in (range(len(seen)), seen, unseen, seen, unseen)]
    return BiasCurve(*values)


def test_the_area_of_a_trade_off_is_that_of_its_trapezoids() -> None:
    found = curve([80, 60, 20, 0], [0, 30, 50, 60])
    assert (
        found.area() == found.accuracy_area() == pytest.approx((70 * 30 + 40 * 20 + 10 * 10) / 100)
    )
    # Both ends of this one are beaten by its middle: a rectangle and two trapezoids are left.
    found = curve([50, 80, 70, 40, 0], [0, 20, 40, 50, 10])
    assert found.area() == pytest.approx((80 * 20 + 75 * 20 + 55 * 10) / 100)
    assert curve([100, 100, 0], [0, 100, 100]).area() == 100


def test_thinned_curves_keep_the_ends_and_every_move() -> None:
    thin = curve([80, 80, 80.001, 60, 60, 0], [0, 0, 0, 30, 30, 60]).thinned()
    assert thin.biases.tolist() == [0, 3, 5] and thin.unseen.tolist() == [0, 30, 60]


@pytest.mark.parametrize("part", [SEEN, ~SEEN])
def test_one_side_alone_has_no_curve(part: np.ndarray) -> None:
    pixels, counts = Pixels(0), BiasCounts(SEEN, GRID)
    chosen = part[pixels.truth]
    counts.add(pixels.truth[chosen], pixels.contest()[chosen])
    with pytest.raises(DatasetError, match="expected some of both sides"):
        counts.curve()


@pytest.mark.parametrize("bias", [-0.4, 0.0, 0.15])
@pytest.mark.parametrize(
    "gate",
    [
        {"mode": "none"},
        {"mode": "seen"},
        {"mode": "unseen"},
        {"mode": "both"},
        {"mode": "both", "bias_after_gate": True},
        {"mode": "both", "form": "additive"},
    ],
)
def test_the_contest_is_that_of_the_gated_scores(gate: dict, bias: float) -> None:
    views = toy_views(**gate, bias=0.7)
    found = torch.from_numpy(contest(views, SIZE).labels(bias).reshape(SIZE))
    biased = replace(views, gate=replace(views.gate, bias=bias))
    scores = biased.scores(SIZE)["sem_seg"]
    chosen = scores.gather(0, found.long()[None])[0]
    # Rounding may decide between equals, and nothing more.
    assert (chosen > scores.amax(0) - 1e-5).all()
    assert (found == scores.argmax(0)).float().mean() > 0.999


def test_an_analysis_adds_up_its_images() -> None:
    rng = np.random.default_rng(0)
    views = [toy_views(seed=seed, mode="both", bias=0.1) for seed in (0, 1)]
    truths = [rng.choice([*range(CLASSES), 255], SIZE) for _ in views]
    analysis = GateAnalysis(SEEN, 0.1, True)
    images = [analysis.add(t, v, SIZE) for t, v in zip(truths, views, strict=True)]
    assert (sum(images) == analysis.confusion).all()
    expected, perfect = np.zeros((2, CLASSES, CLASSES), dtype=int)
    for truth, view in zip(truths, views, strict=True):
        labels = view.labels(SIZE)["sem_seg_labels"].numpy()
        scores = ungated(view).scores(SIZE)["sem_seg"].numpy()
        for y, x in np.ndindex(SIZE):
            true = truth[y, x]
            if true != 255:
                expected[true, labels[y, x]] += 1
                side = SEEN[true] == SEEN
                perfect[true, np.where(side, scores[:, y, x], -9).argmax()] += 1
    assert np.abs(analysis.confusion - expected).sum() <= 4
    assert (analysis.oracle == perfect).all()
    figures = analysis.figures()
    clutter = [
        ~SEEN[view.labels(SIZE)["sem_seg_labels"].numpy()[truth == 255]]
        for truth, view in zip(truths, views, strict=True)
    ]
    share = 100 * np.concatenate(clutter).mean()
    assert figures["clutter"]["with the model's gate and bias"] == pytest.approx(share, abs=0.3)
    assert 5 < share < 95
    part = [
        100 * c[i, i] / (c[i].sum() + c[:, i].sum() - c[i, i])
        for c in [perfect]
        for i in range(CLASSES)
    ]
    assert figures["oracle"]["mIoU-seen"] == pytest.approx(np.mean(np.array(part)[SEEN]))
    own = analysis.curves["own"]
    assert figures["own"]["hIoU"] == own.hiou[own.at(0.1)]
    assert figures["own"]["best hIoU"] == own.hiou.max()
    plain = GateAnalysis(SEEN, 0.1, False)
    for truth, view in zip(truths, views, strict=True):
        plain.add(truth, ungated(view), SIZE)
    assert plain.figures()["own"] == plain.figures()["none"] == figures["none"]


def test_what_does_not_belong_together_is_refused() -> None:
    analysis = GateAnalysis(SEEN, 0.1, True)
    with pytest.raises(ConfigError, match="the label files have changed"):
        analysis.add(np.zeros((3, 4), dtype=int), toy_views(mode="both", bias=0.1), SIZE)
    views = toy_views(mode="both", bias=0.1)
    all_seen = replace(views, seen_mask=torch.ones(CLASSES, dtype=torch.bool))
    with pytest.raises(ConfigError, match="found 7 seen of 7 classes"):
        contest(all_seen, SIZE)
