#!/usr/bin/env bash
# Expected: the same seed and equal values give the same dropout mask. The mask is drawn in memory
# order, so that channels_last features, which convolutions prefer, get another one than the same
# features in the usual layout.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import torch
from torch.nn import functional as F

usual = torch.ones(2, 8, 4, 4)
last = usual.contiguous(memory_format=torch.channels_last)
masks = []
for features in (usual, last, usual):
    torch.manual_seed(0)
    masks.append(F.dropout(features, 0.5) > 0)
print("values equal", torch.equal(usual, last))
print("masks equal, same layout", torch.equal(masks[0], masks[2]))
share = (masks[0] != masks[1]).float().mean().item()
print(f"masks differ, other layout, at {share:.0%} of the places")
assert torch.equal(usual, last) and torch.equal(masks[0], masks[2]) and share > 0.3
PYTHON
