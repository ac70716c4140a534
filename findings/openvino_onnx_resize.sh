#!/usr/bin/env bash
# Expected: an ONNX file computes the same in OpenVINO as in onnxruntime. Of Resize OpenVINO leaves
# out antialias and exclude_outside, without a word: torch's antialiased resize is exported with both.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
CI=true ORT_DISABLE_TELEMETRY=1 "$PYTHON" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

image = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)


def differences(side, **attributes):
    """Of onnxruntime and of OpenVINO from ONNX's own reference."""
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [value("y", TensorProto.FLOAT, [1, 1, side, side])],
        [helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, side, side])],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    content, expected = model.SerializeToString(), ReferenceEvaluator(model).run(None, {"x": image})[0]
    session = onnxruntime.InferenceSession(content)
    compiled = openvino.compile_model(
        openvino.Core().read_model(content, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    results = session.run(None, {"x": image})[0], compiled({"x": image})[0]
    return [float(np.abs(result - expected).max()) for result in results]


found = {}
for side, mode, antialias, exclude in (
    (12, "linear", 0, 0), (12, "cubic", 0, 0), (12, "cubic", 1, 1), (5, "linear", 1, 1), (5, "cubic", 1, 1),
):
    pair = differences(side, mode=mode, antialias=antialias, exclude_outside=exclude)
    found[side, mode, antialias] = pair
    print(f"8 to {side}, {mode}, antialias and exclude_outside {antialias}: "
          "onnxruntime differs by {:.4f}, OpenVINO by {:.4f}".format(*pair))
assert all(pair[0] < 1e-4 for pair in found.values())
assert all((pair[1] > 0.01) == (key[2] == 1) for key, pair in found.items())
PYTHON
