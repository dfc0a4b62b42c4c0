"""Sizes that an ONNX file computes from shapes: the module's layers all the same, and PyTorch's count of FLOPs."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from i2ilib.errors import I2IError
from i2ilib.fcad import analyse
from i2ilib.runtime import quiet, require


def conv(ci, co):
    return nn.Conv2d(ci, co, 3, padding=1)


class Net(nn.Module):
    """A few layers, wired by a function."""

    def __init__(self, wire, shape=(1, 3, 16, 24)):
        super().__init__()
        self.first, self.deep, self.last, self.down = conv(3, 8), conv(8, 8), conv(16, 4), nn.MaxPool2d(2)
        self.dense = nn.Linear(8 * (shape[2] // 2) * (shape[3] // 2), 5)
        self.norm, self.drop, self.wire = nn.BatchNorm2d(8), nn.Dropout(0.3), wire
        for parameter in self.parameters():  # exporters drop biases of zero
            nn.init.uniform_(parameter)

    def forward(self, x):
        return self.wire(self, x)


def exported(net, x, path, **options):
    with quiet("torch.onnx", "torch.fx", "onnxscript"):
        torch.onnx.export(net, (x,), path, input_names=["x"], output_names=["y"], **options)
    net.eval()  # which an export for training leaves
    return path


def wired(graph):
    """Layers in order, each with the places of the layers that it reads; without names, which exporters give."""
    place = {name: number for number, name in enumerate([*graph.inputs, *(layer.name for layer in graph.layers)])}
    return [
        dataclasses.replace(layer, name="", parameter="", inputs=tuple(place[name] for name in layer.inputs))
        for layer in graph.layers
    ]


def agree(path, net, x):
    read, traced = analyse(path), analyse(net, x)
    assert wired(read) == wired(traced)
    assert list(read.inputs.values()) == [x.shape[1:]]
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert 2 * read.macs == counter.get_total_flops()


# --- what PyTorch's exporters write ---------------------------------------------------------------------------


def skip(**options):
    """A U-Net's level: up to the size of the skip, whatever it is."""

    def wire(net, x):
        y = net.first(x)
        return net.last(torch.cat([F.interpolate(net.deep(net.down(y)), size=y.shape[2:], **options), y], 1))

    return wire


def twice(net, x):
    y = net.first(x)
    return net.deep(F.interpolate(y, size=(y.shape[2] * 2, y.shape[3] * 2)))


def factor(net, x):
    return net.deep(F.interpolate(net.first(x), scale_factor=2.0, recompute_scale_factor=True))


def view(net, x):
    y = net.down(net.first(x))
    return net.dense(y.view(y.shape[0], -1))


def blocks(net, x):
    b, c, h, w = (y := net.first(x)).shape
    return net.deep(y.reshape(b, c, h // 2, 2, w).view(b, c, h, w))


def shuffled(net, x):
    b, c, h, w = (y := net.first(x)).size()
    return net.deep(y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w))


def padded(net, x):
    """As U-Nets do whose skips may be a row larger."""
    y = net.first(x)
    z = F.interpolate(net.deep(net.down(y)), scale_factor=2)
    dy, dx = y.shape[2] - z.shape[2], y.shape[3] - z.shape[3]
    return net.last(torch.cat([F.pad(z, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2]), y], 1))


def whole_blocks(net, x):
    """Padded to multiples of 8, and cut back."""
    h, w = x.shape[2:]
    return net.deep(net.first(F.pad(x, (0, -w % 8, 0, -h % 8), mode="replicate")))[:, :, :h, :w]


def spread(net, x):
    y = net.first(x)
    return net.last(torch.cat([y, F.adaptive_avg_pool2d(y, 1).expand_as(y)], 1))


def halves(net, x):
    a, b = net.first(x).chunk(2, 1)
    return net.deep(torch.cat([b, a], 1))


def zeros(net, x):
    y = net.first(x)
    return net.last(torch.cat([y, torch.zeros(y.shape[0], 8, *y.shape[2:])], 1))


def regularised(net, x):
    """Alive in an export for training."""
    y = net.drop(net.norm(net.first(x)))
    return net.deep(y.reshape(y.shape))


WIRES = {
    "nearest": skip(), "bilinear": skip(mode="bilinear"), "bicubic": skip(mode="bicubic", align_corners=True),
    "twice": twice, "factor": factor, "view": view, "blocks": blocks, "shuffled": shuffled, "padded": padded,
    "whole blocks": whole_blocks, "spread": spread, "halves": halves, "zeros": zeros, "regularised": regularised,
}  # fmt: skip
BATCH = {"x": {0: "n"}}
EXPORTS = {
    "opset 11, nothing folded": {"dynamo": False, "opset_version": 11, "do_constant_folding": False},
    "opset 17, free batch": {"dynamo": False, "opset_version": 17, "dynamic_axes": BATCH | {"y": {0: "n"}}},
    "opset 20, for training": {"dynamo": False, "opset_version": 20, "training": torch.onnx.TrainingMode.TRAINING},
    "torch.export, free batch, nothing folded": {"dynamo": True, "dynamic_shapes": BATCH, "optimize": False},
}


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("wire", WIRES)
def test_computed_sizes(tmp_path, wire, export):
    net, x = Net(WIRES[wire]).eval(), torch.zeros(1, 3, 16, 24)
    agree(exported(net, x, tmp_path / "net.onnx", **EXPORTS[export]), net, x)


@pytest.mark.parametrize("folded", [False, True])
def test_computed_sizes_before_resize(tmp_path, folded):
    """Opset 9 has Upsample and its factors, quotients of shapes."""
    net, x = Net(skip()).eval(), torch.zeros(1, 3, 16, 24)
    options = {"dynamo": False, "opset_version": 9, "do_constant_folding": folded}
    agree(exported(net, x, tmp_path / "net.onnx", **options), net, x)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    wire=st.sampled_from(["blocks", "factor", "padded", "twice", "view", "whole blocks"]),
    opset=st.integers(11, 20),
    height=st.integers(4, 40),
    width=st.integers(4, 40),
    folded=st.booleans(),
)
def test_computed_sizes_of_any_frame(tmp_path_factory, wire, opset, height, width, folded):
    height += height % 2 if wire == "blocks" else 0
    x = torch.zeros(1, 3, height, width)
    net, path = Net(WIRES[wire], x.shape).eval(), tmp_path_factory.mktemp("net") / "net.onnx"
    agree(exported(net, x, path, dynamo=False, opset_version=opset, do_constant_folding=folded), net, x)


def test_height_and_width_without_a_size(tmp_path):
    net, x, axes = Net(skip()).eval(), torch.zeros(1, 3, 16, 24), {"x": {0: "n", 2: "h", 3: "w"}}
    path = exported(net, x, tmp_path / "net.onnx", dynamo=False, opset_version=17, dynamic_axes=axes)
    with pytest.raises(
        I2IError, match=r"tensor x: expected a known shape, .* Export it with fixed height and width\.$"
    ):
        analyse(path)


# --- where the weights are ------------------------------------------------------------------------------------


def of_constants(onnx, graph):
    """Weights as Constant nodes, each behind an Identity."""
    for number, tensor in enumerate(graph.initializer):
        nodes = [
            onnx.helper.make_node("Constant", [], [f"{tensor.name}.kept"], value=tensor),
            onnx.helper.make_node("Identity", [f"{tensor.name}.kept"], [tensor.name]),
        ]
        for place, node in enumerate(nodes):
            graph.node.insert(2 * number + place, node)
    del graph.initializer[:]


def elsewhere(onnx, graph):
    """Weights in a file that is not there: only shapes count."""
    for tensor in graph.initializer:
        if len(tensor.dims) == 4:
            onnx.external_data_helper.set_external_data(tensor, "lost.data")
            tensor.ClearField("raw_data")


@pytest.mark.parametrize("change", [of_constants, elsewhere])
def test_weights_in_other_places(tmp_path, change):
    onnx, net, x = require("onnx"), Net(skip()).eval(), torch.zeros(1, 3, 16, 24)
    path = exported(net, x, tmp_path / "net.onnx", dynamo=False, opset_version=17)
    model = onnx.load(path)
    assert len(model.graph.initializer) == 6
    change(onnx, model.graph)
    onnx.save(model, path)
    agree(path, net, x)


def test_weights_as_inputs(tmp_path):
    options = {"dynamo": False, "opset_version": 17, "keep_initializers_as_inputs": True}
    net, x, path = Net(skip()).eval(), torch.zeros(1, 3, 16, 24), tmp_path / "net.onnx"
    agree(exported(net, x, path, **options), net, x)
    exported(net, x, path, export_params=False, **options)
    with pytest.raises(I2IError, match=r"expected a weight that the file holds, got the input first.weight\. Export"):
        analyse(path)


# --- what no exporter writes but may ---------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, derandomize=True)
@given(height=st.integers(1, 9), width=st.integers(1, 9), factor=st.integers(1, 4))
def test_a_long_way_to_a_size(tmp_path_factory, height, width, factor):
    """Against the shape that ONNX Runtime gives; an operator that nothing needs stands in the way of nothing."""
    onnx, ort = require("onnx"), require("onnxruntime")
    text = f"""
    <ir_version: 9, opset_import: ["" : 18]>
    way (float[1, 2, {height}, {width}] x) => (float[1, 2, h, w] y) {{
        lost = Softmax (x)
        size = Shape <start = 2> (x)
        long = Shape (size)
        rank = Squeeze (long)
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        places = Range (zero, rank, one)
        factor = Constant <value_ints = [{factor}]> ()
        filled = ConstantOfShape <value = int64[1] {{2}}> (factor)
        most = ReduceMax <keepdims = 0> (filled)
        mirrored = Gather (size, places)
        tall = Greater (mirrored, most)
        more = Mul (mirrored, factor)
        chosen = Where (tall, more, mirrored)
        whole = Cast <to = 1> (chosen)
        root = Sqrt (whole)
        square = Mul (root, root)
        near = Round (square)
        back = Cast <to = 7> (near)
        front = Shape <end = 2> (x)
        target = Concat <axis = 0> (front, back)
        y = Resize <mode = "nearest"> (x, , , target)
    }}"""
    path = tmp_path_factory.mktemp("way") / "way.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    (made,) = ort.InferenceSession(path).run(None, {"x": np.zeros((1, 2, height, width), np.float32)})
    if made.shape[2] * width != made.shape[3] * height:  # one of the two was tall
        with pytest.raises(I2IError, match="the same factor in height and width"):
            analyse(path)
    else:
        (layer,) = analyse(path).layers
        assert (layer.kind, layer.out_shape) == ("upsample", made.shape[1:])
