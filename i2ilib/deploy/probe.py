"""Whether an engine's int8 arithmetic is exact on this machine: asked of the engine, with the extremes of int8.

Vector units without VNNI multiply int8 by adding pairs of products in 16 bits, which saturate; the integers that come
out are then not those of the network, by up to dozens of steps. No flag tells which kernel an engine takes.
"""

from __future__ import annotations

import functools

import numpy as np

SATURATES = "sums of int8 products saturate on this processor, so that the integers would be wrong"
_CHANNELS, _OUT, _SIDE, _SHIFT = 64, 32, 12, 13


@functools.cache
def network() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A convolution of int8 with Q/DQ pairs as an ONNX file, an input (1, 64, 12, 12), and the true output."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    x = rng.choice(np.array([-128, 127], np.int8), (1, _CHANNELS, _SIDE, _SIDE))
    weight = rng.choice(np.array([-127, 127], np.int8), (_OUT, _CHANNELS, 3, 3))
    weight[: _OUT // 4] = np.abs(weight[: _OUT // 4])
    constants = {"w": weight, "zero": np.int8(0), "one": np.float32(1), "step": np.float32(2**_SHIFT)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "one", "zero"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["sums"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["sums", "step", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "step", "zero"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, _SIDE, _SIDE])
        for name, channels in (("x", _CHANNELS), ("y", _OUT))
    ]
    graph = helper.make_graph(nodes, "probe", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    sums = torch.nn.functional.conv2d(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), padding=1)
    wanted = torch.round(sums / 2**_SHIFT).clamp(-128, 127) * 2**_SHIFT
    return model.SerializeToString(), x.astype(np.float32), wanted.float().numpy()


def is_exact(output: np.ndarray) -> bool:
    """Whether an engine's output for :func:`network` comes from true sums; a tie may go either way."""
    return float(np.abs(output - network()[2]).max()) <= 2**_SHIFT
