"""The inspector and the quantiser agree on any network, and neither answers with anything but our own errors."""

import contextlib
import importlib
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from i2ilib import I2IError
from i2ilib.quant import graph as g
from i2ilib.quant import inspect, quantise

SLOPE, CHANNELS = 26 / 256, 4
DWC = "DPUCAHX8H_ISA2_DWC"


# --- networks at random -------------------------------------------------------------------------------

ACTIVATIONS = [
    nn.ReLU, lambda: nn.ReLU(inplace=True), nn.ReLU6, lambda: nn.Hardtanh(0, 6), nn.Hardtanh, nn.Sigmoid, nn.Tanh,
    lambda: nn.LeakyReLU(SLOPE), lambda: nn.LeakyReLU(0.2, inplace=True), nn.GELU, nn.SiLU, nn.Hardswish, nn.PReLU,
    lambda: nn.ReLU6(inplace=True), nn.ELU, lambda: nn.RReLU(), nn.Softmax2d,
]  # fmt: skip
IDLE = [nn.Identity, nn.Dropout, nn.Dropout2d, lambda: nn.Dropout(inplace=True), nn.AlphaDropout]
OTHERS = [
    lambda: nn.PixelShuffle(2), lambda: nn.PixelUnshuffle(2), lambda: nn.Flatten(), lambda: nn.Linear(8, 8),
    lambda: nn.GroupNorm(2, CHANNELS), lambda: nn.InstanceNorm2d(CHANNELS), lambda: nn.ZeroPad2d((0, 1, 1, 0)),
    lambda: nn.ReflectionPad2d(1), lambda: nn.ConstantPad2d(1, 0.5), lambda: nn.ZeroPad2d(-1),
    lambda: nn.BatchNorm2d(CHANNELS), lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    lambda: nn.BatchNorm2d(CHANNELS, affine=False),
]  # fmt: skip
NORMS = [
    lambda conv: conv,
    nn.utils.weight_norm,
    nn.utils.parametrizations.weight_norm,
    nn.utils.spectral_norm,
    nn.utils.parametrizations.spectral_norm,
]
FUNCTIONS = {
    "skip": lambda net, x: net(x) + x,
    "scaled": lambda net, x: torch.add(net(x), x, alpha=0.5),
    "concat": lambda net, x: torch.cat([net(x), x], 1)[:, :CHANNELS],
    "join": lambda net, x: F.conv2d(torch.cat([x, net(x), x], 1), net.joining),
    "product": lambda net, x: net(x) * x,
    "times": lambda net, x: net(x) * 2,
    "plus": lambda net, x: 1 + net(x),
    "size": lambda net, x: net(x) + x.shape[0],
    "constant": lambda net, x: net(x) + torch.ones(1, CHANNELS, 1, 1),
    "in place": lambda net, x: net(x).add_(x).relu_(),
    "written twice": lambda net, x: (y := net(x), F.relu(y, inplace=True), y + x)[2],
    "detached": lambda net, x: net(x.detach()).clone().contiguous(),
    "cast": lambda net, x: net(x.float()).to(torch.float32),
    "halves": lambda net, x: net(x).half().float(),
    "without gradients": lambda net, x: torch.no_grad()(net)(x),
    "with gradients": lambda net, x: torch.enable_grad()(net)(x),
    "inference": lambda net, x: torch.inference_mode()(net)(x),
    "chunks": lambda net, x: torch.cat(net(x).chunk(2, 1)[::-1], 1),
    "rows": lambda net, x: torch.cat([net(x), x], 2),
    "view": lambda net, x: net(x).view(x.shape[0], CHANNELS, x.shape[2], -1),
    "scaled weight": lambda net, x: F.conv2d(net(x), net.weight * 0.5, net.offset + 1, padding="same"),
    "own weight": lambda net, x: F.conv2d(net(x), x.mean((0, 2, 3), keepdim=True).expand(4, -1, -1, -1)),
    "noise": lambda net, x: net(x) + torch.randn(1, CHANNELS, 1, 1),
    "dropout that stays": lambda net, x: F.dropout(net(x), 0.5, True),
    "clamped": lambda net, x: net(x).clamp(-0.3, 0.4),
    "clamped by size": lambda net, x: net(x).clamp(max=x.shape[0]),
    "mean": lambda net, x: net(x).mean((2, 3), keepdim=True) + x,
    "branch": lambda net, x: net(x) if x.sum() > 0 else x,
}


USUAL = ["skip", "join", "in place", "written twice", "detached", "cast", "without gradients", "with gradients"]
USUAL += ["inference", "scaled weight", "clamped"]  # what can be quantised where the sizes fit


class Through(nn.Module):
    """A part of the network, and something that a forward does with it."""

    def __init__(self, name, part):
        super().__init__()
        self.name, self.part = name, part
        self.weight, self.offset = nn.Parameter(torch.randn(4, CHANNELS, 2, 3)), nn.Parameter(torch.randn(4))
        self.joining = nn.Parameter(torch.randn(CHANNELS, 3 * CHANNELS, 1, 1))

    def forward(self, x):
        def run(x):
            return self.part(x)

        run.joining, run.weight, run.offset = self.joining, self.weight, self.offset
        return FUNCTIONS[self.name](run, x)


@st.composite
def convolutions(draw):
    kernel = draw(st.sampled_from([1, 2, 3, (2, 3), (3, 1), 4]))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, (1, 2)]))
    stride = 1 if padding == "same" else draw(st.sampled_from([1, 1, 2]))
    mode = draw(st.sampled_from(["zeros"] * 5 + ["reflect", "circular"]))
    groups, dilation = draw(st.sampled_from([1, 1, 1, 2, CHANNELS])), draw(st.sampled_from([1, 1, 2, (1, 3)]))
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode)
    return draw(st.sampled_from(NORMS))(conv)


@st.composite
def transposed(draw):
    kernel, stride = draw(st.sampled_from([2, 3, 4])), draw(st.sampled_from([1, 2]))
    more = {"groups": draw(st.sampled_from([1, 1, 2, 4])), "dilation": draw(st.sampled_from([1, 1, 2]))}
    more["output_padding"] = draw(st.integers(0, stride - 1))
    return nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, stride, draw(st.integers(0, 1)), **more)


@st.composite
def pools(draw):
    kernel, stride = draw(st.sampled_from([1, 2, 3, 4, (2, 1), (1, 4)])), draw(st.sampled_from([None, 1, 2, 3]))
    more = {"padding": draw(st.sampled_from([0, 0, 0, 1])), "ceil_mode": draw(st.booleans())}
    if draw(st.booleans()):
        return nn.MaxPool2d(kernel, stride, dilation=draw(st.sampled_from([1, 1, 2])), **more)
    return draw(
        st.sampled_from([nn.AvgPool2d(kernel, stride, **more), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(2)])
    )


@st.composite
def resizes(draw):
    mode = draw(st.sampled_from(["nearest", "nearest", "bilinear", "bilinear", "bicubic", "nearest-exact"]))
    corners = draw(st.sampled_from([None, False, True])) if mode.startswith("bi") else None
    return nn.Upsample(
        scale_factor=draw(st.sampled_from([1, 2, 2, 3, 4, 1.5, 0.5, (1, 2)])), mode=mode, align_corners=corners
    )


@st.composite
def usual(draw):
    """Convolution, norm, activation: of a kind that can be quantised, and keeps the size."""
    kernel, groups = draw(st.sampled_from([1, 2, 3, (2, 3), 4])), draw(st.sampled_from([1, 1, 2, CHANNELS]))
    dilation, bias = draw(st.sampled_from([1, 1, 2])), draw(st.booleans())
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding="same", dilation=dilation, groups=groups, bias=bias)
    norm = draw(st.sampled_from([nn.Identity, nn.Dropout, lambda: nn.BatchNorm2d(CHANNELS)]))
    act = draw(st.sampled_from([nn.Identity, nn.Tanh, nn.Sigmoid, *ACTIVATIONS[:4], *ACTIVATIONS[7:9]]))
    return nn.Sequential(draw(st.sampled_from(NORMS))(conv), norm(), act())


@st.composite
def moves(draw):
    """What changes the size: two layers, one down and one up."""
    down = draw(st.sampled_from([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Conv2d(CHANNELS, CHANNELS, 4, 2, 1)]))
    up = draw(st.sampled_from([nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1), nn.Upsample(scale_factor=2)]))
    shuffle = nn.Sequential(nn.Conv2d(CHANNELS, 4 * CHANNELS, 1), nn.ReLU6(), nn.PixelShuffle(2))
    up = draw(st.sampled_from([up, nn.Upsample(scale_factor=2, mode="bilinear"), shuffle]))
    return nn.Sequential(down, up)


LAYERS = st.one_of(
    usual(), moves(), convolutions(), transposed(), pools(), resizes(),
    *(st.sampled_from(kinds).map(lambda make: make()) for kinds in (ACTIVATIONS, IDLE, OTHERS)),
)  # fmt: skip


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layers, bold = [], draw(st.booleans())
    for _ in range(draw(st.integers(1, 4))):
        layer = draw(LAYERS if bold else st.one_of(usual(), moves()))
        name = draw(st.sampled_from([None, None, *FUNCTIONS] if bold else [None, *USUAL]))
        layers.append(layer if name is None else Through(name, layer))
    net = nn.Sequential(*layers)
    if draw(st.booleans()):  # trained a step: weights that an operator has computed, running statistics
        with contextlib.suppress(RuntimeError, ValueError, IndexError):  # sizes that do not fit: to be refused
            net(torch.randn(2, CHANNELS, 8, 8)).sum().backward()
    return net if draw(st.booleans()) else net.eval()


def check(net, target):
    x = torch.randn(2, CHANNELS, 8, 8)
    told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slopes that become the DPU's
        for name, call in {
            "inspect": lambda: inspect(net, target, x),
            "quantise": lambda: quantise(net, [x]),
        }.items():
            try:
                told[name] = call()
            except I2IError as error:
                told[name] = str(error)
    found, quantised = told["inspect"], told["quantise"]
    if isinstance(found, str):  # what PyTorch cannot export
        assert found == quantised
        return
    assert bool(found.refused) == isinstance(quantised, str), (str(found), quantised)
    assert not any(row.device == "DPU" for row in found.refused)
    assert all(row.reason and row.remedy for row in found.refused)
    if found.refused:
        first, (tensor, _, told) = found.refused[0], quantised.partition(": expected ")
        assert first.tensor == tensor
        assert told.rpartition(", got ")[0] in first.reason or (
            told.startswith("an operator from") and "not in the operator list" in first.reason
        )
        return
    assert torch.equal(quantised.fake(x), quantised.integer(x))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(networks(), st.sampled_from([DWC, "DPUCAHX8H_ISA2"]))
def test_any_network(net, target):
    check(net, target)


# --- what makes them agree ------------------------------------------------------------------------------


def test_the_inspectors_rules_are_of_the_operators_that_can_be_quantised():
    rules = set(importlib.import_module("i2ilib.quant.inspect")._RULES)
    names = {"cat": "concat", "constant_pad_nd": "pad"}
    on_dpu = {g.operator_name(op) for op in g.OPERATORS if op not in g.HOST}
    assert rules == {names.get(name, name) for name in on_dpu}


def test_padding_with_the_picture_itself():
    check(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, padding_mode="reflect"), DWC)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_forward_once(name):
    torch.manual_seed(0)
    check(nn.Sequential(Through(name, nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)), nn.ReLU6()), DWC)
