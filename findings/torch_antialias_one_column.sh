#!/usr/bin/env bash
# Expected: interpolate(antialias=True) gives the same values for every memory layout. Where the
# number of rows changes and one column remains, the usual layout gives others than channels_last, which
# agrees with the formula.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import torch
from torch.nn import functional as F

torch.manual_seed(0)
image = torch.rand(1, 3, 14, 14)


def triangles(old, new):
    """(new, old) weights of one axis: triangles that reach one step to both sides."""
    step = old / new
    middle, pixel = (torch.arange(new) + 0.5) * step, torch.arange(old) + 0.5
    weights = (1 - (middle[:, None] - pixel).abs() / step).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


expected = triangles(14, 7) @ image @ triangles(14, 1).T
found = {}
for layout in (torch.contiguous_format, torch.channels_last):
    resized = F.interpolate(
        image.contiguous(memory_format=layout), (7, 1), mode="bilinear", antialias=True
    )
    found[layout] = float((resized - expected).abs().max())
    print(layout, f"differs from the formula by {found[layout]:.6f}")
assert found[torch.channels_last] < 1e-6 and found[torch.contiguous_format] > 0.02
PYTHON
