"""Segmentation metrics from a confusion matrix: pure functions."""

from __future__ import annotations

import numpy as np

__all__ = [
    "ABSENT_AS_0",
    "confusion_matrix",
    "defined_classes",
    "harmonic_mean",
    "mean_ious",
    "per_class",
    "summarize",
]

# Behind the name of a mean: the same mean where a predicted class without true pixels counts as 0.
ABSENT_AS_0 = "-absent-as-0"


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        truth: integers >= 0 of any shape; pixels of K and above are left out (ignored).
        prediction: integers in [0, K), same shape.
        classes: K.

    Returns:
        (K, K) int64, rows are true classes.

    Raises:
        ValueError: the shapes differ, or a value is no integer or out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"found labels of {truth.shape}, predictions of {prediction.shape}")
    if truth.dtype.kind not in "iu" or prediction.dtype.kind not in "iu":
        raise ValueError(
            f"found labels of {truth.dtype}, predictions of {prediction.dtype}, expected integers"
        )
    if not truth.size:
        return np.zeros((classes, classes), dtype=np.int64)
    if truth.min() < 0:
        raise ValueError(f"found label {truth.min()}, expected 0 or more")
    if prediction.min() < 0 or prediction.max() >= classes:
        raise ValueError(
            f"found predicted classes {prediction.min()} to {prediction.max()}, "
            f"expected 0 to {classes - 1}"
        )
    # Row K takes the pixels that do not count.
    index = truth.reshape(-1).astype(np.int64)
    np.minimum(index, classes, out=index)
    index *= classes
    index += prediction.reshape(-1)
    counts = np.bincount(index, minlength=classes * (classes + 1))
    return counts[: classes * classes].reshape(classes, classes)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b) of values >= 0; nan if one is undefined, 0 if both are 0.

    Of mIoU-seen and mIoU-unseen it is hIoU (docs/method.md, section 7).
    """
    return 2 * a * b / (a + b) if a + b != 0 else 0.0


def per_class(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return IoU and accuracy of every class.

    Args:
        confusion: (K, K), rows are true classes; a column K counts pixels without a class.

    Returns:
        ``IoU`` = hits / (true + predicted - hits) and ``ACC`` = hits / true: (K,) float64 in
        percent, nan for classes without true pixels, also where they were predicted (as
        detectron2's main branch and COCO count them).
    """
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)[: len(confusion)]
    hits = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        iou = np.where(true > 0, 100 * hits / (true + predicted - hits), np.nan)
        accuracy = 100 * hits / true
    return {"IoU": iou, "ACC": accuracy}


def mean_ious(iou: np.ndarray, seen_mask: np.ndarray | None) -> dict[str, float]:
    """Average over all, seen and unseen classes.

    Args:
        iou: (K,), nan for classes that do not count.
        seen_mask: (K,) bool; None leaves the partition out.

    Returns:
        ``mIoU``, and with a partition ``mIoU-seen``, ``mIoU-unseen`` and ``hIoU``.
    """
    means = {"mIoU": _mean(iou)}
    means |= {f"mIoU{side}": _mean(iou[mask]) for side, mask in _sides(seen_mask).items()}
    if seen_mask is not None:
        means["hIoU"] = harmonic_mean(means["mIoU-seen"], means["mIoU-unseen"])
    return means


def summarize(confusion: np.ndarray, seen_mask: np.ndarray | None) -> dict[str, float]:
    """Average over all, seen and unseen classes and pixels.

    Args:
        confusion: see `per_class`.
        seen_mask: (K,) bool; None leaves the partition out.

    Returns:
        In percent: ``mIoU``, ``mACC``, ``pAcc``, and with a partition ``mIoU-seen``,
        ``mIoU-unseen``, ``hIoU``, ``pAcc-seen`` and ``pAcc-unseen``. nan where no class or
        pixel defines a value. Means of IoU leave out classes without true pixels, as detectron2's
        main branch; where another value results, ``mIoU-absent-as-0`` and so on count those of
        them that were predicted as 0, as detectron2 0.6 and mmseg.
    """
    classes = per_class(confusion)
    means = mean_ious(classes["IoU"], seen_mask)
    result = {
        "mIoU": means["mIoU"],
        "mACC": _mean(classes["ACC"]),
        "pAcc": _pixel_accuracy(confusion),
    }
    for side, mask in _sides(seen_mask).items():
        result[f"mIoU{side}"] = means[f"mIoU{side}"]
        result[f"pAcc{side}"] = _pixel_accuracy(confusion, mask)
    result |= means
    iou = np.where(_predicted_but_absent(confusion), 0, classes["IoU"])
    for name, value in mean_ious(iou, seen_mask).items():
        if not np.array_equal(value, means[name], equal_nan=True):
            result[f"{name}{ABSENT_AS_0}"] = value
    return result


def defined_classes(confusion: np.ndarray, seen_mask: np.ndarray | None) -> dict[str, int]:
    """Count the classes that each mean of `summarize` averages: those with true pixels.

    Args:
        confusion: see `per_class`.
        seen_mask: (K,) bool; None leaves the partition out.

    Returns:
        ``mIoU``, and with a partition ``mIoU-seen`` and ``mIoU-unseen``; with ``-absent-as-0``
        where classes without true pixels were predicted.
    """
    defined, absent = confusion.sum(axis=1) > 0, _predicted_but_absent(confusion)
    counts = {}
    for side, mask in ({"": np.ones_like(defined)} | _sides(seen_mask)).items():
        counts[f"mIoU{side}"] = int((defined & mask).sum())
        if (absent & mask).any():
            counts[f"mIoU{side}{ABSENT_AS_0}"] = int(((defined | absent) & mask).sum())
    return counts


def _predicted_but_absent(confusion: np.ndarray) -> np.ndarray:
    """(K,) bool: classes without true pixels that some labelled pixel got."""
    return (confusion.sum(axis=1) == 0) & (confusion.sum(axis=0)[: len(confusion)] > 0)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _pixel_accuracy(confusion: np.ndarray, mask: np.ndarray | None = None) -> float:
    chosen = slice(None) if mask is None else mask
    hits, pixels = np.diag(confusion)[chosen].sum(), confusion[chosen].sum()
    return 100 * float(hits) / float(pixels) if pixels else float("nan")


def _sides(seen_mask: np.ndarray | None) -> dict[str, np.ndarray]:
    return {} if seen_mask is None else {"-seen": seen_mask, "-unseen": ~seen_mask}
