#!/usr/bin/env bash
# Expected: a bilinear resize of float32 planes is exact to rounding, some 1e-7 of their range. torch
# computes the positions in float32, too: at pixel 600 they are off by more than 1e-5 of a pixel, and
# where neighbouring pixels differ by 1, so are the values.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
import torch
from torch.nn.functional import interpolate

LENGTH, SIZE = 683, 640
row = (torch.arange(LENGTH) % 2).float().repeat(2, 1)


def resized(values):
    options = {"size": (2, SIZE), "mode": "bilinear", "align_corners": False}
    return interpolate(values[None, None], **options)[0, 0, 0]


places = np.maximum((np.arange(SIZE) + 0.5) * LENGTH / SIZE - 0.5, 0)
first = places.astype(int)
weight = places - first
second = np.minimum(first + 1, LENGTH - 1)
exact = row[0].double().numpy()
exact = exact[first] * (1 - weight) + exact[second] * weight
# The same in float32, but for the positions.
weights, values = weight.astype(np.float32), row[0].numpy()
careful = values[first] * (1 - weights) + values[second] * weights

found = {
    "float64": np.abs(resized(row.double()).numpy() - exact).max(),
    "float32": np.abs(resized(row).numpy() - exact).max(),
    "float32, positions in float64": np.abs(careful - exact).max(),
}
for name, difference in found.items():
    print(f"{name}: off by {difference:.1e}")
assert found["float64"] < 1e-12 and found["float32, positions in float64"] < 2e-7
assert found["float32"] > 1e-5
PYTHON
