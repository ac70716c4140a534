#!/usr/bin/env bash
# Expected: dimensions that share a name in an ONNX file have the same size in a run, or the run is
# refused. onnxruntime compares fixed sizes only: one flag for three classes is taken for each.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper


def value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


inputs = [value("vectors", "classes", 4), value("seen", "classes", 1)]
node = helper.make_node("Mul", ["vectors", "seen"], ["product"])
graph = helper.make_graph([node], "graph", inputs, [value("product", "classes", 4)])
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
onnx.checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(model.SerializeToString())
vectors = np.ones((3, 4), np.float32)
found = session.run(None, {"vectors": vectors, "seen": np.zeros((1, 1), np.float32)})[0]
print("classes is 3 and 1:", found.shape, "without an error")
assert found.shape == (3, 4)
try:
    session.run(None, {"vectors": vectors[:, :3], "seen": np.zeros((3, 1), np.float32)})
    raise AssertionError("a wrong fixed size was taken")
except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
    print("3 instead of 4:", str(error).splitlines()[0])
PYTHON
