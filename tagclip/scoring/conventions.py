"""The mean IoU as other packages define it.

They agree on the IoU of a class, hits / (true + predicted - hits) over pixels that are not ignored,
and differ in what is averaged: over all images or image by image, and with or without classes that
have no pixel. `docs/scores.md` has the table with sources; `tests/interop/conventions` runs the
packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CONVENTIONS", "Convention"]


@dataclass(frozen=True)
class Convention:
    """What a mean IoU averages.

    Attributes:
        source: package, version and function.
        unit: "dataset": IoU of each class over all images; "image": mean of the classes of an
            image, then of the images; "pair": mean of all pairs of image and class.
        counted: classes of a unit that count: "true", those with true pixels; "either", those with
            true or predicted pixels; "all".
        empty: IoU of a class with neither, where all count.
        decimals: the result in percent is rounded to so many; None leaves it.
    """

    source: str
    unit: str = "dataset"
    counted: str = "either"
    empty: float = 0.0
    decimals: int | None = None


CONVENTIONS: Mapping[str, Convention] = {
    "tagclip": Convention("this project, and detectron2's main branch", counted="true"),
    "detectron2": Convention("detectron2 0.6, SemSegEvaluator"),
    "mmseg": Convention("mmsegmentation 1.2.2, IoUMetric", decimals=2),
    "evaluate": Convention("Hugging Face evaluate, mean_iou, by its published definition"),
    "torchmetrics": Convention("torchmetrics 1.9.0, segmentation.MeanIoU", "pair"),
    "torchmetrics-jaccard": Convention("torchmetrics 1.9.0, JaccardIndex(average='macro')"),
    "monai": Convention("MONAI 1.6.1, MeanIoU", "image", "true"),
    "smp": Convention("segmentation-models-pytorch 0.6.0, iou_score('macro')", "dataset", "all", 1),
    "smp-imagewise": Convention(
        "segmentation-models-pytorch 0.6.0, iou_score('macro-imagewise')", "pair", "all", 1
    ),
    "sklearn": Convention("scikit-learn 1.9.1, jaccard_score('macro')", "dataset", "all", 0),
}
