"""Convolutions behind up-samplings in smaller pieces: the same numbers, floats and integers, and what they cost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from i2ilib.errors import I2IError
from i2ilib.fcad import analyse, construct, evaluate, fold, pareto, simulate
from i2ilib.fcad.cost import multipliers
from i2ilib.fcad.ladder import at_level
from i2ilib.fcad.rewrite import small_kernels
from i2ilib.models import CodecAvatarDecoder

BATCH = (1, 2, 2)


def behind(x, weight, scale, mode="constant"):
    large = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    half = weight.shape[-1] // 2
    return nn.functional.conv2d(nn.functional.pad(large, [half] * 4, mode=mode), weight)


def before(x, weight, scale, mode="constant"):
    small = torch.from_numpy(small_kernels(weight.numpy(), scale))
    half = small.shape[-1] // 2
    return nn.functional.pixel_shuffle(nn.functional.conv2d(nn.functional.pad(x, [half] * 4, mode=mode), small), scale)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5, 7, 9]), scale=st.sampled_from([2, 3, 4]), ci=st.integers(1, 4),
    co=st.integers(1, 3), height=st.integers(3, 8), width=st.integers(3, 8), seed=st.integers(0, 99),
    mode=st.sampled_from(["constant", "replicate"]),
)  # fmt: skip
def test_the_same_sums_in_integers(kernel, scale, ci, co, height, width, seed, mode):
    """int8 by int8, summed in int64: every sum is equal, so rounding it once gives the same output."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (2, ci, height, width), generator=draw)
    weight = torch.randint(-128, 128, (co, ci, kernel, kernel), generator=draw)
    if max(kernel // 2, kernel // 2 + scale) > 2 * min(height, width):
        return
    given_, made = (f(x.double(), weight.double(), scale, mode) for f in (behind, before))
    assert torch.equal(given_, made)  # far below 2^53: exact
    rounded = [torch.clamp(torch.floor(sums / 2**7 + 0.5), -128, 127) for sums in (given_, made)]
    assert torch.equal(*rounded)


def test_kernels_of_five_become_three_and_take_two_bits_more():
    weight = np.full((2, 3, 5, 5), 127)
    small = small_kernels(weight)
    assert small.shape == (8, 3, 3, 3) and small.max() == 4 * 127 and small.size / weight.size == 1.44
    assert np.ceil(np.log2(small.max() + 1)) + 1 == 8 + 2


def test_rounded_kernels_are_not_the_same():
    """Where the sums of weights are put on an 8-bit grid again, outputs differ."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (1, 4, 8, 8), generator=draw).double()
    weight = torch.randint(-128, 128, (4, 4, 5, 5), generator=draw).double()
    small = small_kernels(weight.numpy())
    coarse = torch.from_numpy(np.clip(np.round(small / 4), -128, 127) * 4)
    made = nn.functional.pixel_shuffle(nn.functional.conv2d(x, coarse, padding=1), 2)
    gap = (made - behind(x, weight, 2)).abs()
    assert 0 < gap.max() < 0.05 * behind(x, weight, 2).abs().max()


def test_reflected_edges_are_not_the_same():
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.rand(1, 1, 6, 6, generator=draw).double(), torch.rand(1, 1, 5, 5, generator=draw).double()
    inside = (..., slice(2, -2), slice(2, -2))
    large, small = behind(x, weight, 2, "reflect"), before(x, weight, 2, "reflect")
    torch.testing.assert_close(large[inside], small[inside])
    assert not torch.allclose(large, small)


def net(*parts):
    return nn.Sequential(*parts)


def up(scale=2, mode="nearest"):
    return nn.Upsample(scale_factor=scale, mode=mode)


@pytest.mark.parametrize("kernel, products", [(3, 4 * 4 / (9 * 4)), (5, 9 / 25), (7, 16 / 49)])
def test_products_that_are_left(kernel, products):
    graph = analyse(net(up(), nn.Conv2d(4, 8, kernel, padding=kernel // 2)), torch.zeros(1, 4, 8, 8))
    folded = fold(graph)
    assert folded.macs / graph.macs == pytest.approx(products)
    conv, shuffle = folded.layers
    assert (conv.out_shape, shuffle.out_shape, folded.outputs) == ((32, 8, 8), (8, 16, 16), (shuffle.name,))
    assert conv.kernel[0] <= small_kernels(np.zeros((1, 1, kernel, kernel))).shape[-1] == (conv.span or conv.kernel)[0]


def test_what_stays():
    """Other interpolations, strides, padding that changes the size, even kernels."""
    x = torch.zeros(1, 4, 8, 8)
    for module in (
        net(up(mode="bilinear"), nn.Conv2d(4, 8, 5, padding=2)),
        net(up(), nn.Conv2d(4, 8, 5, padding=2, stride=2)),
        net(up(), nn.Conv2d(4, 8, 5)),
        net(up(), nn.Conv2d(4, 8, 4, padding="same")),
        net(up(), nn.Conv2d(4, 8, 3, padding=2, dilation=2)),
        net(up(), nn.ReLU(), nn.ConvTranspose2d(4, 8, 4, 2, 1)),
    ):
        graph = analyse(module, x)
        assert fold(graph) == graph
    two = analyse(net(up(), up(), nn.Conv2d(4, 8, 5, padding=2)), x)
    assert [layer.kind for layer in fold(two).layers] == ["conv", "shuffle"]
    assert fold(two).layers[0].out_shape == (8 * 16, 8, 8)
    one = fold(analyse(net(up(), nn.Conv2d(4, 8, 1)), x))
    assert [(layer.kind, layer.out_shape) for layer in one.layers] == [("conv", (8, 8, 8)), ("upsample", (8, 16, 16))]
    with pytest.raises(I2IError, match="graph: expected a Graph"):
        fold(two.layers)


def test_an_up_sampling_with_another_reader_stays_for_it():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.up = nn.Conv2d(4, 8, 5, padding=2), nn.Conv2d(4, 2, 5, padding=2, stride=2), up()

        def forward(self, x):
            y = self.up(torch.relu(x))
            return self.a(y), self.b(y)

    graph = analyse(Fork(), torch.zeros(1, 4, 8, 8))
    folded = fold(graph)
    assert [layer.kind for layer in folded.layers] == ["activation", "upsample", "conv", "shuffle", "conv"]
    assert folded.layer("b") == graph.layer("b")


def test_stages_know_what_it_costs():
    space = construct(fold(analyse(net(nn.Conv2d(4, 4, 3, padding=1), up(), nn.Conv2d(4, 8, 3, padding=1)),
                                   torch.zeros(1, 4, 8, 8))))  # fmt: skip
    exact = space.pipelines[0].stages[1]
    rounded = dataclasses.replace(exact, wider=0)
    assert (exact.wider, exact.kernel, exact.reach) == (2, (2, 2), (3, 3))
    assert [multipliers(stage, 2, 4, 1, 8) for stage in (exact, rounded)] == [8, 4]
    config = at_level(space, 3000)
    assert simulate(config).slowest == pytest.approx(evaluate(config).slowest, rel=0.02)


@pytest.fixture(scope="module")
def decoder():
    with torch.device("meta"):
        return analyse(CodecAvatarDecoder(), (torch.empty(1, 256), torch.empty(1, 3)))


def least_dsp(graph, hz, products):
    """DSPs that always multiply: one mesh, two textures, two warp fields a moment, so many products a DSP and cycle."""
    moment = sum(n * pipeline.macs for n, pipeline in zip(BATCH, construct(graph).pipelines, strict=True))
    return moment * hz / (products * 200e6)


def test_ninety_stereo_pairs(decoder):
    assert round(least_dsp(decoder, 90, 2)) == 2866
    assert round(least_dsp(fold(decoder), 90, 2)) == 1030 and round(least_dsp(fold(decoder), 90, 1)) == 2060
    weights = [sum(pipeline.weights for pipeline in construct(graph).pipelines) for graph in (decoder, fold(decoder))]
    assert weights[1] / weights[0] == pytest.approx(1.42, abs=0.01)  # 1.44, but for the first and the last layer


@pytest.mark.parametrize(
    ("exact", "pairs"), [(None, 69.8), (True, 96.9), (False, 193.8)], ids=["as written", "exact", "rounded"]
)
def test_a_chip_that_could_not_reach_ninety_does(decoder, exact, pairs):
    space = construct(decoder if exact is None else fold(decoder, exact=exact))
    config = pareto.fastest(space, "ZU9CG", BATCH, factors="rows", objective="pairs")
    assert evaluate(config).pairs_per_second == pytest.approx(pairs, abs=0.05)
    ran = min(fps / n for fps, n in zip(simulate(config, frames=3).fps, BATCH, strict=True))
    assert ran == pytest.approx(min(pairs, 200e6 / 1024**2), abs=0.2)  # an output leaves at one pixel a cycle
    assert (ran >= 90) == (exact is not None)
