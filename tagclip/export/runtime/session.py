"""An exported ONNX file in onnxruntime or OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from tagclip.errors import ConfigError, NotInstalledError

if TYPE_CHECKING:
    import openvino

__all__ = ["RUNTIMES", "Run", "open_model"]

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]


def open_model(
    content: bytes, runtime: str = "onnxruntime", output: str = "scores", threads: int = 0
) -> Run:
    """Load a file; both runtimes compute the same up to rounding.

    Args:
        content: of the file.
        runtime: one of `RUNTIMES`.
        output: name of the one that is wanted; what it does not need is not computed.
        threads: CPU threads; 0: as the runtime chooses.

    Returns:
        A function from the inputs by name to the output.

    Raises:
        NotInstalledError: the runtime is not there; the message is the command that installs it.
        ConfigError: the runtime computes something else than the file says.
    """
    if find_spec(runtime) is None:
        raise NotInstalledError(
            f"--runtime {runtime}: found no package {runtime}; run: pip install {runtime}"
        )
    return RUNTIMES[runtime](content, output, threads)


def _onnxruntime(content: bytes, output: str, threads: int) -> Run:
    import onnxruntime

    options, path_only = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.intra_op_num_threads = threads
    # Errors are raised; they need no second telling.
    options.log_severity_level = 4
    path_only.only_execute_path_to_fetches = True
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run([output], dict(inputs), path_only)[0]


def _openvino(content: bytes, output: str, threads: int) -> Run:
    import openvino

    model = _openvino_core().read_model(content, b"")
    if any(op.get_attributes().get("mode") == "cubic" for op in model.get_ops()):
        # Of ONNX's Resize it leaves out antialias and exclude_outside.
        raise ConfigError(
            "--runtime openvino: found windows of any size with MODEL.CLIP.POS_EMBED_RESIZE "
            "bicubic, expected another resize, since OpenVINO computes this one otherwise; use "
            "onnxruntime, or export with --size"
        )
    model = openvino.Model([model.output(output)], model.get_parameters())
    # Without the hint, processors with such instructions compute all that is float in bfloat16.
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    request = _openvino_core().compile_model(model, "CPU", options).create_infer_request()
    return lambda inputs: request.infer(dict(inputs))[0]


@cache
def _openvino_core() -> openvino.Core:
    """One for the process, never freed.

    With the last one OpenVINO unloads its CPU plugin, and frees the stack for signals that it gave
    the thread which loaded it: if another thread does so, the next signal ends the process.
    """
    import openvino

    return openvino.Core()


RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
