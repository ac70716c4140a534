"""The mean IoU that each package gives for the stored inputs is the stored one.

``python test_packages.py`` writes the numbers anew. Runs in the environment of requirements.txt,
without this project.
"""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

FILES = Path(__file__).parents[2] / "scoring" / "files"
NUMBERS = FILES / "conventions_numbers.json"
TREE = json.loads((FILES / "conventions.json").read_text(encoding="utf-8"))
CLASSES, IGNORED = TREE["classes"], TREE["ignored"]
SETS = {
    name: [(np.array(pair["truth"]), np.array(pair["prediction"])) for pair in pairs]
    for name, pairs in TREE["sets"].items()
}
Pairs = list[tuple[np.ndarray, np.ndarray]]


def one_hot(pairs: Pairs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(1, K, H, W) of truth and prediction; both are 0 where the truth is ignored."""
    return [
        tuple(torch.from_numpy((labels == np.arange(CLASSES)[:, None, None]) & (t != IGNORED))[None]
              for labels in (t, p))
        for t, p in pairs
    ]  # fmt: skip


def torchmetrics(pairs: Pairs) -> float:
    from torchmetrics.segmentation import MeanIoU

    metric = MeanIoU(num_classes=CLASSES)
    for truth, prediction in one_hot(pairs):
        metric.update(prediction, truth)
    return float(metric.compute())


def torchmetrics_jaccard(pairs: Pairs) -> float:
    from torchmetrics import JaccardIndex

    metric = JaccardIndex("multiclass", num_classes=CLASSES, ignore_index=IGNORED)
    for truth, prediction in pairs:
        metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None])
    return float(metric.compute())


def monai(pairs: Pairs) -> float:
    from monai.metrics import MeanIoU

    metric = MeanIoU()
    for truth, prediction in one_hot(pairs):
        metric(prediction.float(), truth.float())
    return float(metric.aggregate())


def _smp(pairs: Pairs, reduction: str) -> float:
    from segmentation_models_pytorch.metrics import get_stats, iou_score

    stats = [
        get_stats(
            torch.from_numpy(prediction)[None],
            torch.from_numpy(truth)[None],
            mode="multiclass",
            num_classes=CLASSES,
            ignore_index=IGNORED,
        )
        for truth, prediction in pairs
    ]
    return float(iou_score(*map(torch.cat, zip(*stats, strict=True)), reduction=reduction))


def smp(pairs: Pairs) -> float:
    return _smp(pairs, "macro")


def smp_imagewise(pairs: Pairs) -> float:
    return _smp(pairs, "macro-imagewise")


def sklearn(pairs: Pairs) -> float:
    from sklearn.metrics import jaccard_score

    truth, prediction = (
        np.concatenate([pair[k][pair[0] != IGNORED] for pair in pairs]) for k in (0, 1)
    )
    labels = range(CLASSES)
    return float(jaccard_score(truth, prediction, labels=labels, average="macro", zero_division=0))


def _operator(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def mmseg(pairs: Pairs) -> float:
    # mmcv-lite has no compiled operators; the metric needs none.
    operators = types.ModuleType("mmcv.ops")
    operators.__getattr__ = _operator
    sys.modules.setdefault("mmcv.ops", operators)
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(ignore_index=IGNORED)
    metric.dataset_meta = {"classes": [str(k) for k in range(CLASSES)]}
    for truth, prediction in pairs:
        sample = {
            "pred_sem_seg": {"data": torch.from_numpy(prediction)[None]},
            "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
        }
        metric.process({}, [sample])
    return float(metric.evaluate(len(pairs))["mIoU"]) / 100


# Name of the convention -> distribution and function.
PEERS = {
    "mmseg": ("mmsegmentation", mmseg),
    "torchmetrics": ("torchmetrics", torchmetrics),
    "torchmetrics-jaccard": ("torchmetrics", torchmetrics_jaccard),
    "monai": ("monai", monai),
    "smp": ("segmentation-models-pytorch", smp),
    "smp-imagewise": ("segmentation-models-pytorch", smp_imagewise),
    "sklearn": ("scikit-learn", sklearn),
}


def run(name: str) -> dict[str, object]:
    package, function = PEERS[name]
    values = {key: 100 * function(pairs) for key, pairs in SETS.items()}
    return {"package": f"{package} {version(package)}", "percent": values}


@pytest.mark.parametrize("name", PEERS)
def test_package_gives_the_stored_numbers(name: str) -> None:
    stored, found = json.loads(NUMBERS.read_text(encoding="utf-8"))[name], run(name)
    assert found["package"] == stored["package"]
    assert found["percent"] == pytest.approx(stored["percent"], rel=1e-6, nan_ok=True)


if __name__ == "__main__":
    NUMBERS.write_text(json.dumps({name: run(name) for name in PEERS}, indent=1) + "\n")
