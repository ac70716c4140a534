"""Images for a quantized file: windows that calibrate it, and what it costs in labels and mIoU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from tagclip.data.inference_input import InferenceInput
from tagclip.errors import ConfigError, VocabularyError
from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.export.runtime.windows import label_image, window_places
from tagclip.predictor import TagCLIPPredictor
from tagclip.utils.text import did_you_mean, markdown_table

__all__ = ["ExportInput", "format_report", "int8_report", "labelled_images"]

# Windows (1, 3, h, w) uint8 -> scores (1, K, h, w) float32.
Run = Callable[[np.ndarray], np.ndarray]
_FILES = "float32", "int8"
_METRICS = ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU", "pAcc")


class ExportInput:
    """Image files as an exported model takes them."""

    def __init__(self, predictor: TagCLIPPredictor, recipe: Mapping[str, Any]) -> None:
        """Prepare for a model.

        Args:
            predictor: that was exported; reads files, and its config says how to resize.
            recipe: content of model.json.
        """
        self._read, self._prepare = predictor.read_image, InferenceInput.from_config(predictor.cfg)
        self._recipe = recipe

    def resized(self, path: str | Path) -> tuple[np.ndarray, tuple[int, int]]:
        """Return (3, h, w) uint8 pixels of a file and its own (height, width).

        Raises:
            DatasetError: the file is missing, damaged or too large.
            ConfigError: it is smaller than the windows, whose size is fixed.
        """
        image = self._read(path)
        image = image[:, :, ::-1] if self._recipe["channel_order"] == "RGB" else image
        pixels = self._prepare(np.ascontiguousarray(image))["image"].numpy()
        fixed = self._recipe["input"]["size"]
        if fixed and any(a < b for a, b in zip(pixels.shape[1:], fixed, strict=True)):
            height, width = pixels.shape[1:]
            raise ConfigError(
                f"{path}: found {height}x{width} pixels as the model would see it, expected at "
                f"least the window, {fixed[0]}x{fixed[1]}; leave the image out, or export with "
                "--dynamic"
            )
        return pixels, image.shape[:2]

    def windows(self, path: str | Path) -> Iterator[np.ndarray]:
        """Cut a file into (1, 3, height, width) uint8 windows; errors are those of `resized`."""
        pixels, _ = self.resized(path)
        for rows, columns in window_places(*pixels.shape[1:], self._recipe["windows"]):
            yield np.ascontiguousarray(pixels[None, :, rows, columns])

    def labels(self, path: str | Path, run: Run) -> np.ndarray:
        """Label a file: (H, W) int32; errors are those of `resized`."""
        return label_image(*self.resized(path), self._recipe, run)


def labelled_images(dataset: str, predictor: TagCLIPPredictor) -> list[str]:
    """Files of the images of a dataset whose labels the exported words are.

    Raises:
        ConfigError: no such dataset is registered.
        VocabularyError: the words are others.
        DatasetError: its files are not in order.
    """
    known = DatasetCatalog.list()
    if dataset not in known:
        hint = did_you_mean(dataset, known) or "; registered are the benchmarks and your config's"
        raise ConfigError(f"--report {dataset}: found no such dataset{hint}")
    names = predictor.resolve(dataset).shown.names
    if names != predictor.vocabulary.names:
        raise VocabularyError(
            f"--report {dataset}: found a dataset of {len(names)} classes, expected those of the "
            f"exported model, which are {len(predictor.vocabulary)}, under the same names; export "
            f"with --vocab-from-dataset {dataset}"
        )
    return [sample["file_name"] for sample in DatasetCatalog.get(dataset)]


def int8_report(
    predictor: TagCLIPPredictor,
    inputs: ExportInput,
    runs: Sequence[Run],
    images: Sequence[str | Path],
    dataset: str = "",
) -> dict[str, Any]:
    """Compare the labels of a float file and of its int8 form.

    Args:
        predictor: that was exported.
        inputs: of the exported model.
        runs: the float file and the int8 one.
        images: to compare on.
        dataset: of these images, see `labelled_images`; "" where they have no labels.

    Returns:
        ``images``, how many; ``labels_changed``, percent of all pixels; with a dataset its name as
        ``dataset``, and ``float32`` and ``int8``, the metrics of `ZeroShotSemSegEvaluator`.

    Raises:
        TagCLIPError: an image or a label file is not in order.
    """
    evaluators = [
        ZeroShotSemSegEvaluator(
            dataset,
            vocabulary=predictor.resolve(dataset).shown,
            provenance=predictor.model.provenance,
            distributed=False,
        )
        for _ in (runs if dataset else ())
    ]
    changed = total = 0
    for path in tqdm(images, "float32 and int8", unit="image", disable=None):
        first, second = (inputs.labels(path, run) for run in runs)
        changed, total = changed + int((first != second).sum()), total + first.size
        for evaluator, labels in zip(evaluators, (first, second), strict=False):
            output = {"sem_seg_labels": torch.from_numpy(labels)}
            evaluator.process([{"file_name": str(path)}], [output])
    report = {"images": len(images), "labels_changed": 100 * changed / total}
    if dataset:
        metrics = [evaluator.evaluate()["sem_seg"] for evaluator in evaluators]
        report |= {"dataset": dataset} | dict(zip(_FILES, metrics, strict=True))
    return report


def format_report(report: Mapping[str, Any]) -> str:
    """Return a table of what int8 costs."""
    text = (
        f"int8 changes {report['labels_changed']:.2f} % of the labels of {report['images']} images"
    )
    if "dataset" not in report:
        return text
    rows = []
    for name in _METRICS:
        before, after = (report[file].get(name, math.nan) for file in _FILES)
        if not math.isnan(before):
            rows.append([name, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}"])
    return f"{text}\n\n{markdown_table([report['dataset'], *_FILES, 'difference'], rows)}"
