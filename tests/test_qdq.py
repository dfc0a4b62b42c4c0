"""Every rule for Q/DQ pairs: our files keep it, and a file that breaks it is found out."""

import numpy as np
import pytest
import torch
from torch import nn

from i2ilib import I2IError, IntegrityError
from i2ilib.deploy.qdq import RULES, broken_rules
from i2ilib.models import Generator, SRUNet, UNet, reparametrise
from i2ilib.quant import quantise
from i2ilib.quant.export import to_onnx

onnx = pytest.importorskip("onnx")

SMALL = {
    "generator": lambda: Generator(width=4, levels=3),
    "generator, pix2pix": lambda: Generator(width=4, levels=3, order="pix2pix", slope=26 / 256),
    "UNet": lambda: UNet(filters=(4, 4, 8, 8), scale=2),
    "SRUNet": lambda: SRUNet(n_filters=4, layer_multiplier=0.5),
    "SRUNet, folded": lambda: reparametrise(SRUNet(n_filters=4, layer_multiplier=0.5)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The Q/DQ file of every small network, as a GPU gets it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("qdq")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    return {
        name: quantise(make(), [x]).to_onnx(folder / f"{i}.onnx", ties="even")
        for i, (name, make) in enumerate(SMALL.items())
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SMALL)
def test_our_files_keep_every_rule(files, name, rule):
    assert broken_rules(files[name])[rule] == []


def test_our_files_have_what_the_rules_are_about(files):
    def kinds(name):
        return {node.op_type for node in onnx.load(files[name]).graph.node}

    assert {"ConvTranspose", "Concat"} <= kinds("generator")
    assert {"Resize", "Concat"} <= kinds("UNet") & kinds("SRUNet")
    biased = [x for x in onnx.load(files["SRUNet, folded"]).graph.node if x.op_type == "Conv" and len(x.input) > 2]
    assert biased


# --- broken, one by one ------------------------------------------------------------------------------


def put(graph, name, value):
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return name


def maker(graph, name):
    return next(node for node in graph.node if name in node.output)


def first(graph, kind):
    return next(node for node in graph.node if node.op_type == kind)


def shifted(graph):
    node = first(graph, "QuantizeLinear")
    node.input[2] = put(graph, "zero", np.int8(3))
    return node


def unsigned(graph):
    node = first(graph, "DequantizeLinear")
    node.input[2] = put(graph, "zero", np.uint8(0))
    return node


def without_zero(graph):
    node = first(graph, "QuantizeLinear")
    del node.input[2]
    return node


def bias(graph):
    conv = first(graph, "Conv")
    parts = [put(graph, "b", np.ones(4, np.int32)), put(graph, "s", np.float32(1)), put(graph, "z", np.int32(0))]
    graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", parts, ["bias"], name="bias_dq"))
    conv.input[:] = [*conv.input[:2], "bias"]
    return conv


def float_weights(graph):
    conv = first(graph, "Conv")
    conv.input[1] = put(graph, "w", np.zeros((4, 3, 4, 4), np.float32))
    return conv


def float_input(graph):
    conv = first(graph, "Conv")
    conv.input[0] = "x"
    return conv


def per_channel(graph):
    conv = first(graph, "ConvTranspose")
    weights = maker(graph, conv.input[1])
    size = next(t for t in graph.initializer if t.name == weights.input[0]).dims[1]
    weights.input[1] = put(graph, "scales", np.linspace(0.01, 0.02, size, dtype=np.float32))
    weights.input[2] = put(graph, "zeros", np.zeros(size, np.int8))
    weights.attribute.append(onnx.helper.make_attribute("axis", 1))
    return conv


def two_scales(graph):
    concat = first(graph, "Concat")
    maker(graph, concat.input[0]).input[1] = put(graph, "other", np.float32(0.123))
    return concat


def one_side_float(graph):
    concat = first(graph, "Concat")
    concat.input[0] = maker(graph, maker(graph, concat.input[0]).input[0]).input[0]
    return concat


def resize_to_float(graph):
    resize = first(graph, "Resize")
    graph.node.append(onnx.helper.make_node("Identity", [resize.output[0]], ["aside"]))
    return resize


SPOILT = {
    "shifted": (shifted, "generator", "zero points are int8 and 0"),
    "unsigned": (unsigned, "generator", "zero points are int8 and 0"),
    "without zero point": (without_zero, "generator", "zero points are int8 and 0"),
    "bias": (bias, "generator", "biases stay float32"),
    "float weights": (float_weights, "generator", "convolutions read int8, input and weights"),
    "float input": (float_input, "generator", "convolutions read int8, input and weights"),
    "per channel": (per_channel, "generator", "transposed convolutions have one scale for all weights"),
    "two scales": (two_scales, "generator", "all inputs of a concat have one scale"),
    "one side float": (one_side_float, "generator", "all inputs of a concat have one scale"),
    "resize to float": (resize_to_float, "UNet", "what a resize makes of int8 is quantised again"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_broken_rule_is_found_where_it_is_broken(files, tmp_path, case):
    spoil, name, rule = SPOILT[case]
    model = onnx.load(files[name])
    node = spoil(model.graph).name
    onnx.save(model, tmp_path / "spoilt.onnx")
    broken = broken_rules(tmp_path / "spoilt.onnx")
    assert broken.pop(rule) == [node]
    assert not any(broken.values()), "and no other"


def test_a_batch_norm_that_is_not_folded(tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()
    path = to_onnx(model, torch.zeros(2, 3, 8, 8), tmp_path / "bn.onnx")
    graph = onnx.load(path)
    if not any(node.op_type == "BatchNormalization" for node in graph.graph.node):
        graph.graph.node[0].op_type = "BatchNormalization"  # an exporter that folds it by itself
        onnx.save(graph, path)
    assert len(broken_rules(path)["batch norms are folded"]) == 1


def test_files_that_are_none(tmp_path):
    with pytest.raises(I2IError, match="expected an ONNX file, got no file"):
        broken_rules(tmp_path / "none.onnx")
    (tmp_path / "text").write_bytes(b"hello, this is no network")
    with pytest.raises(IntegrityError, match="expected an ONNX network"):
        broken_rules(tmp_path / "text")
