#!/usr/bin/env bash
# Expected: the IoU of 20 million right pixels among 24 is 83. IoUMetric counts with torch.histc, which
# adds 1 to a float32: on one thread no count passes 2^24 = 16,777,216, and the IoU is 100.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 mmsegmentation==1.2.2 mmengine==0.10.7 \
	mmcv-lite==2.1.0 ftfy==6.3.1 regex==2026.11.19
"$PYTHON" - <<'PYTHON'
import torch
from mmseg.evaluation import IoUMetric

metric = IoUMetric()
metric.dataset_meta = {"classes": ["a", "b"]}
truth = torch.zeros(4000, 6000, dtype=torch.uint8)
predicted = truth.clone()
predicted[: 4000 // 6] = 1
right = 100 * float((predicted == 0).sum()) / truth.numel()
torch.set_num_threads(1)  # as torchrun's OMP_NUM_THREADS=1
areas = metric.intersect_and_union(predicted, truth, 2, 255)
found = metric.compute_metrics([areas])
print(f"IoU of class a: {found}, expected {right:.2f}")
print("pixels of class a:", int(areas[3][0]), "of", truth.numel())
assert areas[3][0] == 2**24 and areas[0][0] == 2**24 and areas[1][0] == 2**24
PYTHON
