"""The simulated accelerator: hand-computed cases, a second simulator that steps single cycles, conservation, errors."""

import ast
import dataclasses
import math
import random
import subprocess
import sys
from collections import deque
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from fcad_decoder import decoder_space

from i2ilib.errors import I2IError
from i2ilib.fcad import simulate as function
from i2ilib.fcad.construct import DesignSpace, Pipeline, Stage
from i2ilib.fcad.cost import Config, cycles, evaluate
from i2ilib.fcad.published import paper_design
from i2ilib.fcad.simulate import partition_cost, simulate

INF = float("inf")


def conv(ci, co, height, width, k, *, stride=1, upsample=1, sources=(), name="c", **more):
    """A stage of a convolution with "same" padding; ``height`` and ``width`` of its output."""
    weights = ci * co * k * k // more.get("groups", 1)
    shape = {"in_height": height * stride, "in_width": width * stride, "macs": weights * height * width, **more}
    return Stage(name, ci, co, height, width, kernel=(k, k), ops=0, weights=weights, stride=stride, upsample=upsample,
                 sources=sources, **shape)  # fmt: skip


def chain(*stages, bits=8):
    """One pipeline in which each stage reads the one before it."""
    linked = [dataclasses.replace(s, name=f"c{i}", sources=((0, i - 1),) if i else ()) for i, s in enumerate(stages)]
    return DesignSpace((Pipeline("only", tuple(linked)),), bits, frequency_hz=1.0)


def run(space, factors, *, batch=(1,), frames=3, depth=0, **more):
    return simulate(Config(space, tuple(map(tuple, factors)), batch), frames=frames, depth=depth, **more)


def case(number):
    return paper_design(decoder_space(), number)


# --- by hand -------------------------------------------------------------------------------------


def test_one_convolution_by_hand():
    # 2 tiles a column, each 2 channels x 9 taps x 8 rows = 144 cycles. A column of 8 pixels comes in 8 cycles and the
    # first position needs two: start at 16. Then nothing waits, and the last column takes 8 cycles to leave.
    result = run(chain(conv(2, 4, 8, 6, 3)), [[(1, 2, 1)]])
    (branch,), (stage,) = result.branches, result.stages
    assert stage.starts[:7].tolist() == [16 + 288 * i for i in range(7)]
    assert branch.first_column_cycles == 16 + 288 + 8
    assert branch.initial_latency_cycles == 16 + 6 * 288 + 8
    assert branch.finished.tolist() == [16 + 1728 * n + 8 for n in (1, 2, 3)]
    assert branch.interval_cycles == branch.layer_by_layer_cycles == 6 * 288
    assert branch.fps == 1 / 1728
    assert (stage.busy, stage.starved, stage.blocked, stage.weights) == (2 * 1728, 0, 0, 0)
    assert (stage.peak, stage.capacity) == (4, 4)


def test_depth_of_the_data_path_delays_and_does_not_slow():
    slow = run(chain(conv(4, 4, 8, 6, 3)), [[(4, 2, 1)]], depth=9)
    fast = run(chain(conv(4, 4, 8, 6, 3)), [[(4, 2, 1)]])
    levels = 2  # of an adder tree over 4 products; without it depth 0 would still cost nothing else
    assert slow.branches[0].initial_latency_cycles == fast.branches[0].initial_latency_cycles + 9
    assert slow.fps == fast.fps
    assert fast.branches[0].initial_latency_cycles == 16 + 6 * 2 * 72 + levels + 8


def test_two_convolutions_by_hand():
    # Both take 72 cycles a column; the second (K = 3) waits for two columns of the first, then they run side by side.
    result = run(chain(conv(1, 1, 8, 6, 3), conv(1, 1, 8, 6, 3)), [[(1, 1, 1), (1, 1, 1)]])
    first, second = result.stages
    assert first.starts[:4].tolist() == [16, 88, 160, 232]
    assert second.starts[0] == 16 + 2 * 72
    assert result.branches[0].initial_latency_cycles == 16 + 2 * 72 + 6 * 72 + 8
    assert result.branches[0].layer_by_layer_cycles == 2 * 6 * 72
    assert result.branches[0].interval_cycles == 6 * 72


def test_back_pressure_by_hand():
    # 8 cycles a column against 32: the first runs ahead by the two columns of a 1x1 kernel's buffer, then at one in 32.
    result = run(chain(conv(1, 1, 8, 6, 1), conv(4, 1, 8, 6, 1)), [[(1, 1, 1), (1, 1, 1)]])
    first, second = result.stages
    assert first.starts[:5].tolist() == [8, 16, 48, 80, 112]  # a slot is free when the second has done with a column
    assert second.starts[:4].tolist() == [16, 48, 80, 112]
    assert second.peak == second.capacity == 2
    assert first.blocked == 3 * first.busy and first.starved == 0
    assert second.busy == result.window_cycles - 0 == 2 * 6 * 32


def test_starved_by_hand():
    result = run(chain(conv(4, 1, 8, 6, 1), conv(1, 1, 8, 6, 1)), [[(1, 1, 1), (1, 1, 1)]])
    assert result.stages[1].starved == 3 * result.stages[1].busy
    assert result.stages[1].starts[:3].tolist() == [8 + 32, 8 + 64, 8 + 96]


def test_bandwidth_by_hand():
    # A tile is 2 x 2 channels x 9 taps x 8 bits = 288 bits for 72 cycles of work; at 1 bit a cycle a column moves
    # 2 x 288 bits of weights, 128 of the input and 256 of the output: 960 cycles instead of 144.
    result = run(chain(conv(2, 4, 8, 6, 3)), [[(2, 2, 1)]], bandwidth=1.0, frames=5, arbitration="in order")
    per_frame = 6 * (2 * 288 + 8 * 2 * 8 + 8 * 4 * 8)
    assert result.branches[0].interval_cycles == pytest.approx(per_frame, rel=0.01)
    assert result.traffic == pytest.approx(1.0, rel=0.01)
    (stage,) = result.stages
    assert stage.busy == pytest.approx(4 * 6 * 144, abs=144)
    assert stage.weights > stage.starved  # both come through the same memory
    assert run(chain(conv(2, 4, 8, 6, 3)), [[(2, 2, 1)]], bandwidth=100.0).branches[0].interval_cycles == 6 * 144


def test_upsampling_by_hand():
    # 72 cycles a column, doubled to 16 rows: 16 cycles for each of two columns (at most 32 channels); kernel 1 behind.
    space = chain(conv(1, 1, 8, 6, 3, upsample=2), conv(1, 1, 16, 12, 1))
    _, up, second = run(space, [[(1, 1, 1), (1, 1, 1)]]).stages
    assert up.kind == "upsample" and len(up.starts) >= 3 * 12
    assert up.starts[:3].tolist() == [16 + 72, 16 + 72 + 16, 16 + 144]
    assert second.starts[:3].tolist() == [104, 120, 176]
    assert up.buffer_elements == 2 * 8 and up.capacity == 2
    wide = chain(conv(1, 40, 8, 6, 3, upsample=2))  # 40 channels: two writes a pixel
    assert np.diff(run(wide, [[(1, 40, 1)]]).stages[1].ends[:2]) == [32]


def test_partitions_by_hand():
    # 8 rows in 3 parts: 3, 3 and 2; a column takes as long as the longest.
    whole, parts = (run(chain(conv(2, 2, 8, 6, 3)), [[(1, 1, h)]]) for h in (1, 3))
    assert whole.branches[0].interval_cycles == 6 * 2 * 2 * 9 * 8
    assert parts.branches[0].interval_cycles == 6 * 2 * 2 * 9 * 3
    assert whole.stages[0].starts[0] == parts.stages[0].starts[0]  # no other order, so no other wait
    assert whole.stages[0].halo_elements == 0
    assert parts.stages[0].buffer_elements == 2 * 4 * 3 * (3 + 2)
    assert parts.stages[0].halo_elements == 2 * 4 * (15 - 8)


def test_partition_cost():
    stage = conv(16, 16, 512, 512, 5)
    assert partition_cost(stage, 1) == {
        "columns_wait": 3, "columns_elements": 16 * 6 * 512, "halo_elements": 0,
        "rows_wait": 3, "rows_elements": 16 * 6 * 512,
    }  # fmt: skip
    two = partition_cost(stage, 2)
    assert two["columns_elements"] == 16 * 6 * 2 * (256 + 4) and two["halo_elements"] == 16 * 6 * 8
    assert two["rows_wait"] == 256 + 3 and two["rows_elements"] == 16 * 512 * (256 + 4)
    assert partition_cost(stage, 512)["rows_elements"] == 16 * 512 * 512


def test_strides_and_their_padding():
    # AlexNet's first: 224 columns, kernel 11, stride 4, padding 2 -> 55: the first position needs columns 0 to 8.
    stage = conv(3, 1, 55, 55, 11, stride=4, in_height=224, in_width=224)
    result = run(chain(stage), [[(3, 1, 55)]])
    assert result.stages[0].starts[0] == 9 * 224
    assert result.stages[0].capacity == 11 + 4
    # Kernel 3, stride 2, padding 1 in front only: columns 0 and 1.
    assert run(chain(conv(1, 1, 8, 8, 3, stride=2)), [[(1, 1, 1)]]).stages[0].starts[0] == 2 * 16


def test_transposed_convolution_hands_on_every_phase():
    # Kernel 4, stride 2, padding 1: a position of the input gives two columns, each from 4 x 2 taps over 8 rows.
    up = conv(1, 1, 8, 8, 4, stride=2, transposed=True, in_height=8, in_width=8, handed_on=(16, 16))
    result = run(chain(up, conv(1, 1, 16, 16, 1)), [[(1, 1, 1), (1, 1, 1)]])
    first, second = result.stages
    assert np.diff(first.starts[:6]).tolist() == [64] * 5
    assert first.starts[0] == 8  # output column 0 needs input column 0 alone (the other tap falls on padding)
    assert len(second.starts) // 3 in (16, 17)
    assert result.branches[0].interval_cycles == cycles(up, 1, 1, 1) == 8 * 8 * 16
    odd = dataclasses.replace(up, kernel=(3, 3))  # padding 1: the middle tap makes the even columns
    starts = run(chain(odd), [[(1, 1, 1)]]).stages[0].starts
    assert np.diff(starts[:5]).tolist() == [24, 48, 24, 48]
    single = run(chain(dataclasses.replace(up, kernel=(1, 1))), [[(1, 1, 1)]])  # every other column is empty
    assert single.branches[0].interval_cycles == 16 * 16  # less than the output takes to leave


def test_pooling_and_linear_layers():
    # 8 cycles a column; 8 columns pooled to 4, each 4 cycles in which the two columns of its buffer are not free. A
    # linear layer over 4x4 behind: it starts when all have come, and has room for the next map.
    first = conv(1, 2, 8, 8, 1, pool=2, handed_on=(4, 4))
    last = Stage("l", 2, 10, 1, 1, 4, 4, (4, 4), macs=320, ops=0, weights=320)
    result = run(chain(first, last), [[(1, 2, 1), (2, 10, 1)]])
    _, pool, linear = result.stages
    assert pool.kind == "pool" and pool.starts[:3].tolist() == [24, 44, 64] and pool.capacity == 2
    assert linear.starts[0] == pool.ends[3] == 88
    assert linear.capacity == 8
    assert result.branches[0].interval_cycles == 8 * 8 + 4 * 4


def test_overlapping_and_global_pooling():
    # 3 columns, stride 2: the first needs three, the next two more; a running sum over all columns holds up nobody.
    overlapping = run(chain(conv(1, 2, 9, 9, 1, pool=3, handed_on=(4, 4))), [[(1, 2, 1)]])
    assert overlapping.stages[1].starts[:2].tolist() == [9 + 3 * 9, 9 + 3 * 9 + 4 + 2 * 9]
    whole = run(chain(conv(1, 2, 8, 8, 1, pool=8, handed_on=(1, 1))), [[(1, 2, 1)]])
    assert whole.branches[0].interval_cycles == 8 * 8
    assert whole.stages[0].blocked == 0


# --- a second simulator, one cycle at a time -----------------------------------------------------


def brute_force(stages, factors, rate, bits, frames, fair, depth):
    """Cycles in which each frame has left a chain of convolutions: every cycle is stepped, the bus bit by bit."""
    first, last = stages[0], stages[-1]
    line = [{"rows": first.in_height, "cols": first.in_width, "bits": [first.in_channels * first.in_height * bits]}]
    for s, (cpf, kpf, h) in zip(stages, factors, strict=True):
        ci = s.in_channels // s.groups
        made = [min(kpf, s.out_channels - i) for i in range(0, s.out_channels, kpf)]
        work = -(-ci // cpf) * s.kernel[0] * s.kernel[1] * -(-s.height // h)
        line.append({"rows": s.height, "cols": s.width, "stage": s, "work": work,
                     "delay": depth + math.ceil(math.log2(cpf)),
                     "bits": [ci * s.kernel[0] * s.kernel[1] * m * bits for m in made]})  # fmt: skip
    line.append({"rows": last.height, "cols": last.width, "bits": [last.out_channels * last.height * bits]})
    for u in line:
        u.update(
            left=0, tile=0, tiles=0, column=0, started=0, out=0, freed=0, loaded=0, on_bus=False, ends=[], due=deque()
        )
    bus = [[u, Fraction(b)] for u in line if "stage" in u for b in (u["bits"] * 2)[:2]]

    def kernel(u, column):
        """The reader's first and last input column of a position, over all frames."""
        frame, x = divmod(column, u["cols"])
        if "stage" not in u:
            return column, column
        s = u["stage"]
        pad = (max(0, (s.width - 1) * s.stride + s.kernel[1] - s.in_width) + 1) // 2
        low = x * s.stride - pad
        return frame * s.in_width + max(0, low), frame * s.in_width + min(s.in_width - 1, low + s.kernel[1] - 1)

    now = 0
    while len(line[-1]["ends"]) < frames * last.width:
        for i, u in enumerate(line):  # what ends in this cycle
            if u["left"] == 1 and not u["on_bus"]:
                u["left"] = 0
                u["tile"] += 1
                u["tiles"] += 1
                if "stage" in u:
                    bus.append([u, Fraction(u["bits"][(u["tiles"] + 1) % len(u["bits"])])])
                if u["tile"] == len(u["bits"]):
                    u["tile"] = 0
                    u["due"].append(now + u.get("delay", 0))
                    u["ends"].append(now)
                    if i:
                        done = (u["column"] + 1) % u["cols"] == 0
                        size = u["stage"].in_width if "stage" in u else u["cols"]
                        u["freed"] = (u["column"] // u["cols"] + 1) * size if done else kernel(u, u["column"] + 1)[0]
                    u["column"] += 1
            elif u["left"] > 1:
                u["left"] -= 1
        for u in line:  # what has come through the data path
            while u["due"] and u["due"][0] <= now:
                u["due"].popleft()
                u["out"] += 1
        for i, u in enumerate(line):  # what starts in this cycle
            if u["left"] or u["on_bus"]:
                continue
            if u["tile"] == 0:
                if i and line[i - 1]["out"] <= kernel(u, u["column"])[1]:
                    continue
                if i + 1 < len(line):
                    reader = line[i + 1]
                    s = reader.get("stage")
                    if u["column"] >= reader["freed"] + (s.kernel[1] + s.stride if s else 2):
                        continue
            if "stage" in u and u["loaded"] <= u["tiles"]:
                continue
            u["left"] = u.get("work", u["rows"])
            if "stage" not in u:
                u["on_bus"] = True
                bus.append([u, Fraction(u["bits"][0])])
        room = Fraction(rate)
        while bus and room:  # what the bus carries in this cycle
            served = bus if fair else bus[:1]
            part = min(room / len(served), *(entry[1] for entry in served))
            room -= part * len(served)
            for entry in served:
                entry[1] -= part
            for u, _ in [entry for entry in served if not entry[1]]:
                u["loaded"] += "stage" in u
                u["on_bus"] = False
            bus = [entry for entry in bus if entry[1]]
        now += 1
    return line[-1]["ends"][last.width - 1 :: last.width]


@pytest.mark.parametrize("arbitration", ["fair", "in order"])
@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_single_cycles(seed, arbitration):
    rng = random.Random(seed)
    channels, size, stages, factors = rng.choice((1, 3, 4)), rng.choice((6, 8, 12)), [], []
    for _ in range(rng.choice((1, 2, 3))):
        co, k, stride = rng.choice((2, 3, 6)), rng.choice((1, 3, 5)), rng.choice((1, 1, 2)) if size > 6 else 1
        size //= stride
        stages.append(conv(channels, co, size, size, k, stride=stride))
        factors.append((rng.randint(1, channels), rng.randint(1, co), rng.choice((1, 2, 3))))
        channels = co
    rate, depth = rng.choice((2, 7, 16, 64, 400)), rng.choice((0, 5))
    result = run(chain(*stages), [factors], bandwidth=float(rate), depth=depth, arbitration=arbitration, frames=2)
    expected = brute_force(stages, factors, rate, 8, 2, arbitration == "fair", depth)
    assert result.branches[0].finished.tolist() == expected


# --- conservation --------------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", [INF, 3e10])
def test_cycles_and_columns_and_bits_are_conserved(bandwidth):
    config = case(4)
    result = simulate(config, frames=3, bandwidth=bandwidth)
    stages = {s.name: s for p in config.space.pipelines for s in p.stages}
    for activity in result.stages:
        total = activity.busy + activity.starved + activity.blocked + activity.weights
        assert total == result.window_cycles, activity.name
        assert 0 < activity.peak <= activity.capacity
        assert (activity.starts[1:] >= activity.ends[: len(activity.starts) - 1]).all()  # one column at a time
        made = stages[activity.name].width * (stages[activity.name].upsample if activity.kind == "upsample" else 1)
        assert len(activity.ends) >= 3 * made - activity.capacity  # every column of every frame, once
    if bandwidth == INF:
        s = stages["texture.7"]
        slowest = {a.name: a for a in result.stages if a.kind == "conv"}[s.name]
        per_frame = s.weights * s.width * 8 + s.bias * 8  # again for each column; biases once
        assert slowest.bits == per_frame * result.window_cycles / result.branches[1].interval_cycles
        assert result.traffic == pytest.approx(evaluate(config).bandwidth, rel=0.01)
    else:
        assert result.traffic == pytest.approx(bandwidth, rel=0.02)
        assert any(a.weights > 0.1 * result.window_cycles for a in result.stages if a.branch == "texture")


def test_halves_of_the_weight_buffer_that_keep_their_tiles():
    config = case(4)
    again, kept = (simulate(config, frames=2, keep_weights=keep) for keep in (False, True))
    stage = [{a.name: a for a in r.stages if a.kind == "conv"}["texture.7"] for r in (again, kept)]
    biases = 16 * 512 * 512 * 8
    assert stage[0].bits == biases + 512 * 6400 * 8 and stage[1].bits == biases  # 16 kernels at once: one tile
    assert kept.fps == again.fps and kept.traffic < again.traffic
    names = {a.name for a, b in zip(again.stages, kept.stages, strict=True) if a.bits > b.bits}
    assert names == {"geometry.5", "geometry.6", "texture.6", "texture.7", "warp.1"}


# --- against the paper's model -------------------------------------------------------------------


def test_eq_5_holds_where_branches_keep_pace():
    result = simulate(case(4), frames=3)
    np.testing.assert_allclose(result.fps, evaluate(case(4)).fps, rtol=1e-3)
    assert [f"{fps:.1f}" for fps in result.fps] == ["122.1"] * 3  # Table IV
    for branch in result.branches:  # the fine-grained pipeline
        assert branch.first_column_cycles < branch.initial_latency_cycles < branch.layer_by_layer_cycles / 4 * 1.05


@pytest.mark.parametrize("number, fps", [(1, (61.0, 30.5, 30.5)), (3, (61.0, 15.3, 15.3))])
def test_branches_that_share_stages_run_at_one_pace(number, fps):
    # Eq. 5 looks at a branch's own stages: 61.0 for case 1's third branch, 30.5 for case 3's second (Table IV).
    result = simulate(case(number), frames=3)
    assert [f"{x:.1f}" for x in result.fps] == [f"{x:.1f}" for x in fps]
    own = evaluate(case(number)).fps
    assert min(own[1:]) == pytest.approx(result.fps[1], rel=1e-3)
    idle = {(a.name, a.kind): a for a in result.stages}
    if number == 1:
        assert idle["warp.1", "conv"].starved == pytest.approx(result.window_cycles / 2, rel=0.02)
    else:
        assert idle["texture.5", "conv"].blocked == pytest.approx(result.window_cycles / 2, rel=0.02)


def test_starving_bandwidth_stalls_the_design():
    config = case(4)
    rates = [simulate(config, frames=3, bandwidth=b * 1e9).branches[1].fps for b in (10, 20, 39, 60, 102.4)]
    assert rates == sorted(rates) and rates[0] < 0.4 * rates[-1]
    assert rates[-1] == pytest.approx(122.07, rel=1e-3)
    assert rates[2] == pytest.approx(rates[-1], rel=0.01)  # its mean traffic is enough where requests share it,
    in_order = simulate(config, frames=3, bandwidth=39e9, arbitration="in order")
    assert in_order.fps[1] < 0.9 * rates[-1]  # and too little where small tiles queue behind large ones
    waiting = {a.name: a.weights for a in in_order.stages if a.kind == "conv" and a.branch == "texture"}
    assert max(waiting, key=waiting.get) == "texture.8"  # 16 weights a tile, behind tiles of a hundred thousand bits


def test_copies_share_weights_and_may_take_turns():
    config = case(4)
    one = simulate(dataclasses.replace(config, batch=(1, 1, 1)), frames=3)
    two = simulate(config, frames=3)
    assert two.fps[1] == pytest.approx(2 * one.fps[1])
    assert [a.bits for a in two.stages] == pytest.approx([a.bits for a in one.stages])
    turns = simulate(dataclasses.replace(config, batch=(1, 2, 1)), frames=3)  # one warp unit serves both eyes
    assert turns.branches[2].images == 2
    assert turns.fps[2] == pytest.approx(one.fps[2], rel=1e-3) and turns.fps[1] == pytest.approx(turns.fps[2], rel=0.01)


# --- joins ---------------------------------------------------------------------------------------


def test_a_join_waits_in_memory():
    a, b = conv(1, 1, 8, 8, 3, name="a"), conv(1, 1, 8, 8, 3, name="b", sources=((0, 0),))
    c = conv(2, 1, 8, 8, 1, name="c", sources=((0, 1), (0, 0)))
    space = DesignSpace((Pipeline("only", (a, b, c)),), 8, 1.0)
    result = run(space, [[(1, 1, 1)] * 3], frames=4)
    assert result.branches[0].interval_cycles == 8 * 72
    maps = 4 * 64 * 8  # in, out, and the waiting map written and read
    weights = 8 * 8 * (9 + 9 + 2)
    assert result.bits / result.window_cycles * 576 == pytest.approx(maps + weights, rel=0.02)
    assert result.stages[2].peak > 0


@pytest.mark.parametrize("order", [((0, 3), (0, 4)), ((0, 4), (0, 3))])
def test_a_join_takes_the_longer_way_directly(order):
    a = conv(1, 1, 24, 24, 1, name="a")
    deep = [conv(1, 1, 24, 24, 11, name=f"d{i}", sources=((0, i),)) for i in range(3)]
    short = conv(1, 1, 24, 24, 1, name="s", sources=((0, 0),))
    join = conv(2, 1, 24, 24, 1, name="j", sources=order)
    result = run(DesignSpace((Pipeline("p", (a, *deep, short, join)),), 8, 1.0), [[(1, 1, 24)] * 6])
    assert result.branches[0].interval_cycles == pytest.approx(24 * 121, rel=0.01)  # the pace of a deep one
    assert {s.name: s.capacity for s in result.stages}["j"] == 2


def test_buffers_that_cannot_work_are_told(monkeypatch):
    module = sys.modules["i2ilib.fcad.simulate"]
    monkeypatch.setattr(module, "_capacity", lambda stage: stage.reach[1] - 1)
    with pytest.raises(I2IError, match="nothing can start after cycle"):
        run(chain(conv(1, 1, 8, 6, 5)), [[(1, 1, 1)]])


def test_outputs_in_the_middle_leave_through_memory():
    space = chain(conv(1, 2, 8, 8, 3), conv(2, 1, 8, 8, 1))
    tapped = dataclasses.replace(space, taps=(("middle", 0, 0),))
    factors = [[(1, 1, 1)] * 2]
    plain, more = run(space, factors), run(tapped, factors)
    assert more.fps == plain.fps and len(more.branches) == 1
    assert more.bits - plain.bits == 2 * 2 * 64 * 8  # two channels, in two frames


# --- surface -------------------------------------------------------------------------------------


def test_an_output_that_joins_two_stages_takes_the_slower():
    slow, fast = conv(2, 4, 8, 8, 3, name="slow"), conv(2, 1, 8, 8, 1, name="fast")
    space = DesignSpace((Pipeline("both", (slow, fast)),), 8, 1.0)
    result = run(space, [[(1, 1, 1), (1, 1, 1)]], frames=4)
    assert result.branches[0].interval_cycles == cycles(slow, 1, 1, 1) > cycles(fast, 1, 1, 1)
    alone = run(chain(slow), [[(1, 1, 1)]], frames=4).branches[0]
    assert result.branches[0].finished.tolist() == alone.finished.tolist()
    assert result.branches[0].layer_by_layer_cycles == cycles(slow, 1, 1, 1) + cycles(fast, 1, 1, 1)


def test_tables():
    result = simulate(case(4), frames=2)
    table = result.table()
    shares = table[["busy (%)", "starved (%)", "blocked (%)", "weights (%)"]].sum(axis=1)
    np.testing.assert_allclose(shares, 100)
    assert len(table) == 15 + 12 and table.loc[("texture", "texture.7", "conv"), "busy (%)"] > 99
    assert list(result.branch_table().index) == ["geometry", "texture", "warp"]
    assert result.slowest == min(result.fps)
    assert function is simulate


def test_shares_no_formula_with_the_cost_model_and_needs_no_torch():
    import i2ilib.fcad.simulate  # noqa: F401 - the module, while the package hands out the function

    path = Path(sys.modules["i2ilib.fcad.simulate"].__file__)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert names <= {"__future__", "collections.abc", "typing", "errors", "arguments", "construct"}
    code = "import sys, i2ilib.fcad.simulate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=path.parents[2])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": 1}, "frames"),
        ({"frames": 2.5}, "frames"),
        ({"bandwidth": 0}, "bandwidth"),
        ({"bandwidth": float("nan")}, "bandwidth"),
        ({"depth": -1}, "depth"),
        ({"arbitration": "random"}, "arbitration"),
        ({"frames": None}, "frames: expected a whole number from 2, got None"),
        ({"bandwidth": "12.8 GB/s"}, "bandwidth: expected bit/s above 0, got '12.8 GB/s'"),
        ({"config": None}, "config: expected a Config, got None"),
        ({"config": decoder_space()}, "config: expected a Config, got DesignSpace"),
    ],
)
def test_arguments_out_of_range(change, message):
    with pytest.raises(I2IError, match=message):
        simulate(**{"config": case(4), **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": (1, 2)}, "batch: expected one entry for each of 3"),
        ({"batch": (1, 0, 2)}, "batch of texture"),
        ({"factors": ()}, "factors: expected one entry for each of 3"),
        ({"factors": (((1, 1, 1),),) * 3}, "factors of geometry: expected .* for each of 6"),
    ],
)
def test_designs_that_do_not_belong_to_their_space(change, message):
    with pytest.raises(I2IError, match=message):
        simulate(dataclasses.replace(case(4), **change))


@pytest.mark.parametrize("triple", [(0, 1, 1), (1, 1, 9), (1, 1), (3, 1, 1), (1.5, 1, 1), ("a", 1, 1)])
def test_factors_that_do_not_fit_a_stage(triple):
    with pytest.raises(I2IError, match="factors of stage c0"):
        run(chain(conv(2, 2, 8, 8, 3)), [[triple]])


def test_integers_of_numpy_serve():
    space = chain(conv(2, 2, 8, 8, 3))
    assert run(space, np.array([[(1, 2, 1)]]), frames=np.int64(3)).fps == run(space, [[(1, 2, 1)]]).fps


def test_feeding_branches_of_different_batches():
    left, right = (Pipeline(n, (conv(1, 1, 8, 8, 1, name=n),)) for n in "lr")
    join = Pipeline("j", (conv(2, 1, 8, 8, 1, name="j", sources=((1, 0), (0, 0))),))
    space = DesignSpace((left, right, join), 8, 1.0)
    factors = [[(1, 1, 1)]] * 3
    assert run(space, factors, batch=(2, 2, 2)).branches[2].images == 2
    with pytest.raises(I2IError, match="batch of j: expected the branches that feed it"):
        run(space, factors, batch=(1, 2, 2))
