"""Evaluated images: ranked by their own mIoU, and drawn beside what is true and predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from tagclip.evaluation.metrics import confusion_matrix, per_class
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import (
    UNLABELLED_NOTE,
    draw_legend,
    draw_panels,
    draw_trusty_bar,
    stack_pictures,
)
from tagclip.visualization.segments import colorize_trusty, draw_segments, enlarge

__all__ = [
    "Predicted",
    "Ranked",
    "count_pixels",
    "draw_gallery",
    "fit",
    "rank_images",
    "spread_ranks",
]

# The thinnest strip of pixels that can still be looked at.
_THINNEST = 24


@dataclass(frozen=True)
class Predicted:
    """An image and what the model says.

    Attributes:
        title: its place in the ranking.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) int32 indices into the vocabulary, its ``ignore_index`` where unlabelled.
        labels: (H, W) int16 or int32 predicted indices, -1 for no class.
        trusty: (H, W) float32 P(pixel belongs to a seen class), None without a trusty token.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    trusty: np.ndarray | None


@dataclass(frozen=True)
class Ranked:
    """An image's place among others.

    Attributes:
        score: mIoU over the classes that it shows, in percent.
        sample: its dict in the dataset.
        has_both: whether it shows seen and unseen classes.
    """

    score: float
    sample: dict[str, Any]
    has_both: bool


def count_pixels(truth: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Count labelled pixels by true and predicted class.

    Args:
        truth: (H, W) integers; K and above are ignored.
        labels: (H, W) integers, -1 for no class.
        classes: K.

    Returns:
        (K, K + 1) int64: rows are true classes, the last column counts pixels without a class.

    Raises:
        ValueError: the shapes differ, or a prediction is no class.
    """
    if truth.shape != labels.shape:
        raise ValueError(f"found labels of {truth.shape}, predictions of {labels.shape}")
    other = labels == -1
    counts = confusion_matrix(truth[~other], labels[~other], classes)
    none = np.bincount(truth[other], minlength=classes)[:classes]
    return np.column_stack([counts, none])


def rank_images(
    samples: Iterable[dict[str, Any]],
    predict: Callable[[dict[str, Any]], Predicted],
    seen: np.ndarray,
) -> tuple[list[Ranked], np.ndarray]:
    """Rank images by mIoU over their own classes; memory does not grow with their pixels.

    Args:
        samples: detectron2's standard dicts.
        predict: sample -> image, its labels and predictions.
        seen: (K,) bool.

    Returns:
        The images with labelled pixels, best first, and the (K, K + 1) sum of `count_pixels`.
    """
    total = np.zeros((len(seen), len(seen) + 1), dtype=np.int64)
    ranking = []
    for sample in samples:
        image = predict(sample)
        confusion = count_pixels(image.truth, image.labels, len(seen))
        total += confusion
        present = confusion.any(axis=1)
        if present.any():
            score = float(np.nanmean(per_class(confusion)["IoU"]))
            has_both = bool(present[seen].any() and present[~seen].any())
            ranking.append(Ranked(score, sample, has_both))
    return sorted(ranking, key=lambda each: (-each.score, each.sample["file_name"])), total


def spread_ranks(total: int, count: int) -> list[int]:
    """At most ``count`` ranks from 1 to ``total``, both included, evenly spaced."""
    return sorted({round(rank) for rank in np.linspace(1, total, count)})


def fit(picture: np.ndarray, size: int) -> np.ndarray:
    """Give the longer side about ``size`` pixels: by a whole factor, or by leaving pixels out.

    Args:
        picture: (H, W) labels or probabilities, or (H, W, 3) uint8 colours, which are averaged.
        size: in pixels; of a smaller picture the nearest multiple is taken.
    """
    longer = max(picture.shape[:2])
    if longer <= size:
        return enlarge(picture, longer * round(size / longer))
    height, width = (max(round(n * size / longer), _THINNEST) for n in picture.shape[:2])
    if picture.ndim == 3:
        return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = (
        (np.arange(shown) * n + n // 2) // shown
        for shown, n in zip((height, width), picture.shape, strict=True)
    )
    return picture[rows][:, columns]


def draw_gallery(
    images: Sequence[Predicted],
    vocabulary: Vocabulary,
    size: int = 288,
    classes: Iterable[int] | None = None,
) -> np.ndarray:
    """One row per image (itself, ground truth, prediction, trusty map) above the legend.

    Args:
        images: at least one.
        vocabulary: K classes.
        size: of a panel's longer side, see `fit`.
        classes: what the legend lists; None lists all.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    has_trusty = images[0].trusty is not None
    rows: list[list[np.ndarray | None]] = []
    for image in images:
        pixels = fit(image.image, size)
        row = [pixels]
        for labels in (image.truth, image.labels):
            row.append(draw_segments(pixels, fit(labels, size), vocabulary, alpha=1.0))
        if has_trusty:
            row.append(colorize_trusty(fit(image.trusty, size)))
        rows.append(row)
    titles = ["image", "ground truth", "prediction"]
    if has_trusty:
        titles.append("trusty map: P(pixel belongs to a seen class)")
        rows.append([None, None, None, draw_trusty_bar(max(row[3].shape[1] for row in rows))])
    panels = draw_panels(rows, titles, [image.title for image in images])
    has_other = any((image.labels < 0).any() for image in images)
    outside = "unlabelled, or predicted no class" if has_other else "unlabelled"
    legend = draw_legend(vocabulary, panels.shape[1], classes, outside=(outside, UNLABELLED_NOTE))
    return stack_pictures([panels, legend])
