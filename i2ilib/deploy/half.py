"""Float16 ONNX files: for engines that take their precision from the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import I2IError, IntegrityError
from ..runtime import atomic_path

if TYPE_CHECKING:
    import onnx

QDQ = ("QuantizeLinear", "DequantizeLinear")
HALF = 65504.0  # the largest float16


def to_half(onnx_in: str | os.PathLike, onnx_out: str | os.PathLike) -> Path:
    """Cast a float32 ONNX file to float16: weights, operators and every tensor between them.

    Input and output stay float32, so the file takes and gives the same tensors as the one it comes from; the scales of
    a Resize stay float32, as ONNX wants them.

    Args:
        onnx_in: A float32 file without Q/DQ pairs.
        onnx_out: Where; written whole or not at all.

    Raises:
        I2IError: If there is no file, it has Q/DQ pairs (their types are its precision), or a constant does not fit.
        IntegrityError: If it is not an ONNX network.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model, path = read_onnx(onnx_in), Path(onnx_out)
    graph = model.graph
    if pairs_in(model):
        raise I2IError(
            str(onnx_in),
            expected="a float32 network",
            got="one with Q/DQ pairs",
            remedy="Export the float model, or build this file as int8.",
        )
    kept = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:3]}
    constants = [tensor for tensor in graph.initializer if tensor.name not in kept]
    constants += [a.t for node in graph.node for a in node.attribute if a.HasField("t") and not kept & {*node.output}]
    for tensor in constants:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor)
            if value.size and not abs(value).max() <= HALF:
                raise I2IError(
                    f"{tensor.name} in {onnx_in}", expected=f"values up to {HALF:g}", got=f"{abs(value).max():g}"
                )
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
    for attribute in (a for node in graph.node if node.op_type == "Cast" for a in node.attribute):
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
    inside = {tensor.name: f"{tensor.name}_half" for tensor in (*graph.input, *graph.output)}
    for names in (names for node in graph.node for names in (node.input, node.output)):
        names[:] = [inside.get(name, name) for name in names]
    for tensor in graph.input:
        name = tensor.name
        graph.node.insert(0, helper.make_node("Cast", [name], [inside[name]], f"{name}_cast", to=TensorProto.FLOAT16))
    for tensor in graph.output:
        name = tensor.name
        graph.node.append(helper.make_node("Cast", [inside[name]], [name], f"{name}_cast", to=TensorProto.FLOAT))
    del graph.value_info[:]  # types of the float32 network
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(str(temporary), full_check=True)
    return path


def read_onnx(path: str | os.PathLike) -> onnx.ModelProto:
    """An ONNX file in memory.

    Raises:
        I2IError: If there is no file.
        IntegrityError: If it is not an ONNX network.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise I2IError(str(path), expected="an ONNX file", got="no file")
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise IntegrityError(str(path), expected="an ONNX network", got=str(error)) from None
    if not model.graph.node:
        raise IntegrityError(str(path), expected="an ONNX network", got="no nodes")
    return model


def pairs_in(model: onnx.ModelProto) -> int:
    """How many quantise and dequantise operators a network has."""
    return sum(node.op_type in QDQ for node in model.graph.node)
