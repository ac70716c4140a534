"""An exported ONNX file in int8: calibrated on images, static, for onnxruntime and OpenVINO alike.

In int8 are the products of CLIP's vision transformer with its weights, four fifths of all
operations. Float stay its attention products, softmax, norms and activations, which both runtimes
compute faster so, and all behind CLIP's projection, a thirtieth of the work, which decides the
labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from tagclip.utils.files import temporary_folder
from tagclip.utils.quiet import silence

if TYPE_CHECKING:
    import onnx

__all__ = ["quantize"]

# Behind it the head begins.
_PROJECTION = "backbone.proj"
_OPERATORS = ("Conv", "MatMul")


def quantize(content: bytes, windows: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """Quantize as the windows ask for: the least and the greatest value of every activation.

    Weights have a scale per channel and 7 bits: with 8, onnxruntime's sums of products overflow on
    x86 processors without VNNI instructions, and labels are wrong without a word.

    Args:
        content: what `tagclip.export.onnx.to_onnx` returns.
        windows: the inputs of the graph by name, one window each; their order does not matter.

    Returns:
        The file, with the same inputs and outputs; the same bytes for the same windows.

    Raises:
        ValueError: there is no window, or the file is another one.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load_from_string(content)
    with temporary_folder() as folder, silence(logging.WARNING):
        path = folder / "model.onnx"
        quantize_static(
            model,
            path,
            _Reader(windows),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_products(model.graph),
            op_types_to_quantize=list(_OPERATORS),
            extra_options={"OpTypesToExcludeOutputQuantization": list(_OPERATORS)},
        )
        quantized = onnx.load(path)
    return quantized.SerializeToString(deterministic=True)


def _products(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes before CLIP's projection that multiply what is of the image by weights."""
    weights = {tensor.name for tensor in graph.initializer}
    image, names = {graph.input[0].name}, []
    for node in graph.node:
        if _PROJECTION in node.input:
            return names
        if image.intersection(node.input):
            image.update(node.output)
            if node.op_type in _OPERATORS and node.input[1] in weights:
                names.append(node.name)
    raise ValueError(f"found no product with {_PROJECTION}, expected a file of to_onnx")


class _Reader:
    """Windows as onnxruntime asks for them."""

    def __init__(self, windows: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._windows = iter(windows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        window = next(self._windows, None)
        return None if window is None else dict(window)
