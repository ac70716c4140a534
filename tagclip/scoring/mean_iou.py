"""Mean IoUs by the conventions of several packages, counted image by image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tagclip.scoring.conventions import Convention

__all__ = ["MeanIoU"]


class MeanIoU:
    """Mean IoU of one convention, for several groups of classes; memory grows by no image.

    Attributes:
        sums: (G, 2) float64: sum and number of what is averaged, image by image.
        counts: (3, K) int64: hits, true and predicted pixels of all images.
    """

    def __init__(self, convention: Convention, groups: Mapping[str, np.ndarray]) -> None:
        """Count nothing yet.

        Args:
            convention: what is averaged.
            groups: name -> (K,) bool, the classes that belong to it.
        """
        self._convention, self._groups = convention, dict(groups)
        classes = len(next(iter(self._groups.values())))
        self.sums = np.zeros((len(self._groups), 2))
        self.counts = np.zeros((3, classes), dtype=np.int64)

    def update(self, confusion: np.ndarray) -> None:
        """Count one image.

        Args:
            confusion: (K, K) or (K, K + 1) pixels that are not ignored; rows are true classes,
                column K those without a predicted class.
        """
        predicted = confusion.sum(axis=0)[: len(confusion)]
        counts = np.stack([np.diag(confusion), confusion.sum(axis=1), predicted])
        self.counts += counts
        if self._convention.unit == "dataset":
            return
        iou, counted = self._ious(counts)
        for row, group in zip(self.sums, self._groups.values(), strict=True):
            chosen = iou[counted & group]
            if self._convention.unit == "pair":
                row += chosen.sum(), len(chosen)
            elif len(chosen):
                row += chosen.mean(), 1

    def values(self) -> dict[str, float]:
        """Name of each group -> percent; nan where nothing counts."""
        sums = self.sums
        if self._convention.unit == "dataset":
            iou, counted = self._ious(self.counts)
            chosen = [iou[counted & group] for group in self._groups.values()]
            sums = np.array([[values.sum(), len(values)] for values in chosen])
        with np.errstate(invalid="ignore"):
            means = 100 * sums[:, 0] / sums[:, 1]
        decimals = self._convention.decimals
        means = means if decimals is None else means.round(decimals)
        return dict(zip(self._groups, means.tolist(), strict=True))

    def _ious(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K,) IoU, and (K,) whether it counts."""
        hits, true, predicted = counts
        union = true + predicted - hits
        iou = np.where(union > 0, hits / np.maximum(union, 1), self._convention.empty)
        counted = {"true": true > 0, "either": union > 0, "all": np.ones_like(true, dtype=bool)}
        return iou, counted[self._convention.counted]
