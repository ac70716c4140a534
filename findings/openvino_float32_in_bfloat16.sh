#!/usr/bin/env bash
# Expected: a float32 model is computed in float32. On processors with bfloat16 instructions
# (AVX512-BF16, AMX) OpenVINO rounds it to bfloat16 unless it is told not to. On others there is
# nothing to see, and the script says so.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment openvino==2026.4.1 numpy==2.4.6
grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || { echo "no bfloat16 instructions here"; exit 0; }
CI=true "$PYTHON" - <<'PYTHON'
import numpy as np
import openvino
from openvino import opset13 as ops

random = np.random.default_rng(0)
x, w = (random.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
image = ops.parameter(x.shape, np.float32)
model = openvino.Model([ops.matmul(image, ops.constant(w), False, False)], [image])
found = {}
for options in ({}, {"INFERENCE_PRECISION_HINT": "f32"}):
    result = openvino.compile_model(model, "CPU", options)(x)[0]
    found[len(options)] = float(np.abs(result - x @ w).max())
    print(options, f"largest difference of a product of 256 numbers: {found[len(options)]:.6f}")
assert found[0] > 0.05 and found[1] < 1e-3
PYTHON
