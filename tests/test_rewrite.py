"""Forms for CPUs: the same integers in every engine, and which convolutions take which form."""

import onnx
import pytest
import torch
from test_integer import noise
from torch import nn

from i2ilib import I2IError
from i2ilib.deploy.onnxruntime import OnnxRuntimeRunner
from i2ilib.deploy.openvino import exact_int8, from_pytorch
from i2ilib.models import Generator, SRUNet, reparametrise
from i2ilib.quant import quantise
from i2ilib.quant.rewrite import for_cpu


class Ends(nn.Module):
    """A narrow convolution in every place: before a concat, behind an activation or none, twice called, at the end."""

    def __init__(self, bias=True):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.odd = nn.Conv2d(8, 4, (2, 3), stride=2, padding=(0, 1), bias=bias)
        self.back = nn.ConvTranspose2d(4, 8, 4, 2, 1, bias=bias)
        self.last = nn.ConvTranspose2d(16, 1, 4, 2, 1, bias=bias)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = self.twice(torch.relu(self.twice(x)))
        z = self.back(nn.functional.leaky_relu(self.odd(y), 26 / 256))
        return self.last(torch.cat([y, z], 1))


def warmed(net, x):
    with torch.no_grad():
        for _ in range(4):
            net.train()(x)
    return net.eval()


NETWORKS = {
    "generator": lambda: (Generator(width=8, levels=6, out_channels=1), (3, 64, 64)),
    "published order": lambda: (Generator(width=8, levels=5, order="pix2pix"), (3, 32, 32)),
    "enlarger": lambda: (reparametrise(SRUNet(n_filters=16, layer_multiplier=0.5, residual=False)), (3, 24, 16)),
    "whole enlarger": lambda: (reparametrise(SRUNet(n_filters=32)), (3, 24, 16)),
    "enlarger by half": lambda: (
        reparametrise(SRUNet(n_filters=16, layer_multiplier=0.5, downsample=0.75)),
        (3, 24, 16),
    ),
    "one pixel": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1)),
        (3, 2, 2),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_integer_is_the_same(name, tmp_path):
    torch.manual_seed(0)
    net, shape = NETWORKS[name]()
    x = noise(5, *shape)
    quantised = quantise(warmed(net, noise(4, *shape)), [x]).on_device()
    path = quantised.to_onnx(tmp_path / "cpu.onnx", form="cpu")
    wanted = quantised.integer(x)
    with from_pytorch(quantised, x) as fast, OnnxRuntimeRunner(path, optimise=False) as written:
        assert fast.precision == ("int8" if exact_int8() else "int8-float")  # both from these forms
        for few in (1, 5):  # the batch is free
            assert torch.equal(fast.run(x[:few]), wanted[:few])
            assert torch.equal(written.run(x[:few]), wanted[:few])


@pytest.mark.parametrize("bias", [True, False])
def test_in_every_place(bias, tmp_path):
    torch.manual_seed(3)
    x = noise(6, 3, 8, 8)
    quantised = quantise(Ends(bias).eval(), [x])
    path = quantised.to_onnx(tmp_path / "cpu.onnx", form="cpu")
    with OnnxRuntimeRunner(path, optimise=False) as written:
        assert torch.equal(written.run(x), quantised.integer(x))
    graph, sites = for_cpu(quantised.graph, quantised.sites)
    assert {site.name for site in sites} == {site.name for site in quantised.sites}
    assert torch.ops.aten.conv_transpose2d.input not in {node.target for node in graph.graph.nodes}


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_transposed_convolution_with_its_own_activation(channels, tmp_path):
    torch.manual_seed(4)
    x = noise(5, 3, 2, 2)
    up, activation = nn.ConvTranspose2d(3, channels, 4, 2, 1), nn.LeakyReLU(26 / 256)
    quantised = quantise(nn.Sequential(up, activation, nn.Conv2d(channels, 4, 3, 1, 1)).eval(), [x])
    path = quantised.to_onnx(tmp_path / "cpu.onnx", form="cpu")
    with OnnxRuntimeRunner(path, optimise=False) as written:
        assert torch.equal(written.run(x), quantised.integer(x))
    assert "ConvTranspose" not in operators(path)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_plain_form_keeps_the_operators(tmp_path):
    net = Generator(width=8, levels=5)
    quantised = quantise(warmed(net, noise(2, 3, 256, 256)), [noise(1, 3, 256, 256)])
    plain = operators(quantised.to_onnx(tmp_path / "plain.onnx"))
    fast = operators(quantised.to_onnx(tmp_path / "fast.onnx", form="cpu"))
    assert plain.count("ConvTranspose") == 5 and plain.count("DepthToSpace") == 0
    # 8 pixels a line and fewer, and the head with its 3 channels, become sub-pixel convolutions
    assert (fast.count("ConvTranspose"), fast.count("DepthToSpace")) == (3, 2)


def test_only_this_transposed_convolution_has_the_form():
    for other in (nn.ConvTranspose2d(3, 3, 2, 2), nn.ConvTranspose2d(3, 3, 4, 2, 0), nn.ConvTranspose2d(3, 3, 4, 4, 0)):
        quantised = quantise(other.eval(), [noise(2, 3, 4, 4)])
        graph, _ = for_cpu(quantised.graph, quantised.sites)
        assert torch.ops.aten.conv_transpose2d.input in {node.target for node in graph.graph.nodes}


def test_another_form_is_refused(tmp_path):
    quantised = quantise(nn.Conv2d(3, 3, 3).eval(), [noise(1, 3, 8, 8)])
    with pytest.raises(I2IError, match="'plain' or 'cpu' or 'float'"):
        quantised.to_onnx(tmp_path / "x.onnx", form="gpu")
