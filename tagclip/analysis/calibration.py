"""The trusty map as a detector of unseen pixels, and as a probability: its calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tagclip.evaluation.detection import detection

__all__ = ["BINS", "Reliability", "TrustyCounts", "class_balanced", "detector_figures"]

# Bins of the reliability diagram: the usual number (Guo et al. 2017, arXiv 1706.04599).
BINS = 15
# Finer bins in each of them, for detection. A map that is nearer to 0 or 1 than their width has
# ties there, which shows in AUPR and FPR sooner than in AUROC.
_FINE = 300


def class_balanced(counts: np.ndarray) -> np.ndarray:
    """Give every class that has pixels the same mass: (K, B) counts -> (K, B) shares."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def detector_figures(counts: np.ndarray, seen: np.ndarray, balanced: bool) -> dict[str, float]:
    """How well a score tells unseen pixels, the positives, from seen ones.

    Args:
        counts: (K, B) pixels of each class by score, bins ascending; large means seen.
        seen: (K,) bool.
        balanced: whether every class weighs the same, instead of every pixel: AUROC is
            then the mean over all pairs of a seen and an unseen class.

    Returns:
        Those of `detection`, in percent; nan if one side has no pixel.
    """
    masses = class_balanced(counts) if balanced else counts
    unseen, others = (masses[side].sum(axis=0)[::-1] for side in (~seen, seen))
    return detection(unseen, others)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: P(seen) in bins of equal width against the share of seen pixels.

    Attributes:
        mass: (M,) share of all pixels (or of the mass of all classes) in each bin.
        confidence: (M,) mean P(seen) in it; nan where it is empty.
        share: (M,) true share of seen pixels in it; nan where it is empty.
    """

    mass: np.ndarray
    confidence: np.ndarray
    share: np.ndarray

    @property
    def error(self) -> float:
        """ECE: mean distance of confidence and share, weighted with the mass, in percent."""
        used = self.mass > 0
        distance = np.abs(self.confidence[used] - self.share[used])
        return 100 * float((self.mass[used] * distance).sum()) if used.any() else float("nan")


class TrustyCounts:
    """Histogram of the trusty map on each class; memory does not grow with the pixels.

    Attributes:
        seen: (K,) bool.
        counts: (K, B) labelled pixels by P(seen).
        sums: (K, B) their sums of P(seen).
    """

    def __init__(self, seen: np.ndarray) -> None:
        """Count nothing yet."""
        self.seen = seen
        self.counts = np.zeros((len(seen), BINS * _FINE), dtype=np.int64)
        self.sums = np.zeros((len(seen), BINS * _FINE))

    def add(self, truth: np.ndarray, trusty: np.ndarray) -> None:
        """Count N pixels.

        Args:
            truth: (N,) indices of their classes, in [0, K).
            trusty: (N,) P(seen), in [0, 1].
        """
        values, bins = trusty.astype(np.float64), self.counts.shape[1]
        index = np.clip((values * bins).astype(np.int64), 0, bins - 1)
        index += truth.astype(np.int64) * bins
        size, shape = self.counts.size, self.counts.shape
        self.counts += np.bincount(index, minlength=size).reshape(shape)
        self.sums += np.bincount(index, values, minlength=size).reshape(shape)

    def reliability(self, balanced: bool) -> Reliability:
        """Reliability diagram of pixels, or with the same mass for every class."""
        weights = np.ones(len(self.seen))
        if balanced:
            weights = 1 / np.maximum(self.counts.sum(axis=1), 1)
        mass, sums = (
            (weights[:, None] * table).reshape(len(self.seen), BINS, _FINE).sum(axis=2)
            for table in (self.counts, self.sums)
        )
        total = mass.sum(axis=0)
        with np.errstate(invalid="ignore"):
            confidence, share = sums.sum(axis=0) / total, mass[self.seen].sum(axis=0) / total
        return Reliability(total / max(total.sum(), 1e-300), confidence, share)

    def mean(self, seen: bool) -> float:
        """Mean P(seen) on pixels of seen or of unseen classes; nan if there are none."""
        part = self.seen == seen
        pixels = self.counts[part].sum()
        return float(self.sums[part].sum() / pixels) if pixels else float("nan")

    def histogram(self, seen: bool, bins: int = 3 * BINS) -> np.ndarray:
        """(bins,) percent of the pixels of seen or unseen classes by P(seen).

        Args:
            seen: which side.
            bins: of equal width; divides 4500.
        """
        counts = self.counts[self.seen == seen].sum(axis=0).reshape(bins, -1).sum(axis=1)
        return 100 * counts / max(counts.sum(), 1)
