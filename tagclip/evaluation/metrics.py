"""Segmentation metrics from a confusion matrix, and AUROC from histograms: pure functions."""

from __future__ import annotations

import numpy as np

__all__ = ["auroc", "confusion_matrix", "harmonic_mean", "per_class", "summarize"]


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        truth: integers of any shape; values outside [0, classes) are left out.
        prediction: same shape, in [0, classes).
        classes: K.

    Returns:
        (K, K) int64, rows are true classes.
    """
    truth, prediction = truth.reshape(-1), prediction.reshape(-1)
    labelled = truth < classes
    index = truth[labelled].astype(np.int64) * classes + prediction[labelled]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); nan if one is undefined, 0 if both are 0."""
    return 2 * a * b / (a + b) if a + b != 0 else 0.0


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return IoU and accuracy of every class.

    Args:
        confusion: (K, K), rows are true classes.

    Returns:
        ``IoU`` and ``ACC``: (K,) float64 in percent, nan for classes without true pixels (as
        detectron2's main branch and COCO count them).
    """
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    hits = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        iou = np.where(true > 0, 100 * hits / (true + predicted - hits), np.nan)
        accuracy = 100 * hits / true
    return {"IoU": iou, "ACC": accuracy}


def summarize(confusion: np.ndarray, seen_mask: np.ndarray | None) -> dict[str, float]:
    """Average over all, seen and unseen classes and pixels.

    Args:
        confusion: (K, K), rows are true classes.
        seen_mask: (K,) bool; None leaves the partition out.

    Returns:
        In percent: ``mIoU``, ``mACC``, ``pAcc``, and with a partition ``mIoU-seen``,
        ``mIoU-unseen``, ``hIoU``, ``pAcc-seen`` and ``pAcc-unseen``. nan where no class or
        pixel defines a value.
    """
    classes = per_class(confusion)
    result = {
        "mIoU": _mean(classes["IoU"]),
        "mACC": _mean(classes["ACC"]),
        "pAcc": _pixel_accuracy(confusion),
    }
    if seen_mask is None:
        return result
    for part, mask in (("seen", seen_mask), ("unseen", ~seen_mask)):
        result[f"mIoU-{part}"] = _mean(classes["IoU"][mask])
        result[f"pAcc-{part}"] = _pixel_accuracy(confusion, mask)
    result["hIoU"] = harmonic_mean(result["mIoU-seen"], result["mIoU-unseen"])
    return result


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half.

    Args:
        positive: (B,) counts of positives per bin, bins in ascending order of score.
        negative: (B,) counts of negatives.

    Returns:
        In percent; nan if one side is empty.
    """
    pairs = float(positive.sum()) * float(negative.sum())
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return 100 * float((positive * (below + negative / 2)).sum()) / pairs


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _pixel_accuracy(confusion: np.ndarray, mask: np.ndarray | None = None) -> float:
    rows = confusion if mask is None else confusion[mask]
    hits = np.diag(confusion) if mask is None else np.diag(confusion)[mask]
    return 100 * float(hits.sum()) / float(rows.sum()) if rows.sum() else float("nan")
