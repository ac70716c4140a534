"""What MODEL.TAGCLIP.TEST.BACKGROUND auto rejects, and classes drawn where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tagclip.evaluation.metrics import confusion_matrix

__all__ = ["NoneCounts"]

_REGIONS = ("seen pixels lost", "unseen pixels lost", "unlabelled pixels rejected")


@dataclass
class NoneCounts:
    """Adds up images.

    Attributes:
        seen: (K,) bool, which classes are seen to the model.
        confusion: (K, K + 1) pixels by true class and result, the last column those rejected.
    """

    seen: np.ndarray

    def __post_init__(self) -> None:
        # Rows: pixels of seen, of unseen classes, and without label; columns: all, rejected.
        self._pixels = np.zeros((3, 2), dtype=np.int64)
        # Images with seen pixels, and the sum of their shares of these that are rejected.
        self._images, self._lost = 0, 0.0
        # With a class that no pixel of the image has: of all pixels, and of those not rejected.
        self._absent = np.zeros(2, dtype=np.int64)
        self.confusion = np.zeros((len(self.seen), len(self.seen) + 1), dtype=np.int64)

    def add(self, truth: np.ndarray, labels: np.ndarray, rejected: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (N,) integers; those outside [0, K) have no label.
            labels: (N,) the best class of each pixel.
            rejected: (N,) bool, pixels that get none of them.
        """
        classes = len(self.seen)
        has_label = (truth >= 0) & (truth < classes)
        region = np.full(len(truth), 2)
        region[has_label] = np.where(self.seen[truth[has_label]], 0, 1)
        for column, pixels in enumerate((region, region[rejected])):
            self._pixels[:, column] += np.bincount(pixels, minlength=3)
        if (region == 0).any():
            self._images += 1
            self._lost += float(rejected[region == 0].mean())
        present = np.zeros(classes, dtype=bool)
        present[truth[has_label]] = True
        absent = ~present[labels]
        result = np.where(rejected, classes, labels)[has_label]
        self.confusion += confusion_matrix(truth[has_label], result, classes + 1)[:classes]
        self._absent += [absent.sum(), (absent & ~rejected).sum()]

    def figures(self) -> dict[str, float]:
        """Shares in percent; nan where there are no such pixels, or no image was added."""
        every = self._pixels[:, 0].sum()
        pairs = dict(zip(_REGIONS, self._pixels, strict=True))
        pairs["seen pixels lost, mean of images"] = (self._images, self._lost)
        pairs["pixels with a class that is not in the image"] = (every, self._absent[1])
        pairs["the same without the test"] = (every, self._absent[0])
        return {name: 100 * part / all if all else np.nan for name, (all, part) in pairs.items()}
