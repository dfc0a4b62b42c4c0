"""TensorRT's parser takes every file that we write and refuses, in its own words, what it does not run."""

import sys

import numpy as np
import pytest
import torch
from conftest import shared
from torch import nn

from i2ilib import I2IError, UnavailableError, available
from i2ilib.deploy.half import to_half
from i2ilib.deploy.tensorrt import check_onnx, compile_onnx
from i2ilib.models import Generator, SRUNet, UNet, pretrained, reparametrise
from i2ilib.quant import quantise, with_positions
from i2ilib.quant.export import to_onnx

onnx = pytest.importorskip("onnx")
there = available("tensorrt_rtx")
needs_tensorrt = pytest.mark.skipif(not there, reason=there.reason)

SMALL = {
    "generator, dpu": lambda: Generator(width=4, levels=4),
    "generator, pix2pix": lambda: Generator(width=4, levels=4, order="pix2pix", slope=26 / 256),
    "UNet": lambda: UNet(filters=(4, 4, 8, 8), scale=2, residual=False),
    "SRUNet": lambda: SRUNet(n_filters=4, layer_multiplier=0.5, residual=False),
    "SRUNet, folded, with the host's bicubic": lambda: reparametrise(SRUNet(n_filters=4, layer_multiplier=0.5)),
}


def convolutions(model):
    """How many a forward pass computes: blocks may keep layers that it never calls."""
    calls = []
    hooks = [
        layer.register_forward_hook(lambda *_: calls.append(1))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return len(calls)


# --- accepted ----------------------------------------------------------------------------------------


@needs_tensorrt
@pytest.mark.parametrize("name", SMALL)
def test_our_exports_are_accepted_with_every_convolution_in_int8(name, tmp_path):
    torch.manual_seed(0)
    model = SMALL[name]()
    quantised = quantise(model, [torch.rand(2, 3, 32, 32) * 2 - 1])
    for ties in ("up", "even"):
        verdict = check_onnx(quantised.to_onnx(tmp_path / f"{ties}.onnx", ties=ties))
        assert verdict, f"{ties}: {verdict.reason}"
        assert verdict.convolutions == verdict.in_int8 == convolutions(model)
        assert verdict.reason.startswith("TensorRT for RTX")


@needs_tensorrt
def test_the_golden_encoder_decoder_is_accepted(tmp_path):
    from test_quantise import TinyED

    golden = np.load(shared("golden/nndct/tiny_ed.npz"))
    model = TinyED().eval()
    keys = [key for key in golden.files if key.startswith("weights/")]
    model.load_state_dict({key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in keys})
    quantised = quantise(model, [torch.from_numpy(golden["calib"])])
    for ties in ("up", "even"):
        assert check_onnx(quantised.to_onnx(tmp_path / f"{ties}.onnx", ties=ties))[2:] == (6, 6)


@needs_tensorrt
def test_the_committed_generator_is_accepted(tmp_path):
    model, meta = pretrained("matting_actors")
    path = with_positions(model, meta["fix_positions"], torch.zeros(2, 3, 256, 256)).to_onnx(tmp_path / "net.onnx")
    verdict = check_onnx(path, batch=2)
    assert verdict, verdict.reason
    assert verdict.convolutions == verdict.in_int8 == 2 * model.config.levels


@needs_tensorrt
@pytest.mark.parametrize("name", SMALL)
def test_float_and_half_files_are_accepted(name, tmp_path):
    torch.manual_seed(0)
    model = SMALL[name]().eval()
    float32 = to_onnx(model, torch.zeros(2, 3, 32, 32), tmp_path / "float.onnx")
    for path in (float32, to_half(float32, tmp_path / "half.onnx")):
        verdict = check_onnx(path)
        assert verdict, verdict.reason
        assert (verdict.convolutions, verdict.in_int8) == (convolutions(model), 0)


@needs_tensorrt
def test_what_is_built_for_a_gpu_goes_the_same_way(small):
    trt = pytest.importorskip("tensorrt_rtx")
    built = compile_onnx(trt, small, batch=(1, 2, 4))
    assert built.plan and not built.reason and (built.convolutions, built.in_int8) == (4, 4)


@needs_tensorrt
def test_a_float_file_is_accepted_and_counts_no_integers(tmp_path):
    verdict = check_onnx(to_onnx(Generator(width=2, levels=2).eval(), torch.zeros(2, 3, 16, 16), tmp_path / "f.onnx"))
    assert verdict and (verdict.convolutions, verdict.in_int8) == (4, 0)


# --- refused -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file that is accepted, to spoil."""
    torch.manual_seed(0)
    quantised = quantise(Generator(width=2, levels=2), [torch.rand(2, 3, 16, 16)])
    return quantised.to_onnx(tmp_path_factory.mktemp("onnx") / "small.onnx")


def zero_points(graph, value):
    """Give every Q/DQ pair this zero point."""
    names = {node.input[2] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(value), tensor.name))


def unknown_operator(graph):
    for node in graph.node:
        if node.op_type == "Tanh":
            node.op_type = "Det"


def quantised_bias(graph):
    """An int32 bias behind a DequantizeLinear, as some exporters write it."""
    bias = next(node for node in graph.node if node.op_type == "Conv").input
    channels = next(tensor for tensor in graph.initializer if tensor.name == bias[2]).dims[0]
    parts = {"q": np.ones(channels, np.int32), "s": np.float32(0.25), "z": np.int32(0)}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(x), name) for name, x in parts.items())
    graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", [*parts], ["bias"], name="bias_dq"))
    bias[2] = "bias"


def free_height(graph):
    graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


SPOILT = {
    "unknown operator": (unknown_operator, ("Det", "node_tanh", "UNSUPPORTED_NODE")),
    "asymmetric": (lambda graph: zero_points(graph, np.int8(3)), ("DequantizeLinear", "zero point is not supported")),
    "asymmetric uint8": (lambda graph: zero_points(graph, np.uint8(128)), ("zero point is not supported",)),
    "uint8 read as int8": (lambda graph: zero_points(graph, np.uint8(0)), ("Defaulting to INT8",)),
    "quantised bias": (quantised_bias, ("bias_dq", "must have type")),
    "free height": (free_height, ("only the batch size may be free",)),
}


@needs_tensorrt
@pytest.mark.parametrize("name", SPOILT)
def test_what_tensorrt_does_not_run_is_refused_in_its_words(name, small, tmp_path):
    assert check_onnx(small), "the file is good before it is spoilt"
    spoil, words = SPOILT[name]
    model = onnx.load(small)
    spoil(model.graph)
    onnx.save(model, tmp_path / "spoilt.onnx")
    verdict = check_onnx(tmp_path / "spoilt.onnx")
    assert not verdict
    assert all(word in verdict.reason for word in words), verdict.reason
    assert "\n" not in verdict.reason and "driver" not in verdict.reason


@needs_tensorrt
@pytest.mark.parametrize(("keep", "word"), [(0.5, "Failed to parse"), (0.999, "Failed to parse"), (0, "output")])
def test_a_truncated_file_is_refused(small, tmp_path, keep, word):
    data = small.read_bytes()
    (tmp_path / "part.onnx").write_bytes(data[: int(len(data) * keep)])
    verdict = check_onnx(tmp_path / "part.onnx")
    assert not verdict and word in verdict.reason


@needs_tensorrt
def test_many_complaints_are_cut_short(tmp_path):
    node = [onnx.helper.make_node("BitwiseNot", [f"t{i}"], [f"t{i + 1}"], name=f"not{i}") for i in range(5)]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, [1, 4]) for name in ("t0", "t5")]
    graph = onnx.helper.make_graph(node, "many", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    reason = check_onnx(tmp_path / "m.onnx").reason
    assert "not0" in reason and "not3" not in reason and reason.endswith("(and 2 more)")


# --- errors ------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_batch_of_none_are_errors(small, tmp_path):
    with pytest.raises(I2IError, match="expected an ONNX file, got no file"):
        check_onnx(tmp_path / "none.onnx")
    with pytest.raises(I2IError, match="batch: expected 1 or more, got 0"):
        check_onnx(small, batch=0)


def test_without_tensorrt_it_says_where_to_get_it(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UnavailableError, match="pip install tensorrt-rtx"):
        check_onnx(small)
