"""What is rejected, by kind of pixel, and what is drawn where it is not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.toy_views import CLASSES, SEEN, SIZE, toy_views

from tagclip.analysis.gate_analysis import GateAnalysis
from tagclip.analysis.none_counts import NoneCounts

LOST = ("seen pixels lost", "unseen pixels lost", "unlabelled pixels rejected")
ABSENT = ("the same without the test", "pixels with a class that is not in the image")


def naive(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Pixel by pixel."""
    pixels = {name: [] for name in (*LOST, *ABSENT)}
    for truth, labels, rejected in images:
        present = set(truth[(truth >= 0) & (truth < CLASSES)].tolist())
        for true, label, none in zip(
            truth.tolist(), labels.tolist(), rejected.tolist(), strict=True
        ):
            kind = 2 if not 0 <= true < CLASSES else 0 if SEEN[true] else 1
            pixels[LOST[kind]].append(none)
            pixels[ABSENT[0]].append(label not in present)
            pixels[ABSENT[1]].append(label not in present and not none)
    found = {name: 100 * float(np.mean(values)) for name, values in pixels.items()}
    shares = [
        rejected[np.isin(truth, np.flatnonzero(SEEN))].mean() for truth, _, rejected in images
    ]
    return found | {"seen pixels lost, mean of images": 100 * float(np.mean(shares))}


def test_shares_are_those_of_the_pixels() -> None:
    generator, counts, images = np.random.default_rng(0), NoneCounts(SEEN), []
    for size in (50, 7, 120):
        truth = generator.choice([0, 2, 3, 255, -1], size)
        image = truth, generator.integers(0, CLASSES, size), generator.random(size) < 0.4
        images.append(image)
        counts.add(*image)
    found = counts.figures()
    assert found == pytest.approx(naive(images)) and len(found) == 6


def test_the_confusion_is_that_of_what_is_left() -> None:
    generator, counts = np.random.default_rng(2), NoneCounts(SEEN)
    expected = np.zeros((CLASSES, CLASSES + 1), dtype=int)
    for size in (50, 120):
        truth = generator.choice([0, 2, 3, 255, -1], size)
        labels, rejected = generator.integers(0, CLASSES, size), generator.random(size) < 0.4
        counts.add(truth, labels, rejected)
        for true, label, none in zip(truth, labels, rejected, strict=True):
            if 0 <= true < CLASSES:
                expected[true, CLASSES if none else label] += 1
    np.testing.assert_array_equal(counts.confusion, expected)
    assert expected[:, CLASSES].any()


def test_what_does_not_occur_is_nan() -> None:
    counts = NoneCounts(SEEN)
    assert all(math.isnan(value) for value in counts.figures().values())
    counts.add(np.array([1, 1]), np.array([1, 0]), np.array([False, True]))
    found = counts.figures()
    assert found["seen pixels lost"] == 50 and math.isnan(found["unseen pixels lost"])
    assert found["the same without the test"] == 50
    assert found["pixels with a class that is not in the image"] == 0


def test_an_analysis_has_them_where_margins_are() -> None:
    truth = np.random.default_rng(1).choice([0, 1, 4, 255], SIZE)
    plain, tested = GateAnalysis(SEEN, 0.1, True), GateAnalysis(SEEN, 0.1, True)
    fusion = toy_views(margins=True, mode="both", bias=0.1)
    tested.add(truth, fusion, SIZE)
    bare = replace(fusion, views=tuple(replace(view, margins=None) for view in fusion.views))
    plain.add(truth, bare, SIZE)
    labels, rejected = bare.best(SIZE)[0].numpy(), (fusion.margin(SIZE) < 0).numpy()
    found = tested.figures()
    expected = naive([(truth.ravel(), labels.ravel(), rejected.ravel())])
    assert found.pop("rejected") == pytest.approx(expected, abs=0.1)
    np.testing.assert_equal(found, plain.figures())
