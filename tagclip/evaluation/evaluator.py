"""Evaluator that reports seen, unseen and harmonic mIoU."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from tagclip.data.claim import Claim
from tagclip.data.datasets.selection import left_out
from tagclip.data.label_io import check_label, read_label
from tagclip.data.protocol import Protocol, requested_vocabulary
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.evaluation.content import evaluation_content, log_content
from tagclip.evaluation.detection import MEASURES, detection
from tagclip.evaluation.metrics import (
    ABSENT_AS_0,
    confusion_matrix,
    mean_ious,
    summarize,
)
from tagclip.evaluation.results import write_result
from tagclip.evaluation.saved_folder import FolderWriter
from tagclip.evaluation.saved_logits import LogitWriter
from tagclip.evaluation.saved_predictions import PredictionWriter
from tagclip.modeling.inference.fusion import refuse_nan
from tagclip.structures.provenance import Provenance
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.look_up import look_up

__all__ = ["METRICS", "ZeroShotSemSegEvaluator"]

logger = logging.getLogger(__name__)

_MEANS = mean_ious(np.zeros(2), np.array([True, False]))
METRICS = (
    *summarize(np.eye(2, dtype=np.int64), np.array([True, False])),
    *(f"{name}{ABSENT_AS_0}" for name in _MEANS),
    *(f"trusty-{name}" for name in MEASURES),
)
"""Names of all that an evaluation may report; which of them depends on split, model and data."""

_BINS = 4096


class ZeroShotSemSegEvaluator(SemSegEvaluator):
    """Accumulates one confusion matrix and two histograms: memory does not grow with images.

    Only labelled pixels count. A class without any is left out of the means and listed; where it
    was predicted, the means that count it as 0 stand beside ours (`summarize`).

    Attributes:
        provenance: see the constructor; `ZeroShotTrainer.test` sets it to that of the model.
        trained_sha256: checksum of the model's trained tensors, which that sets, too; None if
            unknown, or if nothing was trained.
        training_record: what that says of the training of the weights, stored with the metrics.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        vocabulary: Vocabulary,
        protocol: Protocol | None = None,
        provenance: Provenance | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        results_table: str | Path | None = None,
        run_info: dict[str, Any] | None = None,
        config: str = "",
        save_predictions: str = "",
        save_logits: bool = False,
        files_may_fail: bool = False,
    ) -> None:
        """Prepare for one registered dataset.

        Args:
            dataset_name: registered with ``sem_seg_file_name`` in its dicts.
            vocabulary: class list of predictions and labels; its partition, if any, is reported.
            protocol: of the run, with ``provenance`` it is recorded.
            provenance: of the model. Seen are then the classes whose masks have trained it, and
                where the partition of the vocabulary is another one, both are reported.
            distributed: add up over all processes.
            output_dir: where ``metrics.json`` and ``per_class.csv`` go; None writes neither.
            results_table: csv to which every evaluation appends a row; None appends none.
            run_info: stored with the metrics.
            config: yaml of the run, which ``output_dir`` gets as ``config.yaml``; "" is none.
            save_predictions: "png" or "json" writes each image's into ``predictions/`` of it, too.
            save_logits: write each image's low-resolution logits into ``logits/`` of it, too.
            files_may_fail: a full disk is logged and ends nothing: a training goes on.
        """
        super().__init__(dataset_name, distributed=distributed, output_dir=output_dir)
        self._name, self._vocabulary = dataset_name, vocabulary
        self._results_table, self._run_info = results_table, run_info or {}
        self._config = config
        self._protocol, self.provenance = protocol, provenance
        self.trained_sha256: str | None = None
        self.training_record: dict[str, Any] = {}
        self._files_may_fail = files_may_fail
        lut = vocabulary.label_lut()
        # Values that mean nothing (-1) have been refused before the table is used.
        self._lut = np.where(lut < 0, vocabulary.ignore_index, lut).astype(vocabulary.target_dtype)
        self._seen = None if vocabulary.seen is None else vocabulary.seen_mask
        self._writers: list[FolderWriter] = []
        images, folder = self.input_file_to_gt_file, Path(output_dir or "")
        if save_predictions and output_dir:
            options = {"form": save_predictions, "vocabulary": vocabulary}
            path = folder / PredictionWriter.kind.name
            self._writers.append(PredictionWriter(path, images, distributed, **options))
        if save_logits and output_dir:
            self._writers.append(LogitWriter(folder / LogitWriter.kind.name, images, distributed))
        self.reset()

    def reset(self) -> None:
        """Forget everything that was processed."""
        classes = len(self._vocabulary)
        self._confusion = np.zeros((classes, classes), dtype=np.int64)
        # Of each true class: pixels that the model gives to none (BACKGROUND_THRESHOLD).
        self._other = np.zeros(classes, dtype=np.int64)
        self._trusty = np.zeros((2, _BINS), dtype=np.int64)
        self._images = 0
        for writer in self._writers:
            writer.start()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count one batch.

        Args:
            inputs: dicts with ``file_name``, and maybe ``vocabulary``, what the model was asked.
            outputs: dicts with ``sem_seg_labels`` (H, W) integers, -1 for no class, which is wrong
                on a labelled pixel, or ``sem_seg`` (K, H, W) scores, and maybe ``trusty`` (H, W),
                P(pixel belongs to a seen class), and ``logits`` (a `ScoreFusion`) to be saved.

        Raises:
            DatasetError: an image is not of this dataset, or its label file is missing or
                damaged, of another size than the prediction, or holds an unknown value.
            VocabularyError: the model was asked for other classes.
            ValueError: a prediction names a class that the vocabulary does not have.
            CheckpointError: scores or trusty map hold nan.
        """
        for item, output in zip(inputs, outputs, strict=True):
            name = item["file_name"]
            asked = requested_vocabulary([item], self._vocabulary)
            if asked.names != self._vocabulary.names:
                raise VocabularyError(
                    f"{name}: the model was asked for vocabulary {asked.name} ({len(asked)} "
                    f"classes), expected the classes of {self._name} ({len(self._vocabulary)}) in "
                    "their order; evaluate each dataset with its own class list"
                )
            prediction = _predicted_labels(output, len(self._vocabulary), name)
            truth = self._true_labels(name, prediction.shape)
            try:
                self._count(truth, prediction)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if "trusty" in output:
                # What is seen to the model, which is the trusty map's subject, may differ from
                # the partition of the report: in supervised and in cross-dataset runs.
                seen = self._seen if asked.seen is None else asked.seen_mask
                self._count_trusty(truth, output["trusty"], seen, name)
            for writer in self._writers:
                writer.write(name, prediction, output)
            self._images += 1

    def _count(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        other, classes = prediction == -1, len(self._vocabulary)
        if other.any():
            self._other += np.bincount(truth[other], minlength=classes)[:classes]
            truth, prediction = truth[~other], prediction[~other]
        self._confusion += confusion_matrix(truth, prediction, classes)

    def _true_labels(self, image: str, size: tuple[int, int]) -> np.ndarray:
        """Read (H, W) labels: an index, or the vocabulary's ``ignore_index``."""
        if image not in self.input_file_to_gt_file:
            raise DatasetError(
                f"{image}: not an image of dataset {self._name}; evaluate with the loader of "
                "this dataset"
            )
        path = self.input_file_to_gt_file[image]
        raw = read_label(path, self._vocabulary)
        check_label(raw, path, self._vocabulary, size, image)
        return look_up(self._lut, raw)

    def _count_trusty(
        self, truth: np.ndarray, trusty: torch.Tensor, seen: np.ndarray | None, name: str
    ) -> None:
        """Add labelled pixels to the histogram of seen (row 0) or of unseen classes (row 1)."""
        if seen is None:
            return
        if trusty.shape != truth.shape:
            raise ValueError(
                f"{name}: found a trusty map of {tuple(trusty.shape)}, expected {truth.shape}"
            )
        refuse_nan(trusty, "trusty map", name)
        bins = (trusty.float().clamp(0, 1) * (_BINS - 1)).round().int().cpu().numpy()
        first_bin = np.full(self._vocabulary.ignore_index + 1, 2 * _BINS, dtype=np.int32)
        first_bin[: len(seen)] = np.where(seen, 0, _BINS)
        bins += look_up(first_bin, truth)
        counts = np.bincount(bins.reshape(-1), minlength=3 * _BINS)
        self._trusty += counts.reshape(3, _BINS)[:2]

    def evaluate(self) -> OrderedDict | None:
        """Add up over processes, log a table and write the files.

        Values of single classes are in the files only.

        Returns:
            In the main process ``{"sem_seg": metrics}``, those of `summarize` and,
            of the trusty map as a detector of unseen pixels, those of `detection`
            (``trusty-AUROC`` and so on), in percent, nan where undefined; None in the others.
            Where the masks that trained the model and the vocabulary's partition divide the
            classes differently, ``"sem_seg_by_split"`` holds those of the partition.

        Raises:
            DatasetError: no image had a labelled pixel.
            ConfigError: a file cannot be written, unless ``files_may_fail``.
        """
        # (K, K + 1): behind the classes, pixels that got none.
        counts = np.column_stack([self._confusion, self._other])
        state = [(counts, self._trusty, self._images)]
        if self._distributed:
            state = comm.gather(state[0])
            if not comm.is_main_process():
                return None
        confusion, trusty, images = map(sum, zip(*state, strict=True))
        if not confusion.any():
            raise DatasetError(
                f"dataset {self._name}: found 0 valid pixels in {images} images, expected "
                "labelled ones; check its label files and ignore_label"
            )
        content = self._content(confusion, trusty, images)
        self._log(content)
        try:
            write_result(content, self._output_dir, self._results_table, self._config)
        except ConfigError as error:
            if not self._files_may_fail:
                raise
            logger.error("%s; training goes on", error)
        for writer in self._writers:
            writer.finish(content)
        results = OrderedDict(sem_seg=content["metrics"])
        if by_split := content["metrics_by_split"]:
            results["sem_seg_by_split"] = by_split
        return results

    def _content(self, confusion: np.ndarray, trusty: np.ndarray, images: int) -> dict[str, Any]:
        """Return what ``metrics.json`` holds, nan where undefined."""
        provenance, run, trained = self.provenance, self._run_info, None
        if self._protocol is not None:
            provenance = provenance or Provenance(is_complete=False)
            run = run | Claim(self._protocol, provenance, self._vocabulary).record()
        if self.trained_sha256:
            run = run | {"trained_sha256": self.trained_sha256}
        run = run | self.training_record
        # Of what nothing is known the split is all that there is to say.
        if provenance and (provenance.stages or provenance.is_complete):
            trained = np.array(provenance.trained(self._vocabulary))
        content = evaluation_content(
            self._name, self._vocabulary, confusion, images, run, trained, left_out(self._name)
        )
        if trusty.any():
            # Large values of the map mean seen; what it shall detect is unseen.
            seen, unseen = trusty[:, ::-1]
            found = detection(unseen, seen)
            content["metrics"] |= {f"trusty-{name}": value for name, value in found.items()}
        return content

    def _log(self, content: dict[str, Any]) -> None:
        log_content(content, self._vocabulary, len(self.input_file_to_gt_file))
        if self._protocol is not None:
            run = content["run"]
            if run["trained_unseen"] or run["zero_shot"] is None:
                logger.warning("%s: %s", self._name, run["protocol"])


def _predicted_labels(output: dict[str, Any], classes: int, name: str) -> np.ndarray:
    """(H, W) integers of a model's output on the CPU."""
    if "sem_seg_labels" in output:
        if "sem_seg_scores" in output:
            refuse_nan(output["sem_seg_scores"], "score", name)
        return output["sem_seg_labels"].cpu().numpy()
    scores = output["sem_seg"]
    if len(scores) != classes:
        raise ValueError(f"{name}: found scores of {len(scores)} classes, expected {classes}")
    best, labels = scores.max(dim=0)
    refuse_nan(best, "score", name)
    return labels.cpu().numpy()
