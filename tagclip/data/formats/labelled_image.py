"""What the writers of other tools' files get: an image and the class of each of its pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["LabelledImage", "Shapes", "class_masks", "labels_and_scores"]

# How regions are written: polygons can be edited everywhere.
Shapes = Literal["polygons", "masks"]


@dataclass(frozen=True)
class LabelledImage:
    """An image with its prediction.

    Attributes:
        file: path below the folder that all images share, with "/".
        stem: the same without suffix, unless another image differs in the suffix alone.
        path: the image.
        labels: (H, W) integers, indices of classes; negative where there is none.
    """

    file: str
    stem: str
    path: Path
    labels: np.ndarray


def class_masks(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and the (H, W) bool mask of each class on an image, in order."""
    for k in np.unique(labels[labels >= 0]).tolist():
        yield k, labels == k


def labels_and_scores(
    prediction: np.ndarray | Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Take a prediction apart.

    Args:
        prediction: (H, W) indices of classes, negative for none, or what a `TagCLIPPredictor`
            returns for an image: ``sem_seg_labels`` and ``sem_seg_scores``.

    Returns:
        (H, W) integers, and (H, W) float32 scores if there are some.
    """
    if not isinstance(prediction, Mapping):
        return np.asarray(prediction), None
    scores = prediction.get("sem_seg_scores")
    labels = np.asarray(prediction["sem_seg_labels"])
    return labels, None if scores is None else np.asarray(scores, dtype=np.float32)
