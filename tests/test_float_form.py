"""The integers carried as float32 values, in two engines and in PyTorch, against the exact integers."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_integer import NETWORKS, OPERATORS, SLOPE, moved, noise
from test_ties import CUTS, Cuts, coarse, everything
from torch import nn

from i2ilib import I2IError, IntegrityError
from i2ilib.deploy import openvino
from i2ilib.deploy.onnxruntime import OnnxRuntimeRunner
from i2ilib.deploy.openvino import OpenVinoRunner
from i2ilib.quant import quantise, with_positions
from i2ilib.quant.float_form import to_float
from i2ilib.quant.rewrite import for_cpu


@torch.no_grad()
def carried(quantised, x):
    """The float form as PyTorch computes it."""
    return to_float(quantised.graph, quantised.sites, quantised.fix_positions)(x)


def agree(quantised, x):
    assert torch.equal(carried(quantised, x), quantised.integer(x))


# --- operators and networks ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name):
    for quantised, x in moved(name):
        agree(quantised, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_in_engines(name, tmp_path):
    torch.manual_seed(0)
    x = noise(3, 3, 16, 24) / 2
    net = NETWORKS[name]()
    net(x)  # running statistics
    quantised = quantise(net.eval(), [x]).on_device()
    want = quantised.integer(x)
    assert want.unique().numel() > 30
    path = quantised.to_onnx(tmp_path / "float.onnx", form="float")
    with OpenVinoRunner(path, precision="int8-float") as fast, OnnxRuntimeRunner(path, precision="int8-float") as other:
        if name == "srunet":  # its bicubic branch is the host's, rounded afterwards: a last bit can become one step
            assert (fast.run(x) - want).abs().max() <= quantised.step
        else:
            assert torch.equal(fast.run(x), want) and torch.equal(other.run(x), want)


def test_every_operator_in_a_chain_full_of_ties(tmp_path):
    quantised, x = everything()
    path = quantised.to_onnx(tmp_path / "chain.onnx", form="float")
    with OpenVinoRunner(path, precision="int8-float") as fast, OnnxRuntimeRunner(path) as other:
        assert torch.equal(fast.run(x), quantised.integer(x)) and torch.equal(other.run(x), quantised.integer(x))


def test_the_forms_for_cpus_carry_the_same_values():
    torch.manual_seed(0)
    x = noise(3, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(SLOPE), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.ReLU())
    quantised = quantise(net, [x])
    graph, sites = for_cpu(quantised.graph, quantised.sites)
    with torch.no_grad():
        assert torch.equal(to_float(graph, sites, quantised.fix_positions)(x), quantised.integer(x))


def test_the_network_itself_is_not_changed():
    quantised, x = everything()
    before = quantised.fake(x)
    carried(quantised, x)
    assert torch.equal(quantised.fake(x), before)


# --- sums at the limits of float32 --------------------------------------------------------------------


def loaded(channels, kernel, activation, shift, fp_b, *, transposed=False, seed=0):
    """A convolution whose integer weights reach far, its sums shifted by ``shift``; inputs random and at the ends."""
    generator = torch.Generator().manual_seed(seed)
    kind, axes = (nn.ConvTranspose2d, (0, 1)) if transposed else (nn.Conv2d, (1, 0))
    net = nn.Sequential(kind(channels, 3, kernel, stride=2 if transposed else 1), activation)
    with torch.no_grad():
        weight = torch.randint(-128, 128, net[0].weight.shape, generator=generator).float()
        weight.select(axes[1], 0).abs_().clamp_(100, 127)  # one output whose sums all go one way, and far
        net[0].weight.copy_(weight)
        net[0].bias.copy_(torch.randint(-128, 128, (3,), generator=generator) * 2.0**-fp_b)
    x = torch.randint(-128, 128, (2, channels, kernel + 2, kernel + 3), generator=generator).float()
    x[1] = torch.where(x[1] < 100, 127.0, -128.0)
    end = "0" if isinstance(activation, nn.Identity) else "1"
    positions = {"input": 0, "0.weight": 0, "0.bias": fp_b, end: max(fp_b, 0) - shift}
    return with_positions(net, positions, x), x


ACTIVATIONS = {"none": nn.Identity(), "ReLU": nn.ReLU(), "LeakyReLU": nn.LeakyReLU(SLOPE)}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("channels", "parts"), [(900, 1), (1600, 2), (5000, 4)])
def test_sums_beyond_24_bits_are_taken_in_parts(channels, parts, name):
    """Shifts from none to all sixteen bits, where unrounded sums of large layers meet the ends of float32."""
    for shift, fp_b in itertools.product((0, 5, 9, 10, 11, 13, 16), (-8, 0, 3)):
        quantised, x = loaded(channels, 1, ACTIVATIONS[name], shift, fp_b, seed=shift)
        graph = to_float(quantised.graph, quantised.sites, quantised.fix_positions)
        convolutions = [node for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default]
        assert len(convolutions) >= parts
        with torch.no_grad():
            assert torch.equal(graph(x), quantised.integer(x)), (shift, fp_b)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 700), st.sampled_from([1, 2, 3]), st.sampled_from(list(ACTIVATIONS)), st.integers(-3, 16),
    st.integers(-10, 16), st.booleans(), st.integers(0, 2**16), st.integers(14, 24),
)  # fmt: skip
def test_any_layer_within_the_shifts_of_the_dpu(channels, kernel, name, shift, fp_b, transposed, seed, bits):
    """With a float that holds fewer bits the parts are many; the true float32 must still give the integers."""
    fp_b = min(fp_b, max(shift, 0))  # a bias so much finer than the sums leaves the DPU's shifts
    quantised, x = loaded(channels, kernel, ACTIVATIONS[name], shift, fp_b, transposed=transposed, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("float_form", "integer"):
            patch.setattr(f"i2ilib.quant.{module}.FLOAT32", max(2**bits, 128 * 128 * kernel**2))
        graph = to_float(quantised.graph, quantised.sites, quantised.fix_positions)
    with torch.no_grad():
        assert torch.equal(graph(x), quantised.integer(x))


@pytest.mark.parametrize("cut", range(len(CUTS)))
def test_every_cut_of_the_shifts(cut):
    torch.manual_seed(cut)
    net, x = coarse(Cuts(CUTS[: cut + 1])), (noise(2, 4, 12, 12) * 8).round() / 8
    agree(quantise(net, [x]), x)


def test_sums_that_float32_cannot_promise_are_refused():
    quantised, _ = loaded(1600, 1, nn.Identity(), 17, 0)
    with pytest.raises(I2IError, match=r"0: expected sums below 2\^24, or a shift of at most 16 bits.*backend 'exact'"):
        to_float(quantised.graph, quantised.sites, quantised.fix_positions)
    quantised, _ = loaded(1, 40, nn.Identity(), 8, 0)
    with pytest.raises(I2IError, match=r"sums that float32 holds, below 2\^24, for each input channel"):
        to_float(quantised.graph, quantised.sites, quantised.fix_positions)


# --- the call and the proof ---------------------------------------------------------------------------


def test_only_the_dpus_rule_for_ties(tmp_path):
    quantised = quantise(nn.Conv2d(3, 3, 3).eval(), [noise(1, 3, 8, 8)])
    with pytest.raises(I2IError, match="'up' for the form 'float'"):
        quantised.to_onnx(tmp_path / "x.onnx", form="float", ties="even")
    assert not list(tmp_path.iterdir())


def test_a_file_in_another_form_is_no_proof_of_integers(tmp_path, monkeypatch):
    x = noise(2, 3, 8, 8)
    quantised = quantise(nn.Conv2d(3, 3, 3).eval(), [x])
    with (
        OpenVinoRunner(quantised.to_onnx(tmp_path / "q.onnx"), precision="int8-float") as runner,
        pytest.raises(IntegrityError, match="every convolution in float32"),
    ):
        runner.run(x)
    with OpenVinoRunner(quantised.to_onnx(tmp_path / "f.onnx", form="float"), precision="int8-float") as runner:
        told = {"runtimePrecision": {"conv": "f32"}, "primitiveType": {"conv": "winograd_acl"}}
        monkeypatch.setattr(openvino, "_told", lambda compiled, key: told[key])
        with pytest.raises(IntegrityError, match="Winograd's form of conv"):
            runner.run(x)
