"""The types of TEST.DTYPE beside float32: time, and what changes in a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import nn

from tagclip.evaluation.evaluator import ZeroShotSemSegEvaluator
from tagclip.modeling.precision import has_instructions
from tagclip.predictor import TagCLIPPredictor
from tagclip.projects.benchmark.findings import Findings
from tagclip.projects.benchmark.measure import alternate
from tagclip.projects.benchmark.workload import Workload

__all__ = ["precision"]


def precision(workload: Workload, runs: int) -> Findings:
    """From a resized image to labels in float32 and in bfloat16; with weights, their labels.

    bfloat16 is left out on a device without instructions for it.
    """
    found, model = Findings("precision"), workload.model.eval()
    if not has_instructions(workload.device, torch.bfloat16):
        return found
    item, scale = workload.item(), workload.scale
    functions = {
        name: partial(_in_type, model, dtype, [item])
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    times = alternate(functions, runs, workload.device)
    model.backbone.inference_dtype = torch.float32
    for name, timing in times.items():
        found.add(f"the whole model, {name}", timing)
    ratio = found.add("bfloat16 over float32", times["bfloat16"].over(times["float32"]), "x")
    height, width = item["image"].shape[-2:]
    what = f"{height}x{width} image, {scale.classes} classes: bfloat16 over float32"
    found.add_bar(what, ratio, "x", 0.55, 0.40, "-")
    _add_training(found, workload, runs)
    if workload.weights:
        _add_changes(found, workload.weights, workload.device)
    return found


def _add_training(found: Findings, workload: Workload, runs: int) -> None:
    """A step as SOLVER.AMP makes it."""
    step = partial(workload.training_step, workload.training_batch())
    half = torch.autocast(workload.device, torch.bfloat16)
    times = alternate({"float32": step, "bfloat16": half(step)}, runs, workload.device)
    for name, timing in times.items():
        found.add(f"training step, {name}", timing)
    ratio = times["bfloat16"].over(times["float32"])
    found.add("training step, bfloat16 over float32", ratio, "x")


def _in_type(model: nn.Module, dtype: torch.dtype, batch: list[dict[str, Any]]) -> None:
    model.backbone.inference_dtype = dtype
    model(batch)


def _add_changes(found: Findings, weights: str, device: str) -> None:
    """Labels and mIoU of a trained model on the dataset that its config tests on."""
    predictors = {
        name: TagCLIPPredictor.from_checkpoint(
            weights, ["TEST.DTYPE", name, "MODEL.DEVICE", device]
        )
        for name in ("float32", "bfloat16")
    }
    dataset = predictors["float32"].cfg.DATASETS.TEST[0]
    files = [sample["file_name"] for sample in DatasetCatalog.get(dataset)]
    evaluators = {name: _evaluator(dataset, each) for name, each in predictors.items()}
    changed = total = 0
    for file in files:
        labels = {name: each(file)["sem_seg_labels"] for name, each in predictors.items()}
        for name, evaluator in evaluators.items():
            evaluator.process([{"file_name": file}], [{"sem_seg_labels": labels[name]}])
        changed += int((labels["float32"] != labels["bfloat16"]).sum())
        total += labels["float32"].numel()
    metrics = {name: evaluator.evaluate()["sem_seg"] for name, evaluator in evaluators.items()}
    share = found.add(f"{dataset}: labels that change", 100 * changed / total, "%")
    worst = max(_change(metrics, key) for key in ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU"))
    found.add(f"{dataset}: greatest change of mIoU, seen, unseen, hIoU", worst, "%")
    found.add_bar("labels that change, trained model, bfloat16", share, "%", 1, 0.3, "-")
    found.add_bar(
        "mIoU that changes, trained model, bfloat16", _change(metrics, "mIoU"), "%", 0.3, 0.1, "-"
    )


def _evaluator(dataset: str, predictor: TagCLIPPredictor) -> ZeroShotSemSegEvaluator:
    return ZeroShotSemSegEvaluator(
        dataset,
        vocabulary=predictor.vocabulary,
        provenance=predictor.model.provenance,
        distributed=False,
    )


def _change(metrics: Mapping[str, Mapping[str, float]], key: str) -> float:
    first, second = (float(found.get(key, np.nan)) for found in metrics.values())
    return 0.0 if np.isnan(first) else abs(first - second)
