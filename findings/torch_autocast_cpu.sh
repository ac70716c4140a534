#!/usr/bin/env bash
# Expected: autocast computes LayerNorm, softmax and norms in float32, as the list of operators for
# CUDA says. On a CPU a bfloat16 input stays bfloat16 in all of them, so unit vectors are 0.4 % off.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import torch
from torch.nn import functional as F

torch.manual_seed(0)
with torch.autocast("cpu", dtype=torch.bfloat16):
    x = torch.nn.Linear(64, 64)(torch.randn(32, 64))
    found = {
        "LayerNorm": F.layer_norm(x, (64,)),
        "softmax": x.softmax(-1),
        "log_softmax": x.log_softmax(-1),
        "norm": x.norm(dim=-1),
        "normalize": F.normalize(x, dim=-1),
    }
    loss = F.cross_entropy(x, torch.zeros(32, dtype=torch.long))
for name, value in found.items():
    print(name, value.dtype)
length = found["normalize"].float().norm(dim=-1)
print(f"cross_entropy {loss.dtype}; lengths of unit vectors {length.min():.4f} to {length.max():.4f}")
assert {value.dtype for value in found.values()} == {torch.bfloat16}
assert loss.dtype == torch.float32 and (length - 1).abs().max() > 5e-4
PYTHON
