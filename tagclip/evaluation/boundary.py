"""Boundary IoU of label maps (arXiv:2103.16562), of every class, pooled over a dataset."""

from __future__ import annotations

import math

import cv2
import numpy as np

__all__ = ["BoundaryIoU", "boundary_pixels"]


def boundary_pixels(labels: np.ndarray, distance: int) -> np.ndarray:
    """Find the pixels near the contour of their own class.

    A pixel is near if another class, or the outside of the image, is at most ``distance`` rows and
    columns away: what `distance` erosions by a 3 x 3 square take from the mask of its class.
    One minimum and one maximum over a square answer it for all classes at once.

    Args:
        labels: (H, W) integers from -1 to 65534.
        distance: in pixels, 1 or more.

    Returns:
        (H, W) bool.
    """
    # Outside is 0; a type that OpenCV filters.
    values = labels.astype(np.int32) + 2
    values = values.astype(np.uint8 if values.max(initial=0) <= 255 else np.float32)
    values = cv2.copyMakeBorder(values, *(distance,) * 4, cv2.BORDER_CONSTANT, value=0)
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    found = cv2.erode(values, square) != cv2.dilate(values, square)
    return found[distance:-distance, distance:-distance]


class BoundaryIoU:
    """Counts the boundary pixels of every class; memory does not grow with images.

    Of each image the boundary is ``ratio`` of its diagonal wide, at least one pixel, in truth and
    prediction alike. Ignored pixels belong to no class in either, so that their edge is a boundary
    of the classes beside them in both. Counts of several objects add up.

    Attributes:
        counts: (3, K) int64: boundary pixels of the truth, of the prediction, and of both.
    """

    def __init__(self, classes: int, ratio: float = 0.02) -> None:
        """Count nothing yet.

        Args:
            classes: K.
            ratio: width of the boundary, above 0.
        """
        self.counts = np.zeros((3, classes), dtype=np.int64)
        self._ratio = ratio

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) integers; K and above are ignored.
            prediction: (H, W) integers from -1, no class, to K - 1.

        Raises:
            ValueError: the shapes differ.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"found labels of {truth.shape}, predictions of {prediction.shape}")
        classes = self.counts.shape[1]
        distance = max(1, round(self._ratio * math.hypot(*truth.shape)))
        known = truth < classes
        maps = [np.where(known, labels, -1).astype(np.int32) for labels in (truth, prediction)]
        near = [boundary_pixels(labels, distance) & (labels >= 0) for labels in maps]
        both = near[0] & near[1] & (maps[0] == maps[1])
        for row, labels, mask in zip(self.counts, (*maps, maps[0]), (*near, both), strict=True):
            row += np.bincount(labels[mask], minlength=classes)

    def per_class(self) -> np.ndarray:
        """(K,) float64 in percent; nan for classes without a true pixel."""
        truth, prediction, both = self.counts
        with np.errstate(invalid="ignore"):
            return np.where(truth > 0, 100 * both / (truth + prediction - both), np.nan)
