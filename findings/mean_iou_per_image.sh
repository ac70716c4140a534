#!/usr/bin/env bash
# Two classes of one package, both called mean IoU by their docs: MeanIoU of torchmetrics averages
# over pairs of image and class, JaccardIndex adds the pixels of all images up first. On an image
# that shows a second class in one wrong pixel they differ by 24 points. Of a class that appears
# nowhere segmentation-models-pytorch takes a full hit into the mean, by default.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 torchmetrics==1.9.0 \
	segmentation-models-pytorch==0.6.0
"$PYTHON" - <<'PYTHON'
import torch
from segmentation_models_pytorch.metrics import get_stats, iou_score
from torchmetrics import JaccardIndex
from torchmetrics.segmentation import MeanIoU

truth = torch.zeros(2, 10, 10, dtype=torch.long)
truth[1, :5] = 1
prediction = truth.clone()
prediction[0, 0, 0] = 1
one = torch.nn.functional.one_hot
per_image, pooled = MeanIoU(num_classes=2), JaccardIndex("multiclass", num_classes=2)
for k in range(2):
    per_image.update(*(one(x[k : k + 1], 2).movedim(-1, 1).bool() for x in (prediction, truth)))
    pooled.update(prediction[k : k + 1], truth[k : k + 1])
a, b = float(per_image.compute()), float(pooled.compute())
print(f"MeanIoU {a:.4f}, JaccardIndex {b:.4f}")
stats = {k: get_stats(prediction, truth, mode="multiclass", num_classes=k) for k in (2, 4)}
c, d = (float(iou_score(*stats[k], reduction="macro")) for k in (2, 4))
print(f"iou_score of 2 classes {c:.4f}, with 2 more that appear nowhere {d:.4f}")
assert abs(a - (0.99 + 0 + 1 + 1) / 4) < 1e-6
assert abs(b - (149 / 150 + 50 / 51) / 2) < 1e-6
assert abs(c - b) < 1e-6 and abs(d - (2 * b + 2) / 4) < 1e-6
PYTHON
