#!/usr/bin/env bash
# Expected: what a network costs can be counted on tensors without values, as for other networks of
# torch. timm reads its rates of dropped paths back from a tensor while it builds one, so that none is
# built with fake tensors, even where nothing is dropped; on the meta device it is.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import timm
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

NAMES = ("vit_tiny_patch16_224", "eva02_tiny_patch14_224", "convnext_atto")
for name in NAMES:
    try:
        with FakeTensorMode():
            timm.create_model(name, drop_path_rate=0.0)
    except DataDependentOutputException as error:
        print(name, "with fake tensors:", error)
    else:
        raise SystemExit(f"{name} is built with fake tensors")
    with torch.device("meta"):
        parameters = sum(p.numel() for p in timm.create_model(name).parameters())
    print(name, "on the meta device:", parameters, "parameters")
    assert parameters > 10**6
PYTHON
