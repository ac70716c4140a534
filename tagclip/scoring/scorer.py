"""Counting anybody's predictions against a dataset's labels, in several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from tagclip.data.datasets.walk import map_files
from tagclip.data.label_io import check_label, read_label
from tagclip.errors import DatasetError
from tagclip.evaluation.boundary import BoundaryIoU
from tagclip.evaluation.metrics import confusion_matrix, harmonic_mean
from tagclip.evaluation.saved_predictions import PredictionWriter
from tagclip.scoring.conventions import CONVENTIONS
from tagclip.scoring.mean_iou import MeanIoU
from tagclip.scoring.predictions import PredictedLabels
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.look_up import look_up

__all__ = ["Counts", "Scorer"]

# Images of one task: sums are made in the same order, however many processes there are.
_CHUNK = 8


@dataclass
class Counts:
    """What was counted; counts of different images add up.

    Attributes:
        confusion: (K, K + 1) int64 pixels by true and predicted class; the last column got none.
        images: how many.
        boundary: boundary pixels, if they are counted.
        means: by name of the convention.
    """

    confusion: np.ndarray
    images: int
    boundary: BoundaryIoU | None
    means: dict[str, MeanIoU]

    def __iadd__(self, other: Counts) -> Counts:
        self.confusion += other.confusion
        self.images += other.images
        if self.boundary is not None:
            self.boundary.counts += other.boundary.counts
        for name, mean in self.means.items():
            mean.sums += other.means[name].sums
            mean.counts += other.means[name].counts
        return self

    def convention_metrics(self) -> dict[str, dict[str, float]]:
        """Name of each convention -> ``mIoU`` and, with a split, those of its two sides."""
        found = {}
        for name, mean in self.means.items():
            values = mean.values()
            if "mIoU-seen" in values:
                values["hIoU"] = harmonic_mean(values["mIoU-seen"], values["mIoU-unseen"])
            found[name] = values
        return found


@dataclass(frozen=True)
class Scorer:
    """Compares label files and predictions, class by class of one list.

    Attributes:
        vocabulary: the dataset's K classes with the split's partition, if there is one.
        predictions: of all images.
        writer: saves the predictions as an evaluation does, or None.
        boundary: whether to count boundary pixels.
        conventions: keys of `CONVENTIONS`.
    """

    vocabulary: Vocabulary
    predictions: PredictedLabels
    writer: PredictionWriter | None = None
    boundary: bool = False
    conventions: Sequence[str] = ()

    def score(self, samples: Sequence[Mapping[str, Any]], workers: int) -> Counts:
        """Count all images; the result does not depend on the number of processes.

        Args:
            samples: detectron2's dicts with ``file_name`` and ``sem_seg_file_name``.
            workers: processes; below 2 there is none beside this.

        Raises:
            DatasetError: a file is missing or damaged, sizes or values do not fit, or no pixel is
                labelled.
        """
        if self.writer is not None:
            self.writer.start()
        chunks = [samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK)]
        total = self._nothing()
        for counts in map_files(partial(_count, self), chunks, "Scoring", workers):
            total += counts
        if not total.confusion.any():
            raise DatasetError(
                f"{self.vocabulary.name}: found 0 labelled pixels in {total.images} images, "
                "expected some; check the label files and ignore_label"
            )
        return total

    def _nothing(self) -> Counts:
        classes = len(self.vocabulary)
        groups = {"mIoU": np.ones(classes, dtype=bool)}
        if self.vocabulary.seen is not None:
            seen = self.vocabulary.seen_mask
            groups |= {"mIoU-seen": seen, "mIoU-unseen": ~seen}
        return Counts(
            np.zeros((classes, classes + 1), dtype=np.int64),
            0,
            BoundaryIoU(classes) if self.boundary else None,
            {name: MeanIoU(CONVENTIONS[name], groups) for name in self.conventions},
        )

    @cached_property
    def _lut(self) -> np.ndarray:
        return self.vocabulary.label_lut()

    def add(self, counts: Counts, sample: Mapping[str, Any]) -> None:
        """Count one image."""
        image, path = sample["file_name"], sample["sem_seg_file_name"]
        raw = read_label(path, self.vocabulary)
        check_label(raw, path, self.vocabulary, raw.shape)
        truth = look_up(self._lut, raw)
        labels = self.predictions.read(image, truth.shape)
        known, classes = labels >= 0, len(self.vocabulary)
        confusion = np.zeros_like(counts.confusion)
        confusion[:, :-1] = confusion_matrix(truth[known], labels[known], classes)
        # Ignored pixels have the index `ignore_index`, which is K or more.
        confusion[:, -1] = np.bincount(truth[~known], minlength=classes)[:classes]
        counts.confusion += confusion
        counts.images += 1
        if counts.boundary is not None:
            counts.boundary.update(truth, labels)
        for mean in counts.means.values():
            mean.update(confusion)
        if self.writer is not None:
            self.writer.write(image, labels, {})


def _count(scorer: Scorer, samples: Sequence[Mapping[str, Any]]) -> Counts:
    counts = scorer._nothing()
    for sample in samples:
        scorer.add(counts, sample)
    return counts
