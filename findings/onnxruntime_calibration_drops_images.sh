#!/usr/bin/env bash
# Expected: static quantization sees all images that calibrate. Its option CalibMaxIntermediateOutputs,
# documented as of the same result with less memory, forgets all but the last few.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
ORT_DISABLE_TELEMETRY=1 "$PYTHON" - <<'PYTHON' 2>/dev/null
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static

value = helper.make_tensor_value_info
values = [value(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
node = helper.make_node("MatMul", ["x", "w"], ["y"])
graph = helper.make_graph([node], "g", values[:1], values[1:], [weights])
opsets = [helper.make_opsetid("", 18)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=10)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.values = iter([100, 1, 2, 3, 4])

    def get_next(self):
        found = next(self.values, None)
        return None if found is None else {"x": np.full((1, 4), found, np.float32)}


largest = {}
for limit in (None, 2):
    options = {"CalibMaxIntermediateOutputs": limit}
    quantize_static(model, "int8.onnx", Reader(), extra_options=options)
    tensors = onnx.load("int8.onnx").graph.initializer
    scale = next(float(numpy_helper.to_array(t)) for t in tensors if t.name == "x_scale")
    largest[limit] = 255 * scale
    print(f"{options}: values 100, 1, 2, 3, 4 give the range 0 to {largest[limit]:.1f}")
assert round(largest[None]) == 100 and round(largest[2]) == 4
PYTHON
