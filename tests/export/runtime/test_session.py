"""Runtimes of exported models: what they need, and what they must not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.clip_files import fails

from tagclip.errors import NotInstalledError
from tagclip.export.runtime import session

onnx = pytest.importorskip("onnx")

# Prints the hosts that this process and its children look up.
SCRIPT = """
import os, sys
def look(event, args):
    if event == "socket.getaddrinfo":
        os.write(1, f"host {args[0]}\\n".encode())
sys.addaudithook(look)
from pathlib import Path
import numpy as np
from tagclip.export.runtime.session import open_model
content = Path(sys.argv[1]).read_bytes()
print(open_model(content, sys.argv[2], threads=1)({"images": np.ones((1, 1), np.float32)}))
assert not {"torch", "detectron2", "cv2"} & sys.modules.keys()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    values = [helper.make_tensor_value_info(name, kind, [1, 1]) for name in ("images", "scores")]
    node = helper.make_node("Add", ["images", "images"], ["scores"])
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize("runtime", session.RUNTIMES)
def test_no_address_is_asked_and_torch_not_needed(
    runtime: str, model: Path, repository: Path, tmp_path: Path
) -> None:
    """Both report their use; OpenVINO not if it believes to run in CI, onnxruntime, which leaves
    a file in the cache, not if it is told so."""
    pytest.importorskip(runtime)
    hidden = {"CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(repository)}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-c", SCRIPT, str(model), runtime]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "[[2.]]\n"
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize("runtime", session.RUNTIMES)
def test_results_are_kept(runtime: str, model: Path) -> None:
    pytest.importorskip(runtime)
    run = session.open_model(model.read_bytes(), runtime)
    first, second = (run({"images": np.full((1, 1), x, np.float32)}) for x in (1, 2))
    assert (first[0, 0], second[0, 0]) == (2, 4)


def test_a_runtime_that_is_not_there(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    action = lambda: session.open_model(model.read_bytes(), "openvino")  # noqa: E731
    fails(NotInstalledError, action, "--runtime openvino", "pip install openvino")


# Prints whether a model that another thread frees leaves this one no stack for signals, or one in
# memory that is there.
STACK = """
import ctypes, gc, sys, threading
from pathlib import Path
from tagclip.export.runtime.session import open_model

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

models = [open_model(Path(sys.argv[1]).read_bytes(), "openvino", threads=1)]
thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))
thread.start()
thread.join()
stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
ranges = (line.split()[0].split("-") for line in open("/proc/self/maps"))
is_there = any(int(a, 16) <= (stack.start or 0) < int(b, 16) for a, b in ranges)
print(is_there or not stack.start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_openvino_leaves_no_stack_for_signals_that_is_gone(model: Path) -> None:
    pytest.importorskip("openvino")
    line = [sys.executable, "-c", STACK, str(model)]
    ended = subprocess.run(line, capture_output=True, text=True, check=True)
    assert ended.stdout == "True\n"
