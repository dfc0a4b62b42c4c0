"""Layers laid out for few patches compute what PyTorch's own convolutions compute, forwards and backwards."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from i2ilib.models import Discriminator, Generator
from i2ilib.train import speed

CPU = torch.device("cpu")
KINDS = {"down": nn.Conv2d, "up": nn.ConvTranspose2d}


def layer(kind, ci=256, co=256, kernel=4, stride=2, padding=1, bias=False, **more):
    torch.manual_seed(0)
    return KINDS[kind](ci, co, kernel, stride, padding, bias=bias, **more).double()


def chosen(module):
    return [name for name, child in module.named_modules() if "forward" in vars(child)]


@pytest.fixture
def roads(monkeypatch):
    """Counts the calls of unfold and fold, so that a test knows which road was taken."""
    taken = []
    for name in ("unfold", "fold"):
        plain = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *a, _plain=plain, _name=name, **k: taken.append(_name) or _plain(*a, **k))
    return taken


@pytest.mark.parametrize(
    ("kind", "shape", "few"),
    [
        ("down", (1, 256, 2, 2), True),
        ("down", (1, 256, 7, 4), True),  # an odd side: its last row is left out by both
        ("down", (1, 256, 32, 32), True),  # 256 positions in the smaller map: at the limit
        ("down", (4, 256, 16, 16), True),
        ("down", (1, 256, 34, 32), False),
        ("down", (5, 256, 16, 16), False),
        ("up", (1, 256, 1, 1), True),
        ("up", (3, 256, 2, 5), True),
        ("up", (1, 256, 16, 16), True),
        ("up", (4, 256, 8, 8), True),
        ("up", (1, 256, 17, 16), False),
        ("up", (5, 256, 8, 8), False),
    ],
)
def test_equal_to_the_plain_convolution(roads, kind, shape, few):
    plain = layer(kind, co=257)  # channels that differ show a transposed weight
    fast = speed.lay_out(copy.deepcopy(plain), CPU)
    x = torch.randn(shape, dtype=torch.float64)
    found = []
    for module in (plain, fast):
        source = x.clone().requires_grad_()
        roads.clear()
        out = module(source)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found.append((out.detach(), source.grad, module.weight.grad))
    assert roads == ([{"down": "unfold", "up": "fold"}[kind]] if few else [])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "shape"), [("down", (1, 256, 4, 4)), ("up", (2, 256, 4, 4))])
def test_bf16_stays_within_its_rounding(kind, shape):
    plain = layer(kind).float()
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        out = speed.lay_out(copy.deepcopy(plain), CPU)(x)
    exact = plain(x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() < 0.02 * exact.abs().max()  # eight bits: steps of 1/256


def test_the_whole_generator_is_the_same_and_keeps_its_weights():
    torch.manual_seed(0)
    plain = Generator(width=32, out_channels=1).eval()
    fast = speed.lay_out(copy.deepcopy(plain), CPU)
    # filters 32-64-128-256×5: 256·256 and 512·128 are 2**16 pairs of channels, 128·256 and 256·64 are fewer
    assert chosen(fast) == [f"encoder.{i}.conv" for i in (4, 5, 6, 7)] + [f"decoder.{i}.conv" for i in range(5)]
    before, after = plain.state_dict(), fast.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    x = torch.rand(2, 3, 256, 256) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        twin.encoder[4].conv.weight.zero_()
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)  # a copy computes with its own weights


@pytest.mark.parametrize("network", [Discriminator(in_channels=4), Generator(width=8)])
def test_light_networks_are_only_laid_channels_last(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    laid = speed.lay_out(network, CPU)
    assert laid is network and chosen(network) == []
    weights = [p for p in network.parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_other_devices_keep_their_kernels():
    laid = speed.lay_out(nn.Sequential(layer("down"), layer("up")), torch.device("meta"))
    assert chosen(laid) == [] and {p.device.type for p in laid.parameters()} == {"meta"}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in laid.parameters())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("down", {"ci": 255}),
        ("down", {"bias": True}),
        ("down", {"kernel": 3}),
        ("down", {"stride": 1}),
        ("down", {"padding": 0}),
        ("down", {"groups": 2, "ci": 512}),
        ("down", {"dilation": 2}),
        ("down", {"padding_mode": "reflect"}),
        ("up", {"co": 255}),
        ("up", {"bias": True}),
        ("up", {"output_padding": 1}),
        ("up", {"dilation": 2}),
    ],
)
def test_layers_of_another_form_are_left_alone(kind, fields):
    plain = layer(kind, **fields)
    x = torch.randn(1, plain.in_channels, 8, 8, dtype=torch.float64)
    want = plain(x)
    torch.testing.assert_close(speed.lay_out(plain, CPU)(x), want, rtol=1e-10, atol=1e-10)
    assert chosen(plain) == []
