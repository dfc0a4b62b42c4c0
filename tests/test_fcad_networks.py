"""Networks of others through analysis, search, optimum and simulation, and wirings that stages must stand for."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from i2ilib.errors import I2IError
from i2ilib.fcad import Budget, Config, analyse, construct, evaluate, optimum, search, simulate
from i2ilib.fcad.cost import control, multipliers
from i2ilib.fcad.ladder import at_level
from i2ilib.runtime import require


def conv(ci, co, kernel=3, **fields):
    return nn.Conv2d(ci, co, kernel, padding=kernel // 2, **fields)


class Wired(nn.Module):
    """Modules by name, wired by a function."""

    def __init__(self, wire, **parts):
        super().__init__()
        self.wire = wire
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.wire(self, x)


def space_of(net, *shape, **options):
    return construct(analyse(net, torch.zeros(1, *shape)), **options)


def of_torchvision(name, **options):
    with torch.device("meta"):
        net = getattr(require("torchvision").models, name)(**options)
        return construct(analyse(net, torch.zeros(1, 3, 224, 224)))


class Hands(nn.Module):
    """A decoder with a linear start, a transposed convolution, a shuffle, a join and depthwise layers."""

    def __init__(self):
        super().__init__()
        act = nn.LeakyReLU(26 / 256)
        self.start = nn.Linear(96, 64 * 8 * 8)
        self.trunk = nn.Sequential(conv(64, 96), act, nn.ConvTranspose2d(96, 48, 4, 2, 1), act)
        self.joints = nn.Sequential(nn.Conv2d(48, 48, 3, 2, 1, groups=48), nn.Conv2d(48, 21, 1))
        self.skin = nn.Sequential(nn.Upsample(scale_factor=2), conv(48, 24, 5), act, nn.Upsample(scale_factor=2))
        self.paint = nn.Sequential(conv(24, 12), nn.PixelShuffle(2))
        self.depth, self.side = conv(96, 1), conv(48, 48)

    def forward(self, code):
        trunk = self.trunk(self.start(code).reshape(-1, 64, 8, 8))
        depth = self.depth(torch.cat([self.side(trunk), trunk], 1))
        return {"joints": self.joints(trunk), "texture": self.paint(self.skin(trunk)), "depth": depth}


@functools.cache
def hands():
    return space_of(Hands(), 96)


# --- whole networks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before"),
    [("resnet18", 110.7), ("mobilenet_v2", 637.8), ("squeezenet1_1", 770.5), ("densenet121", 124.6)],
)
def test_one_branch_reaches_the_optimum_whatever_the_seed(name, before):
    """``before``: FPS on a KU115 where only halvings of all targets together are tried."""
    space = of_torchvision(name)
    best = optimum(space, "KU115")
    found = [search(space, "KU115", seed=seed, n=3, p=20) for seed in range(10)]
    assert {result.fitness for result in found} == {best.fitness}
    assert best.exact and best.fitness > 1.1 * before
    assert search(space, "KU115", evolve="paper").fitness < best.fitness


@pytest.mark.parametrize(("name", "frames"), [("resnet18", 3), ("squeezenet1_1", 3)])
def test_simulation_keeps_the_pace_of_equation_5(name, frames):
    """Shortcuts with a stride, and joins, hold up nobody."""
    config = search(of_torchvision(name), "KU115", n=3, p=20).config
    assert simulate(config, frames=frames).slowest == pytest.approx(evaluate(config).slowest, rel=0.01)


@pytest.mark.parametrize("objective", ["built", "delivered", "slowest"])
@pytest.mark.parametrize("dsp", [220, 900])
def test_hands(objective, dsp):
    budget, batch = Budget(dsp, 1090), (1, 2, 2)
    best = optimum(hands(), budget, None, batch, objective=objective)
    found = [search(hands(), budget, None, batch, seed=seed, objective=objective) for seed in range(10)]
    assert all(result.fitness == pytest.approx(best.fitness, rel=1e-12) for result in found)
    ran = simulate(found[0].config, frames=3)
    np.testing.assert_allclose(ran.fps, found[0].evaluation.delivered, rtol=0.005)


def test_more_resources_deliver_no_less():
    rates = [
        search(hands(), Budget(dsp, bram), None, (1, 2, 2), objective="slowest").evaluation.delivered
        for dsp, bram in ((150, 240), (220, 280), (300, 300), (600, 600), (900, 1090))
    ]
    slowest = [min(each) for each in rates]
    assert slowest == sorted(slowest) and slowest[0] < slowest[-1]


@settings(max_examples=10, deadline=None)
@given(clock=st.sampled_from([1e6, 200e6, 3e9]), dsp=st.integers(120, 1200))
def test_the_clock_scales_the_score_and_moves_no_design(clock, dsp):
    budget = Budget(dsp, 1090, 1e15)
    one, other = (search(space_of_clock(f), budget, None, (1, 2, 2), n=3, p=20) for f in (200e6, clock))
    assert one.config.factors == other.config.factors
    assert other.fitness / one.fitness == pytest.approx(clock / 200e6)


def space_of_clock(frequency_hz):
    return dataclasses.replace(hands(), frequency_hz=frequency_hz)


# --- maps that come in bursts --------------------------------------------------------------------


def test_a_linear_layer_before_a_map():
    net = nn.Sequential(nn.Linear(16, 200), nn.Unflatten(1, (8, 5, 5)), conv(8, 4))
    config = search(space_of(net, 16), Budget(60, 60)).config
    assert simulate(config).slowest == pytest.approx(evaluate(config).slowest, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(
    factor=st.sampled_from([2, 3, 4]), kernel=st.sampled_from([1, 3, 5, 7]), size=st.integers(3, 9),
    stride=st.sampled_from([1, 2]), seed=st.integers(0, 9),
)  # fmt: skip
def test_shuffled_maps_of_any_kernel_move(factor, kernel, size, stride, seed):
    """A column of the writer is several of the reader's."""
    net = nn.Sequential(conv(4, 2 * factor**2), nn.PixelShuffle(factor), conv(2, 6, kernel, stride=stride))
    space = space_of(net, 4, size, size)
    _, second = space.pipelines[0].stages
    assert second.burst == factor
    rng = np.random.default_rng(seed)
    config = at_level(space, float(rng.integers(200, 20000)))
    modelled, ran = evaluate(config).slowest, simulate(config, frames=3).slowest
    assert 0.5 * modelled < ran <= modelled * (1 + 1e-9)


def test_buffers_that_are_too_small_name_who_waits(monkeypatch):
    module = sys.modules["i2ilib.fcad.simulate"]  # the package hands out the function
    monkeypatch.setattr(module, "_capacity", lambda stage: 2 if stage.name == "0" else stage.reach[1] - 1)
    config = at_level(space_of(nn.Sequential(conv(3, 4, 1), conv(4, 4, 5)), 3, 8, 8), math.inf)
    with pytest.raises(I2IError, match=r"0 waits for room before 1\. An input buffer holds fewer columns"):
        simulate(config)


# --- sums ----------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block whose shortcut has a stride, traced first or last."""

    def __init__(self, first, *, deep=2):
        super().__init__()
        self.first, self.enter = first, conv(3, 16)
        self.short = nn.Conv2d(16, 32, 1, stride=2)
        self.way = nn.Sequential(conv(16, 32, stride=2), nn.ReLU(), *(conv(32, 32) for _ in range(deep - 1)))

    def forward(self, x):
        x = self.enter(x)
        if self.first:
            return torch.relu(self.short(x) + self.way(x))
        y = self.way(x)
        return torch.relu(y + self.short(x))


@pytest.mark.parametrize("deep", [1, 2, 4])
def test_a_strided_shortcut_costs_no_time_wherever_it_is_traced(deep):
    rates = []
    for first in (True, False):
        space = space_of(Block(first, deep=deep), 3, 32, 32)
        stages = {stage.name: stage for stage in space.pipelines[0].stages}
        assert len([stage for stage in stages.values() if stage.addends]) == 1
        if deep > 1:  # the long way adds what the short one gives
            assert stages[f"way.{deep}"].addends[0].size == (16, 16) and not stages["short"].addends
        config = at_level(space, 20000)
        rates.append(simulate(config, frames=4).slowest)
        assert rates[-1] == pytest.approx(evaluate(config).slowest, rel=0.02)
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)


def test_a_sum_that_two_branches_read_differently():
    def wire(net, x):
        c = net.c(x)
        y, z = net.y(c), net.z(c)
        return {"A": net.big(y), "B": net.small(y + z)}

    parts = {"c": conv(3, 8), "y": conv(8, 8), "z": conv(8, 8), "big": conv(8, 64, 5), "small": conv(8, 2)}
    for order in (("y", "z"), ("z", "y")):

        def turned(net, x, order=order):
            c = net.c(x)
            maps = {name: getattr(net, name)(c) for name in order}
            return {"A": net.big(maps["y"]), "B": net.small(maps["y"] + maps["z"])}

        space = space_of(Wired(turned, **parts), 3, 16, 16)
        assert sorted(space.order) == [0, 1]
        simulate(search(space, Budget(300, 300)).config, frames=3)
    simulate(search(space_of(Wired(wire, **parts), 3, 16, 16), Budget(300, 300)).config, frames=3)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_wiring_has_an_order_and_moves(data):
    """Random graphs of convolutions, sums, products with gates and concatenations, with several outputs."""
    count = data.draw(st.integers(2, 7))
    plan = [  # kind, and two maps before it
        (data.draw(st.sampled_from(["conv", "deep", "add", "cat", "strided"])),
         data.draw(st.integers(0, i)), data.draw(st.integers(0, i)))
        for i in range(count)
    ]  # fmt: skip
    heads = data.draw(st.lists(st.integers(0, count), min_size=1, max_size=3, unique=True))
    parts = {"enter": conv(3, 4)}
    for i, (kind, *_) in enumerate(plan):
        parts[f"n{i}"] = conv(8 if kind == "cat" else 4, 4, 5 if kind == "deep" else 3)
    parts |= {f"head{i}": conv(4, 2 + 4 * i) for i in heads}

    def wire(net, x):
        maps = [net.enter(x)]
        for i, (kind, a, b) in enumerate(plan):
            part = getattr(net, f"n{i}")
            if kind == "add":
                maps.append(maps[a] + part(maps[b]))
            elif kind == "cat":
                maps.append(part(torch.cat([maps[a], maps[b]], 1)))
            else:
                maps.append(part(maps[a]))
        return [getattr(net, f"head{i}")(maps[i]) for i in heads]

    net = Wired(wire, **parts)
    graph = analyse(net, torch.zeros(1, 3, 8, 8))
    space = construct(graph)
    assert sum(pipeline.macs for pipeline in space.pipelines) == graph.macs  # each stage once
    for p in space.order:
        for s, stage in enumerate(space.pipelines[p].stages):
            for q, r in [*stage.sources, *(addend.source for addend in stage.addends)]:
                assert q != p or r < s
    config = at_level(space, 1e4)
    ran = simulate(config, frames=5)
    for branch, delivered in zip(ran.branches, evaluate(config).delivered, strict=True):
        last = space.frequency_hz / (branch.finished[4] - branch.finished[3])  # the first come while buffers fill
        assert 0.8 * delivered < last < 1.3 * delivered


# --- light stages --------------------------------------------------------------------------------


@pytest.mark.parametrize("chained", [False, True])
def test_a_trunk_up_sampled_by_two_and_by_four(chained):
    def wire(net, x):
        y = net.trunk(x)
        two = net.two(y)
        return {"a": net.a(two), "b": net.b(net.two(two) if chained else net.four(y))}

    parts = {"two": nn.Upsample(scale_factor=2), "four": nn.Upsample(scale_factor=4)}
    net = Wired(wire, trunk=conv(3, 8), a=conv(8, 2), b=conv(8, 4), **parts)
    space = space_of(net, 3, 8, 8)
    (trunk,) = [stage for pipeline in space.pipelines for stage in pipeline.stages if stage.name == "trunk"]
    assert [(light.kind, light.factor, light.size, light.behind) for light in trunk.lights] == [
        ("upsample", 2, (16, 16), 0),
        ("upsample", 4, (32, 32), 0),
    ]
    assert control(trunk) == 6 + 2 * 2
    config = at_level(space, 5000)
    ran = simulate(config, frames=3)
    np.testing.assert_allclose(ran.fps, evaluate(config).delivered, rtol=0.05)
    made = {(a.name, a.kind, len(a.ends) >= 3 * 32) for a in ran.stages if a.name == "trunk" and a.kind == "upsample"}
    assert made == {("trunk", "upsample", False), ("trunk", "upsample", True)}


def test_a_pooling_behind_an_up_sampling():
    net = nn.Sequential(conv(3, 8), nn.Upsample(scale_factor=2), nn.MaxPool2d(2), conv(8, 4))
    space = space_of(net, 3, 8, 8)
    lights = space.pipelines[0].stages[0].lights
    assert [(light.kind, light.behind) for light in lights] == [("upsample", 0), ("pool", 1)]
    config = at_level(space, 5000)
    assert simulate(config).slowest == pytest.approx(evaluate(config).slowest, rel=0.05)


class Squeeze(nn.Module):
    """Squeeze and excitation, with the shortcut of an inverted residual."""

    def __init__(self, *, shortcut):
        super().__init__()
        self.shortcut, self.enter, self.leave = shortcut, conv(3, 16), conv(16, 8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid()
        )

    def forward(self, x):
        x = self.enter(x)
        y = x * self.gate(x)
        return self.leave(y + x if self.shortcut else y)


@pytest.mark.parametrize("shortcut", [False, True])
def test_squeeze_and_excitation(shortcut):
    net = Squeeze(shortcut=shortcut)
    graph = analyse(net, torch.zeros(1, 3, 16, 16))
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 16, 16))
    assert 2 * graph.macs == counter.get_total_flops()
    (pipeline,) = construct(graph).pipelines
    reader = pipeline.stages[-1]
    assert reader.products == 1 and len(reader.sources) == 2 and not any(stage.addends for stage in pipeline.stages)
    assert multipliers(reader, 2, 4, 1, 8) == 2 * 2 + 16  # a multiplier for each channel of the gate
    config = search(construct(graph), Budget(200, 300)).config
    assert simulate(config, frames=4).slowest == pytest.approx(evaluate(config).slowest, rel=0.02)


def test_one_less_a_map(tmp_path):
    """As a matte mixes two pictures: a · m + b · (1 - m)."""

    def wire(net, x):
        m = torch.sigmoid(net.m(x))
        return net.leave(net.a(x) * m + net.b(x) * (1 - m))

    net = Wired(wire, m=conv(3, 8), a=conv(3, 8), b=conv(3, 8), leave=conv(8, 3))
    graph = analyse(net, torch.zeros(1, 3, 16, 16))
    assert [layer.kind for layer in graph.layers].count("mul") == 2
    stages = {stage.name: stage for stage in construct(graph).pipelines[0].stages}
    assert stages["leave"].products == 2 and len(stages["leave"].sources) == 3
    simulate(search(construct(graph), Budget(300, 300)).config, frames=3)
    file = tmp_path / "mix.onnx"
    torch.onnx.export(net.eval(), torch.zeros(1, 3, 16, 16), str(file), dynamo=False)
    again = analyse(file)
    assert (again.macs, again.ops) == (graph.macs, graph.ops)


def test_products_that_no_stage_can_be():
    pooled = Wired(lambda net, x: net.leave(nn.functional.max_pool2d(net.a(x) * net.b(x), 2)),
                   a=conv(3, 8), b=conv(3, 8), leave=conv(8, 3))  # fmt: skip
    with pytest.raises(I2IError, match="expected a pooling behind a convolution, got one behind a product"):
        space_of(pooled, 3, 16, 16)
    rows = Wired(lambda net, x: net.a(x) * net.b(x)[:, :1, :, :1], a=conv(3, 8), b=conv(3, 8))
    with pytest.raises(I2IError, match="operator mul"):
        space_of(rows, 3, 16, 16)


@pytest.mark.parametrize(
    ("norm", "name"), [(nn.GroupNorm(2, 8), "group_norm"), (nn.LayerNorm([8, 8, 8]), "layer_norm"),
                       (nn.InstanceNorm2d(8), "instance_norm")],
)  # fmt: skip
def test_norms_that_look_at_the_whole_map_are_refused_with_the_reason(norm, name):
    with pytest.raises(I2IError, match=f"operator {name}: .*mean and variance of the whole map"):
        analyse(nn.Sequential(conv(3, 8), norm), torch.zeros(1, 3, 8, 8))


# --- operands, frames and numbers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "paired"),
    [(conv(8, 8), True), (conv(8, 8, groups=8), False), (conv(8, 16, groups=8), True), (conv(8, 8, groups=4), True),
     (conv(8, 3), False), (conv(8, 24, groups=8), False)],
)  # fmt: skip
def test_two_products_share_a_dsp_where_they_share_an_operand(layer, paired):
    """A depthwise convolution's two outputs meet two inputs."""
    stage = space_of(layer, 8, 8, 8).pipelines[0].stages[0]
    assert [multipliers(stage, 1, 2, 3, bits) for bits in (8, 16)] == [3 if paired else 6, 6]


@pytest.mark.parametrize(
    ("net", "shape", "macs"),
    [(conv(8, 8), (8, 16, 16), 147_456), (nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4)), (3, 8, 8), 9_216),
     (nn.Linear(8, 5), (8,), 40), (nn.ConvTranspose2d(3, 8, 4, 2, 1), (3, 8, 8), 24_576)],
)  # fmt: skip
def test_a_frame_without_a_batch_axis(net, shape, macs):
    graph = analyse(net, torch.zeros(shape))
    batched = analyse(net, torch.zeros(1, *shape))
    assert graph.macs == batched.macs == macs
    assert [layer.out_shape for layer in graph.layers] == [layer.out_shape for layer in batched.layers]


def test_a_frame_without_a_batch_axis_where_only_that_works():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(3, 4)

        def forward(self, x):
            return self.conv(x).reshape(4, 64)

    with pytest.raises(I2IError, match="batch axis"):
        analyse(Wired(lambda net, x: net.c(x).permute(2, 0, 1), c=conv(3, 4)), torch.zeros(3, 8, 8))
    assert analyse(Single(), torch.zeros(3, 8, 8)).macs == 27 * 4 * 64


def test_an_output_that_is_an_input():
    config = search(space_of(Wired(lambda net, x: (x, net.c(x)), c=conv(3, 4)), 3, 8, 8), Budget(60, 60)).config
    alone = search(space_of(conv(3, 4), 3, 8, 8), Budget(60, 60)).config
    assert simulate(config).fps == simulate(alone).fps


@pytest.mark.parametrize("value", [0.5, True, np.True_, 0, -1, math.nan])
@pytest.mark.parametrize("field", ["dsp", "bram"])
def test_budgets_of_less_than_one(field, value):
    with pytest.raises(I2IError, match=f"budget {field}: expected"):
        Budget(**{"dsp": 100, "bram": 100, field: value})


@pytest.mark.parametrize("priorities", [(0, 0, 0), (True, True, True)])
def test_priorities_that_ask_for_nothing(priorities):
    with pytest.raises(I2IError, match="priorities: expected"):
        search(hands(), Budget(220, 280), priorities)


@pytest.mark.parametrize(("name", "value"), [("objective", "fastest"), ("penalty", "none"), ("alpha", True)])
@pytest.mark.parametrize("task", [search, optimum])
def test_goals_that_are_none(task, name, value):
    with pytest.raises(I2IError, match=f"{name}: expected"):
        task(hands(), Budget(220, 280), **{name: value})


def test_delivered_is_what_simulation_shows():
    """Of random designs: a slow branch holds up those with which it shares stages, fed or feeding."""
    rng = np.random.default_rng(3)
    for _ in range(4):
        levels = [int(2 ** rng.integers(14, 18)) for _ in range(3)]
        config = at_level(hands(), levels, batch_sizes=(1, 2, 2))
        config = Config(config.space, config.factors, (2, 2, 2))
        np.testing.assert_allclose(simulate(config, frames=3).fps, evaluate(config).delivered, rtol=0.01)
