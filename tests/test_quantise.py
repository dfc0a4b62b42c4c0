"""Calibration and fake quantisation against AMD's quantiser, the exported file against two engines, the errors."""

import json

import numpy as np
import pytest
import torch
from conftest import shared
from torch import nn

from i2ilib import I2IError
from i2ilib.models import Generator
from i2ilib.quant import fake_quantise, quantise, with_positions
from i2ilib.quant import graph as g

SLOPE = 13 / 128


class TinyED(nn.Module):
    """The small encoder-decoder of the golden data, by its description."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2 = nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 8, 4, 2, 1, bias=False)
        self.e3, self.d3 = nn.Conv2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False)
        self.d2, self.d1 = nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        self.b2, self.bd3, self.bd2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.a1, self.a2 = nn.LeakyReLU(SLOPE), nn.LeakyReLU(SLOPE)
        self.r3, self.rd3, self.rd2, self.tanh = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Tanh()

    def forward(self, x):
        s1 = self.a1(self.e1(x))
        s2 = self.a2(self.b2(self.e2(s1)))
        y = self.rd3(self.bd3(self.d3(self.r3(self.e3(s2)))))
        y = self.rd2(self.bd2(self.d2(torch.cat([s2, y], 1))))
        return self.tanh(self.d1(torch.cat([s1, y], 1)))


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden/nndct/tiny_ed.npz"))


@pytest.fixture(scope="module")
def tiny(golden):
    net = TinyED().eval()
    keys = [key for key in golden.files if key.startswith("weights/")]
    net.load_state_dict({key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in keys})
    return net


@pytest.fixture(scope="module")
def quantised(golden, tiny):
    return quantise(tiny, torch.from_numpy(golden["calib"]).split(2))


NAMES = {0: "input", 2: "a1", 4: "a2", 6: "r3", 9: "cat", 12: "cat_1", 13: "d1"}  # golden node: our tensor


def test_float_network_is_the_golden_one(golden, tiny):
    with torch.no_grad():
        out = tiny(torch.from_numpy(golden["test"]))
    np.testing.assert_allclose(out, golden["plain/float_out"], atol=1e-6)


def test_fix_positions_equal_the_quantiser(quantised):
    info = json.loads((shared("golden/nndct") / "tiny_ed_plain_quant_info.json").read_text())
    params = {name.split("::")[1]: position[0][1] for name, position in info["param"].items()}
    graph = json.loads((shared("golden/nndct") / "tiny_ed_graph.json").read_text())["plain"]
    tensors = {NAMES[node["index"]]: node["fixpos"] for node in graph if node["fixpos"] is not None}
    assert quantised.fix_positions == params | tensors


def test_folded_and_rounded_parameters_equal_the_quantiser(golden, tiny, quantised):
    folded = g.capture(tiny, torch.from_numpy(golden["test"]))
    for site in (site for site in quantised.sites if site.kind == "parameter"):
        mine = g.parameter(folded, next(n for n in folded.graph.nodes if n.name == site.node.name)).detach()
        np.testing.assert_allclose(mine, golden[f"plain/param_folded/{site.name}"], atol=1e-6)
        node = next(n for n in quantised.graph.graph.nodes if n.name == site.node.name)
        integers = g.parameter(quantised.graph, node) * 2.0 ** quantised.fix_positions[site.name]
        np.testing.assert_array_equal(integers.detach().numpy(), golden[f"plain/param_int8/{site.name}"])


def test_fake_quantised_output_equals_the_quantiser(golden, quantised):
    out = quantised.fake(torch.from_numpy(golden["test"]))
    np.testing.assert_allclose(out, golden["plain/quant_out"], atol=1e-6)


def test_exported_file_runs_alike_in_two_engines(golden, quantised, tmp_path):
    import onnx
    import onnxruntime
    import openvino

    path = quantised.to_onnx(tmp_path / "tiny.onnx")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") >= len(NAMES) and kinds.count("Conv") + kinds.count("ConvTranspose") == 6
    x = golden["calib"]
    a = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
    b = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    np.testing.assert_allclose(a, b, atol=1e-6)
    step = 2.0 ** -quantised.fix_positions["d1"]
    # the file rounds ties to even, the device up: one or two steps of the output here and there
    assert np.abs(a - quantised.fake(torch.from_numpy(x)).numpy()).max() <= 2 * step


def test_ties_are_all_that_sets_the_file_apart(monkeypatch, tmp_path):
    """With ties to even in place of ties up, the fake-quantised generator is what OpenVINO computes, in every pixel."""
    import openvino

    from i2ilib.quant import fixed_point

    torch.manual_seed(0)
    net = Generator(width=8, levels=6, out_channels=1)
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        for _ in range(5):  # running statistics
            net(x)
    quantised = quantise(net, [x])
    path = quantised.to_onnx(tmp_path / "net.onnx")
    engine = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
    up = quantised.fake(x).numpy()
    monkeypatch.setitem(fixed_point._ROUND, "activation", torch.round)
    monkeypatch.setitem(fixed_point._ROUND, "input", torch.round)
    even = quantised.fake(x).numpy()
    assert np.abs(engine - even).max() < 1e-6
    assert np.abs(engine - up).max() > 1e-6  # else this test would say nothing about ties


def test_generator_survives_quantisation_and_a_round_trip_of_its_positions():
    torch.manual_seed(0)
    net = Generator(width=4, levels=5, out_channels=1).eval()
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    first = quantise(net, [x])
    again = with_positions(net, first.fix_positions, x)
    assert torch.equal(first.fake(x), again.fake(x))
    assert "cat_2" in first.fix_positions and "encoder.0.act" in first.fix_positions
    with torch.no_grad():
        assert (first.fake(x) - net(x)).abs().mean() < 0.2 * net(x).abs().mean()
    moved = with_positions(net, first.fix_positions | {"encoder.0.act": 2}, x)
    assert not torch.equal(moved.fake(x), first.fake(x))


def test_activation_after_concat_is_rounded_twice():
    net = Generator(width=4, levels=4, out_channels=1, order="pix2pix")
    found = {s.name for s in quantise(net, [torch.rand(2, 3, 32, 32)]).sites}
    assert {"cat", "decoder.1.act"} <= found  # the concat, then the ReLU that alone consumes it


def test_module_called_twice_has_two_names():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    names = [s.name for s in quantise(Twice(), [torch.rand(2, 3, 8, 8)]).sites]
    assert len(set(names)) == len(names) == 5


def test_batches_vote_and_the_smallest_wins_a_tie():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    nn.init.ones_(net[0].weight)
    small, large = torch.full((2, 1, 4, 4), 0.1), torch.full((2, 1, 4, 4), 0.9)
    position = lambda *batches: quantise(net, batches).fix_positions["input"]  # noqa: E731
    assert position(small) == 10 and position(large) == 7
    assert position(small, large) == 7 and position(small, small, large) == 10


def test_fake_quantise_reaches_the_grid():
    x = torch.linspace(-2, 2, 1001)
    steps = fake_quantise(x, 6) * 64
    assert torch.equal(steps, steps.round()) and float(steps.max()) == 127


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.GELU()), "gelu"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), "before BatchNorm"),
    ],
)
def test_unsupported_operator_is_named(net, match):
    with pytest.raises(I2IError, match=match):
        quantise(net, [torch.rand(2, 3, 8, 8)])


def test_bad_calls():
    net = nn.Conv2d(3, 3, 1)
    with pytest.raises(I2IError, match="at least one batch"):
        quantise(net, [])
    with pytest.raises(I2IError, match="'dpu'"):
        quantise(net, [torch.rand(2, 3, 8, 8)], scheme="nncf")
    with pytest.raises(I2IError, match="finite"):
        quantise(net, [torch.full((2, 3, 8, 8), float("nan"))])
    with pytest.raises(I2IError, match="one for each of the 4 tensors"):
        with_positions(net, {"input": 6}, torch.rand(2, 3, 8, 8))
