"""Evaluated images: ranked by their own mIoU, and drawn beside what is true and predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tagclip.evaluation.metrics import confusion_matrix, per_class
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import (
    HATCHED_NOTE,
    draw_legend,
    draw_panels,
    draw_trusty_bar,
    fit,
    stack_pictures,
)
from tagclip.visualization.segments import colorize_trusty, draw_segments

__all__ = [
    "Predicted",
    "Ranked",
    "classes_on",
    "count_pixels",
    "draw_gallery",
    "rank_images",
    "spread_ranks",
]


@dataclass(frozen=True)
class Predicted:
    """An image and what the model says.

    Attributes:
        title: its place in the ranking.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) int32 indices into the vocabulary, its ``ignore_index`` where unlabelled.
        labels: (H, W) int16 or int32 predicted indices, -1 for no class.
        trusty: (H, W) float32 P(pixel belongs to a seen class), None without a trusty token.
        others: further predictions to compare with, as ``labels``.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    trusty: np.ndarray | None
    others: tuple[np.ndarray, ...] = ()

    @property
    def maps(self) -> tuple[np.ndarray, ...]:
        """Its label maps: the truth, the prediction, the others."""
        return self.truth, self.labels, *self.others


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


def classes_on(images: Iterable[Predicted], vocabulary: Vocabulary) -> list[int]:
    """Indices of the classes that are true or predicted on the images, ascending."""
    found = np.unique(np.concatenate([np.unique(m) for image in images for m in image.maps]))
    return [k for k in found.tolist() if 0 <= k < len(vocabulary)]


def draw_gallery(
    images: Sequence[Predicted],
    vocabulary: Vocabulary,
    size: int = 288,
    classes: Iterable[int] | None = None,
    titles: Sequence[str] = ("prediction",),
) -> np.ndarray:
    """One row per image (itself, ground truth, predictions, trusty map) above the legend.

    Args:
        images: at least one.
        vocabulary: K classes.
        size: of a panel's longer side, see `fit`.
        classes: what the legend lists; None lists all.
        titles: of the predictions: ``labels``, then ``others``.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    has_trusty = images[0].trusty is not None
    heads = ["image", "ground truth", *titles]
    rows: list[list[np.ndarray | None]] = []
    for image in images:
        pixels = fit(image.image, size)
        unlabelled = fit(image.truth, size) >= len(vocabulary)
        row = [pixels]
        for labels in image.maps:
            segments = fit(labels, size)
            row.append(draw_segments(pixels, segments, vocabulary, 1.0, hatched=unlabelled))
        if has_trusty:
            row.append(colorize_trusty(fit(image.trusty, size)))
        rows.append(row)
    if has_trusty:
        bar = draw_trusty_bar(max(row[-1].shape[1] for row in rows))
        rows.append([*[None] * len(heads), bar])
        heads.append("trusty map: P(seen class)")
    panels = draw_panels(rows, heads, [image.title for image in images])
    ignored = any((image.truth >= len(vocabulary)).any() for image in images)
    other = any((m < 0).any() for image in images for m in image.maps[1:])
    hatched = " or ".join(["unlabelled"] * ignored + ["predicted no class"] * other)
    outside = (hatched, HATCHED_NOTE * ignored)
    legend = draw_legend(vocabulary, panels.shape[1], classes, bool(hatched), outside)
    return stack_pictures([panels, legend])
