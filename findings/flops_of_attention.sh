#!/usr/bin/env bash
# Expected: the counters see the two matrix products of attention, however it is computed. On a CPU
# neither torch's nor fvcore's counts fused attention (fvcore says so in a warning), and torch's sees
# nothing at all of an encoder layer in eval mode, whose fast path is one operator.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6 fvcore==0.1.5.post20221221
"$PYTHON" - <<'PYTHON'
import logging

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Fused(nn.Module):
    def forward(self, q):
        return nn.functional.scaled_dot_product_attention(q, q, q)


class Plain(nn.Module):
    def forward(self, q):
        return (q @ q.mT / q.shape[-1] ** 0.5).softmax(-1) @ q


def count(module, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops(), FlopCountAnalysis(module, x).total()


logging.disable()
q, x = torch.randn(1, 2, 16, 8), torch.randn(1, 16, 8)
layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
found = {
    "attention, plain": count(Plain(), q),
    "attention, fused": count(Fused(), q),
    "encoder layer, train": count(layer.train(), x),
    "encoder layer, eval": count(layer.eval(), x),
}
for name, (ours, theirs) in found.items():
    print(f"{name}: torch {ours} (2 per multiply-add), fvcore {theirs} (1 per multiply-add)")
assert torch.allclose(Plain()(q), Fused()(q), atol=1e-6)
assert found["attention, plain"] == (16384, 8192) and found["attention, fused"] == (0, 0)
assert found["encoder layer, train"][0] > 0 == found["encoder layer, eval"][0]
PYTHON
