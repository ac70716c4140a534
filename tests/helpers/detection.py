"""AUPR and FPR at 95 % TPR from single scores, one threshold after the other, in exact numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# Score, large where the pixel shall be detected, and weight of a pixel.
Scored = tuple[float, Fraction | int]


def detection_by_thresholds(
    positive: Sequence[Scored], negative: Sequence[Scored]
) -> dict[str, float]:
    """Every score is a threshold: pixels that reach it are called positive."""
    total = [sum(weight for _, weight in side) for side in (positive, negative)]
    pixels = [(score, weight, 0) for score, weight in positive]
    pixels += [(score, weight, 1) for score, weight in negative]
    pixels.sort(key=lambda pixel: -pixel[0])
    found, area, rate = [Fraction(0), Fraction(0)], Fraction(0), None
    for _, tied in itertools.groupby(pixels, key=lambda pixel: pixel[0]):
        before = found[0]
        for _, weight, side in tied:
            found[side] += weight
        area += (found[0] - before) / total[0] * found[0] / sum(found)
        if rate is None and found[0] / total[0] >= Fraction(95, 100):
            rate = found[1] / total[1]
    return {"AUPR": 100 * float(area), "FPR95": 100 * float(rate)}


def by_class(
    scores: np.ndarray, truth: np.ndarray, seen: np.ndarray, balanced: bool
) -> dict[str, float]:
    """`detection_by_thresholds` of unseen pixels.

    Args:
        scores: (N,) large where a pixel looks seen.
        truth: (N,) indices of classes.
        seen: (K,) bool.
        balanced: whether every class weighs the same.
    """
    count = np.bincount(truth)
    sides: tuple[list[Scored], list[Scored]] = ([], [])
    for score, label in zip(scores.tolist(), truth.tolist(), strict=True):
        weight = Fraction(1, int(count[label])) if balanced else Fraction(1)
        sides[int(seen[label])].append((-score, weight))
    return detection_by_thresholds(*sides)
