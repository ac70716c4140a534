"""How well a score tells two kinds of pixels apart, from histograms of it: pure functions.

All of a bin are tied: no threshold parts them, so that a bin is one step of every curve.
"""

from __future__ import annotations

import numpy as np

__all__ = ["MEASURES", "auroc", "average_precision", "detection", "false_positive_rate"]

# A share that rounding leaves just below the asked one has reached it.
_ROUNDING = 1e-9


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    That is the Mann-Whitney statistic over the number of pairs, the area under the ROC curve.

    Args:
        positive: (B,) counts, or other weights >= 0, of positives per bin, bins in ascending order
            of score.
        negative: (B,) the same of negatives.

    Returns:
        In percent; nan if one side is empty.
    """
    pairs = float(positive.sum()) * float(negative.sum())
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return 100 * float((positive * (below + negative / 2)).sum()) / pairs


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """AUPR: precision at every threshold, averaged with the recall that the threshold adds.

    A sum of steps, as scikit-learn's ``average_precision_score``: straight lines between points of
    precision and recall promise what no threshold reaches (Davis & Goadrich 2006). Chance is the
    share of positives, so that values of data with other shares do not compare.

    Args:
        positive: see `auroc`.
        negative: see `auroc`.

    Returns:
        In percent; nan if one side is empty.
    """
    if not (positive.any() and negative.any()):
        return float("nan")
    found, wrong = _above(positive), _above(negative)
    steps = positive[::-1] > 0
    gained = positive[::-1][steps] / found[-1]
    precision = found[steps] / (found[steps] + wrong[steps])
    return 100 * float((gained * precision).sum())


def false_positive_rate(
    positive: np.ndarray, negative: np.ndarray, true_positive_rate: float = 0.95
) -> float:
    """Share of negatives at the highest threshold that finds such a share of the positives.

    The threshold is the edge of a bin: negatives of the bin in which the share is reached count,
    so that the rate of the unbinned scores is lower by at most their share.

    Args:
        positive: see `auroc`.
        negative: see `auroc`.
        true_positive_rate: in (0, 1].

    Returns:
        In percent; nan if one side is empty.
    """
    if not (positive.any() and negative.any()):
        return float("nan")
    found, wrong = _above(positive), _above(negative)
    threshold = int((found >= true_positive_rate * found[-1] * (1 - _ROUNDING)).argmax())
    return 100 * float(wrong[threshold]) / float(wrong[-1])


def _above(counts: np.ndarray) -> np.ndarray:
    """(B,) what scores as high as each bin or higher, from the highest bin down."""
    return np.cumsum(counts[::-1])


MEASURES = {
    "AUROC": auroc,
    "AUPR": average_precision,
    "FPR95": false_positive_rate,
}
"""Name -> measure. Positives are what shall be detected, here unseen pixels. AUROC and AUPR are
those of Hendrycks & Gimpel 2017 (arXiv 1610.02136), FPR95 is the false positive rate at a true
positive rate of 95 % with outliers as positives (Hendrycks et al. 2019, arXiv 1812.04606); where
inliers are called positive (ODIN, arXiv 1706.02690) it is another number."""


def detection(positive: np.ndarray, negative: np.ndarray) -> dict[str, float]:
    """All `MEASURES` of one score.

    Args:
        positive: see `auroc`.
        negative: see `auroc`.

    Returns:
        Name of the measure -> percent; nan if one side is empty.
    """
    return {name: measure(positive, negative) for name, measure in MEASURES.items()}
