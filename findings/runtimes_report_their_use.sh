#!/usr/bin/env bash
# Expected: to import onnxruntime or openvino, and to load a model, asks no address and writes no
# file. onnxruntime leaves an identifier of the machine and a database of events in the cache of the
# user (its uploader: microsoft/onnxruntime#27379); `import openvino` makes a process that reports it
# to www.google-analytics.com. The script stops that at the look-up of the name.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment onnxruntime==1.32.0 openvino==2026.4.1 onnx==1.23.2
unset CI TF_BUILD JENKINS_URL XDG_CACHE_HOME ORT_DISABLE_TELEMETRY
cat >load.py <<'PYTHON'
import os, sys


def look(event, arguments):
    if event == "socket.getaddrinfo":
        os.write(1, f"looks up {arguments[0]}\n".encode())
        os._exit(0)


sys.addaudithook(look)
if sys.argv[1] == "onnxruntime":
    import onnx
    import onnxruntime

    value = onnx.helper.make_tensor_value_info
    values = [value(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString())
else:
    import openvino
PYTHON
for name in onnxruntime openvino; do
	mkdir "home_$name" "home_quiet_$name"
	HOME=$PWD/home_$name "$PYTHON" load.py "$name" | sort -u | tee "$name.txt"
	(cd "home_$name" && find . -type f | sort) | tee -a "$name.txt"
done
grep -q onnxruntime/deviceid onnxruntime.txt && grep -q onnxruntime.db onnxruntime.txt
grep -q "looks up www.google-analytics.com" openvino.txt && grep -q openvino_ga_cid openvino.txt
echo "With ORT_DISABLE_TELEMETRY=1, and without openvino_telemetry:"
sed -i '1a sys.modules["openvino_telemetry"] = None' load.py
for name in onnxruntime openvino; do
	HOME=$PWD/home_quiet_$name ORT_DISABLE_TELEMETRY=1 "$PYTHON" load.py "$name" | tee -a quiet.txt
	find "home_quiet_$name" -type f | tee -a quiet.txt
done
[ ! -s quiet.txt ] && echo nothing
