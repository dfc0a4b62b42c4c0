"""Where quantise/dequantise (Q/DQ) pairs must stand in an ONNX file so that TensorRT computes a U-Net in int8.

Some rules TensorRT's parser enforces. The others it does not: a file that breaks one is built without a word, and runs
slower than float16 or, on some versions, gives wrong results. So they are checked here, on the file itself.

Source: NVIDIA's TensorRT documentation, "Working with quantized types"; issues 1699, 2380, 2976 and 4401 of
github.com/NVIDIA/TensorRT.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .half import QDQ, read_onnx

if TYPE_CHECKING:
    import onnx

CONVOLUTIONS = ("Conv", "ConvTranspose")


class _Graph:
    """A file with its nodes by what they write and read."""

    def __init__(self, model: onnx.ModelProto):
        from onnx import numpy_helper

        self.nodes = list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.values = {tensor.name: tensor for tensor in model.graph.initializer}
        self.array = lambda name: numpy_helper.to_array(self.values[name])

    def named(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in operators]

    def maker(self, name: str) -> str:
        """The operator that writes a tensor; empty for inputs and constants."""
        return self.makers[name].op_type if name in self.makers else ""

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def scale(self, name: str) -> np.ndarray | None:
        """The scale of a tensor that comes from a DequantizeLinear."""
        return self.array(self.makers[name].input[1]) if self.maker(name) == QDQ[1] else None


def broken_rules(path: str | os.PathLike) -> dict[str, list[str]]:
    """Which rule an ONNX file with Q/DQ pairs breaks, and where.

    Args:
        path: The file.

    Returns:
        For each rule the names of the nodes that break it; empty lists for a file that is as it should be.

    Raises:
        I2IError: If there is no file.
        IntegrityError: If it is not an ONNX network.
    """
    graph = _Graph(read_onnx(path))
    return {rule: [node.name for node in broken(graph)] for rule, broken in RULES.items()}


def _asymmetric(graph: _Graph) -> list[onnx.NodeProto]:
    found = []
    for node in graph.named(*QDQ):
        point = graph.array(node.input[2]) if len(node.input) > 2 else np.uint8(0)  # what an absent one means
        if point.any() or point.dtype not in (np.int8, np.int32):  # int32 is a bias, which has a rule of its own
            found.append(node)
    return found


def _quantised_bias(graph: _Graph) -> list[onnx.NodeProto]:
    return [x for x in graph.named(*CONVOLUTIONS) if len(x.input) > 2 and graph.maker(x.input[2]) in QDQ]


def _float_convolution(graph: _Graph) -> list[onnx.NodeProto]:
    return [x for x in graph.named(*CONVOLUTIONS) if any(graph.maker(name) != QDQ[1] for name in x.input[:2])]


def _transposed_per_channel(graph: _Graph) -> list[onnx.NodeProto]:
    scales = ((x, graph.scale(x.input[1])) for x in graph.named("ConvTranspose"))
    return [x for x, scale in scales if scale is not None and scale.size > 1]


def _uneven_concat(graph: _Graph) -> list[onnx.NodeProto]:
    """Quantised inputs with different scales, or some quantised and some not."""
    found = []
    for x in graph.named("Concat"):
        scales = [graph.scale(name) for name in x.input]
        kinds = {None if scale is None else scale.tobytes() for scale in scales}
        found += [x] if len(kinds) > 1 else []
    return found


def _half_quantised_resize(graph: _Graph) -> list[onnx.NodeProto]:
    return [
        x
        for x in graph.named("Resize")
        if graph.maker(x.input[0]) == QDQ[1] and {y.op_type for y in graph.readers(x.output[0])} != {QDQ[0]}
    ]


def _unfolded(graph: _Graph) -> list[onnx.NodeProto]:
    return graph.named("BatchNormalization")


RULES: dict[str, Callable[[_Graph], list]] = {
    "zero points are int8 and 0": _asymmetric,
    "biases stay float32": _quantised_bias,
    "convolutions read int8, input and weights": _float_convolution,
    "transposed convolutions have one scale for all weights": _transposed_per_channel,
    "all inputs of a concat have one scale": _uneven_concat,
    "what a resize makes of int8 is quantised again": _half_quantised_resize,
    "batch norms are folded": _unfolded,
}
