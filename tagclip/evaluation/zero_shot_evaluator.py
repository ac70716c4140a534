"""Evaluator that reports seen, unseen and harmonic mIoU."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from tagclip.data.label_io import check_label, read_label
from tagclip.errors import DatasetError
from tagclip.evaluation.metrics import auroc, confusion_matrix, per_class, summarize
from tagclip.vocabulary import Vocabulary

__all__ = ["ZeroShotSemSegEvaluator"]

_BINS = 4096
_HEADLINES = ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU", "pAcc", "pAcc-seen", "pAcc-unseen")


class ZeroShotSemSegEvaluator(SemSegEvaluator):
    """Accumulates one confusion matrix and two histograms: memory does not grow with images."""

    def __init__(
        self,
        dataset_name: str,
        *,
        vocabulary: Vocabulary,
        distributed: bool = True,
        output_dir: str | None = None,
        run_info: dict[str, Any] | None = None,
    ) -> None:
        """Prepare for one registered dataset.

        Args:
            dataset_name: registered with ``sem_seg_file_name`` in its dicts.
            vocabulary: class list of predictions and labels; its partition, if any, is reported.
            distributed: add up over all processes.
            output_dir: where ``metrics.json`` goes; None writes nothing.
            run_info: stored with the metrics.
        """
        super().__init__(dataset_name, distributed=distributed, output_dir=output_dir)
        self._name, self._vocabulary = dataset_name, vocabulary
        self._run_info = run_info or {}
        lut = vocabulary.label_lut()
        ignored = vocabulary.ignore_index
        self._lut = np.where(lut < 0, ignored, lut).astype(np.int32)
        self._seen = None if vocabulary.seen is None else vocabulary.seen_mask
        self.reset()

    def reset(self) -> None:
        """Forget everything that was processed."""
        classes = len(self._vocabulary)
        self._confusion = np.zeros((classes, classes), dtype=np.int64)
        self._trusty = np.zeros((2, _BINS), dtype=np.int64)
        self._images = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count one batch.

        Args:
            inputs: dicts with ``file_name``.
            outputs: dicts with ``sem_seg_labels`` (H, W) or ``sem_seg`` (K, H, W), and maybe
                ``trusty`` (H, W) in [0, 1].

        Raises:
            DatasetError: a label file is missing or damaged, of another size than the
                prediction, or holds a value outside the vocabulary.
            ValueError: a prediction names a class that the vocabulary does not have.
        """
        for item, output in zip(inputs, outputs, strict=True):
            prediction = _labels_of(output)
            path = self.input_file_to_gt_file[item["file_name"]]
            raw = read_label(path)
            check_label(raw, path, self._vocabulary, prediction.shape)
            if prediction.min() < 0 or prediction.max() >= len(self._vocabulary):
                raise ValueError(
                    f"{item['file_name']}: found predicted classes {prediction.min()} to "
                    f"{prediction.max()}, expected 0 to {len(self._vocabulary) - 1}"
                )
            truth = self._lut[raw]
            self._confusion += confusion_matrix(truth, prediction, len(self._vocabulary))
            if "trusty" in output and self._seen is not None:
                self._count_trusty(truth, output["trusty"])
            self._images += 1

    def _count_trusty(self, truth: np.ndarray, trusty: torch.Tensor) -> None:
        bins = (trusty.float().clamp(0, 1) * (_BINS - 1)).round().int().cpu().numpy()
        labelled = truth < len(self._vocabulary)
        seen = self._seen[truth[labelled]]
        for row, mask in enumerate((seen, ~seen)):
            self._trusty[row] += np.bincount(bins[labelled][mask], minlength=_BINS)

    def evaluate(self) -> OrderedDict | None:
        """Add up over processes, log a table and write ``metrics.json``.

        Returns:
            In the main process ``{"sem_seg": metrics}`` in percent, nan where undefined;
            None in the others.

        Raises:
            DatasetError: no image had a labelled pixel.
        """
        if self._distributed:
            gathered = comm.gather((self._confusion, self._trusty, self._images))
            if not comm.is_main_process():
                return None
            self._confusion, self._trusty, self._images = map(sum, zip(*gathered, strict=True))
        if not self._confusion.any():
            raise DatasetError(
                f"dataset {self._name}: found 0 labelled pixels in {self._images} images, "
                "expected some; check its label files and ignore_label"
            )
        metrics = summarize(self._confusion, self._seen)
        trusty = auroc(*self._trusty)
        if self._trusty.any():
            metrics["trusty-AUROC"] = trusty
        classes = per_class(self._confusion)
        self._log(metrics, classes["IoU"])
        self._write(metrics, classes)
        for kind, values in classes.items():
            metrics |= {
                f"{kind}-{name}": float(value)
                for name, value in zip(self._vocabulary.names, values, strict=True)
            }
        return OrderedDict(sem_seg=metrics)

    def _log(self, metrics: dict[str, float], iou: np.ndarray) -> None:
        logger = logging.getLogger(__name__)
        undefined = [
            name
            for name, value in zip(self._vocabulary.names, iou, strict=True)
            if math.isnan(value)
        ]
        if undefined:
            logger.info("IoU undefined (no labelled pixel) for: %s", ", ".join(undefined))
        counts = {"mIoU": (~np.isnan(iou)).sum()}
        if self._seen is not None:
            counts["mIoU-seen"] = (~np.isnan(iou[self._seen])).sum()
            counts["mIoU-unseen"] = (~np.isnan(iou[~self._seen])).sum()
        rows = [
            (name, _number(metrics[name]), counts.get(name, ""))
            for name in (*_HEADLINES, "trusty-AUROC")
            if name in metrics
        ]
        table = tabulate(rows, ("metric", "percent", "classes"), disable_numparse=True)
        logger.info("%s, %d images\n%s", self._name, self._images, table)

    def _write(self, metrics: dict[str, float], classes: dict[str, np.ndarray]) -> None:
        if not self._output_dir:
            return
        vocabulary = self._vocabulary
        content = {
            "dataset": self._name,
            "images": self._images,
            "metrics": metrics,
            "classes": [
                {
                    "name": name,
                    "seen": None if self._seen is None else bool(self._seen[k]),
                    "IoU": float(classes["IoU"][k]),
                    "ACC": float(classes["ACC"][k]),
                    "pixels": int(self._confusion[k].sum()),
                }
                for k, name in enumerate(vocabulary.names)
            ],
            "confusion": self._confusion.tolist(),
            "vocabulary": vocabulary.name,
            "vocabulary_fingerprint": vocabulary.fingerprint,
            "split": vocabulary.split,
            "run": self._run_info,
        }
        folder = Path(self._output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=folder, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            json.dump(_without_nan(content), file, indent=1, allow_nan=False)
        os.replace(file.name, folder / "metrics.json")


def _labels_of(output: dict[str, Any]) -> np.ndarray:
    if "sem_seg_labels" in output:
        return output["sem_seg_labels"].cpu().numpy()
    return output["sem_seg"].argmax(dim=0).cpu().numpy()


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"


def _without_nan(value: Any) -> Any:
    """JSON has no nan: undefined values become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
