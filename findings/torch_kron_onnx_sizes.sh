#!/usr/bin/env bash
# Expected: an export with dynamic height and width holds for other sizes, or is refused. torch.kron
# is written with the sizes of the example as constants: the file loads, is right for the example, and
# fails at other sizes, as windows of a neighbourhood attention made by kron do.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
"$PYTHON" - <<'PYTHON'
import logging

import numpy as np
import onnxruntime
import torch

logging.disable(logging.WARNING)


class Kron(torch.nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        a = torch.arange(rows, dtype=torch.float32)
        b = torch.arange(columns, dtype=torch.float32)
        return torch.kron(a[:, None] + a, b[:, None] + b) + x.sum()


class Outer(torch.nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        a = torch.arange(rows, dtype=torch.float32)
        b = torch.arange(columns, dtype=torch.float32)
        product = (a[:, None] + a)[:, None, :, None] * (b[:, None] + b)[None, :, None, :]
        return product.reshape(rows * columns, rows * columns) + x.sum()


sizes = {0: torch.export.Dim("rows", min=2, max=9), 1: torch.export.Dim("columns", min=2, max=9)}
worked = {}
for module in (Kron(), Outer()):
    name = type(module).__name__
    torch.onnx.export(module, (torch.zeros(3, 4),), f"{name}.onnx", dynamo=True,
                      dynamic_shapes=(sizes,), verbose=False)
    session = onnxruntime.InferenceSession(f"{name}.onnx")
    for shape in ((3, 4), (5, 6)):
        x = np.zeros(shape, np.float32)
        try:
            result = session.run(None, {session.get_inputs()[0].name: x})[0]
            worked[name, shape] = np.array_equal(result, module(torch.from_numpy(x)).numpy())
        except Exception as error:
            worked[name, shape] = False
            print(name, shape, type(error).__name__)
        print(name, shape, "equal" if worked[name, shape] else "not equal")
assert worked["Kron", (3, 4)] and not worked["Kron", (5, 6)]
assert worked["Outer", (3, 4)] and worked["Outer", (5, 6)]
PYTHON
