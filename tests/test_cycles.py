"""The cycle model against PyTorch's own counts, hand-made layers, published bounds, and a simulation of the queue."""

import dataclasses
import heapq
import math

import matplotlib
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from i2ilib import models
from i2ilib.deploy import cycles, zoo
from i2ilib.deploy.cycles import CONSTANTS, U50, U50LV, Constants, Cost, Estimate, Layer, Target, estimate
from i2ilib.deploy.layers import layers
from i2ilib.deploy.published import table
from i2ilib.errors import I2IError
from i2ilib.plots import u50 as figures

matplotlib.use("Agg")
PAPER = table("table_2").loc["U-Net FPGA"]


def conv(ci, co, size, *, k=3, kind="conv", sources=(-1,), **fields):
    """A layer that keeps its size."""
    macs = ci * co * k * k * size * size
    shapes = {"inputs": ((ci, size, size),), "output": (co, size, size)} | fields
    return Layer("layer", kind, macs, ci * co * k * k, sources=sources, kernel=(k, k), **shapes)


@pytest.fixture(scope="module")
def pix2pix():
    return estimate(zoo.traced(zoo.PIX2PIX))


# --- layers of a module --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.Generator(width=8, levels=4, out_channels=1), (2, 3, 32, 48)),
        (models.UNet(filters=(8, 8, 16, 16)), (1, 3, 16, 24)),
        (models.SRUNet(), (1, 3, 16, 24)),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 5)), (1, 8, 6, 6)),
    ],
)
def test_multiplications_are_pytorchs(model, shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape[1:]))
    assert 2 * sum(layer.macs for layer in layers(model, torch.zeros(shape))) == counter.get_total_flops()


def test_kinds_sources_and_names_follow_the_data():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.tail = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1))

        def forward(self, x):
            y = torch.relu(self.a(x))
            z = self.b(y).clamp(0, 1) + y
            return self.tail(torch.cat([z, y, x], 1))

    found = layers(Net(), torch.zeros(1, 3, 8, 8))
    assert [layer.kind for layer in found] == ["conv", "conv", "add", "concat", "pool", "resize", "pool"]
    assert [layer.sources for layer in found] == [(-1,), (0,), (1, 0), (2, 0, -1), (3,), (4,), (5,)]
    assert [found[i].name for i in (0, 1, 4)] == ["a", "b", "tail.0"]
    assert found[3].inputs == ((4, 8, 8), (4, 8, 8), (3, 8, 8)) and found[3].output == (11, 8, 8)
    assert (found[4].kernel, found[4].stride, found[6].kernel) == ((2, 2), (2, 2), (8, 8))
    assert found[3].bytes_in == found[3].bytes_out == 11 * 64


def test_tracing_leaves_the_model_as_it_was():
    model = models.Generator(width=8, levels=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers(model, torch.zeros(4, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_forward_leaves_no_hooks():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3))
    with pytest.raises(RuntimeError):
        layers(model, torch.zeros(1, 3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [(nn.Conv2d(3, 8, 3), torch.zeros(3, 8, 8), "N, C, H, W"), (nn.ReLU(), torch.zeros(1, 3, 8, 8), "convolutions")],
)
def test_what_cannot_be_traced_is_refused(model, example, words):
    with pytest.raises(I2IError, match=words):
        layers(model, example)


# --- one layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (conv(64, 64, 16), 9 * 4 * 4 * 2 * 16),  # full arrays: exactly MACs / 2048
        (conv(17, 64, 16), 9 * 2 * 4 * 2 * 16),  # 17 channels cost 32
        (conv(64, 64, 9), 9 * 4 * 4 * 2 * 9),  # 9 rows cost 16
        (conv(3, 64, 16, k=7), 7 * 2 * 4 * 2 * 16),  # 3 x 7 channels and columns: 2 steps a kernel row
        (conv(64, 64, 16, k=2, kind="deconv", output=(64, 32, 32)), 4 * 4 * 4 * 2 * 16),  # on the small map
        (conv(64, 64, 16, groups=4), 4 * 9 * 1 * 1 * 2 * 16),
        (Layer("fc", "linear", 4096000, 4096000, ((4096,),), (1000,), (-1,)), 256 * 63),
        (conv(64, 64, 16, kind="pool"), 0),
    ],
)
def test_compute_cycles(layer, expected):
    assert cycles.compute_cycles(layer) == expected


def test_no_layer_beats_the_multipliers(pix2pix):
    for name in zoo.ZOO:
        found = estimate(zoo.traced(name))
        packed = [cost for cost in found.layers if cost.layer.macs]
        assert all(2048 * cost.compute >= cost.layer.macs for cost in packed), name
        assert 0 < found.utilisation < 1
    assert pix2pix.target.peak_gmac == pytest.approx(3686.4)


def test_zeros_between_the_pixels_would_make_the_published_pix2pix_impossible(pix2pix):
    inserted = [
        dataclasses.replace(cost.layer, kind="conv") if cost.layer.kind == "deconv" else cost.layer
        for cost in pix2pix.layers
    ]
    batch = sum(map(cycles.compute_cycles, inserted))  # a bound: nothing but multiplying
    assert 6 * U50.mhz * 1e6 / batch < PAPER.fps < 6 * U50.mhz * 1e6 / sum(cost.compute for cost in pix2pix.layers)


def test_small_maps_stay_and_large_ones_go_out_and_come_back():
    unit = Constants(1.0, 1.0, 1.0)
    for size, moved in ((64, 0), (256, 256 * 256 * 4 * 16)):  # 64 channels are 4 words a pixel; the banks hold 65,536
        first, second = conv(3, 64, size), conv(64, 64, size, sources=(0,))
        a, b = cycles.costs([first, second], constants=unit)
        assert (a.load, a.save) == (size * size * 16, moved)  # the image always comes in
        assert (b.load, b.save) == (moved, size * size * 4 * 16)  # the result always goes out
    whole = dataclasses.replace(U50, bank_words=256 * 256 * 4)
    assert cycles.costs([first, second], whole, constants=unit)[0].save == 0


def test_a_part_of_a_large_concat_goes_out_with_it():
    first = conv(3, 64, 128)
    join = Layer("join", "concat", 0, 0, ((64, 128, 128),) * 2, (128, 128, 128), (0, 0))
    last = conv(128, 16, 128, sources=(1,))
    a, b, c = cycles.costs([first, join, last])
    assert a.save > 0 and b.cycles == 0 and b.bound == "none" and c.load == pytest.approx(2 * a.save)
    assert cycles.costs([first, conv(64, 16, 128, sources=(0,))])[0].save == 0  # alone it would have stayed


def test_a_pooling_takes_what_it_alone_reads_as_it_comes():
    first = conv(3, 64, 256)
    pooled = Layer("pool", "pool", 0, 0, (first.output,), (64, 128, 128), (0,), (2, 2), (2, 2))
    alone = cycles.costs([first, pooled])
    assert alone[0].save == 0 and alone[1].load == 0 and alone[1].save > 0
    shared = cycles.costs([first, pooled, conv(64, 16, 256, sources=(0,))])
    assert shared[0].save > 0 and shared[1].load > 0


def test_a_layer_takes_its_longest_part_and_a_start():
    cost = Cost(conv(3, 3, 8), compute=5, load=3, save=4, weights=6, start=2)
    assert cost.cycles == 9 and cost.bound == "features"
    assert dataclasses.replace(cost, weights=8).bound == "weights"
    assert dataclasses.replace(cost, compute=8).bound == "compute"
    assert dataclasses.replace(cost, start=8).bound == "start"


# --- a network -----------------------------------------------------------------------------------


def test_pix2pix_is_close_to_the_paper(pix2pix):
    assert pix2pix.fps == pytest.approx(PAPER.fps, rel=0.15)
    assert pix2pix.macs == pytest.approx(6.05e9, rel=1e-3)
    deepest = [cost.bound for cost in pix2pix.layers if cost.layer.name in ("encoder.7.conv", "decoder.0.conv")]
    assert deepest == ["weights", "weights"]  # 4 million weights for one pixel


def test_faster_cards_are_faster(pix2pix):
    network = [cost.layer for cost in pix2pix.layers]
    faster = estimate(network, dataclasses.replace(U50, mhz=600.0))
    assert faster.fps == pytest.approx(2 * pix2pix.fps)
    wider = estimate(network, dataclasses.replace(U50, engines=(3, 3, 3)))
    assert wider.ms == pix2pix.ms and wider.fps == pytest.approx(1.5 * pix2pix.fps)
    assert estimate(network, U50LV).fps == pytest.approx(pix2pix.fps * 9 * 275 / (6 * 300))
    assert estimate(network, dataclasses.replace(U50, pixels=16)).fps > pix2pix.fps


def test_a_module_and_its_layers_give_the_same():
    model, example = models.Generator(width=8, levels=4), torch.zeros(1, 3, 64, 64)
    a, b = estimate(model, example=example), estimate(layers(model, example))
    assert a == b and a.cycles == sum(a.frame().cycles)
    assert list(a.frame().layer[:2]) == ["encoder.0.conv", "encoder.1.conv"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate(models.Generator(width=8)), "example"),
        (lambda: estimate([]), "layers"),
        (lambda: Target("none", engines=()), "engines"),
        (lambda: Target("still", mhz=0), "positive"),
        (lambda: Target("negative", bank_words=-1), "positive"),
        (lambda: Constants(40.0, 0.0, 1.0), "positive"),
        (lambda: estimate([conv(3, 8, 8)]).pipeline(0), "jobs"),
        (lambda: estimate([conv(3, 8, 8)]).pipeline(1.5), "jobs"),
        (lambda: cycles.fit([([conv(3, 8, 8)], 100.0)] * 2), "3 networks"),
        (lambda: cycles.fit([([conv(3, 8, 8)], 0.0)] * 3), "positive"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(I2IError, match=words):
        call()


def test_a_fit_finds_constants_that_made_the_points():
    truth = Constants(30.0, 6.0, 4000.0)
    networks = [list(zoo.traced(name)) for name in zoo.halves()[0]]
    found = cycles.fit([(network, estimate(network, constants=truth).fps) for network in networks])
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(truth), rel=1e-3)


# --- jobs in flight ------------------------------------------------------------------------------


def simulate(jobs: int, cores: int, service: float, done: int = 600) -> tuple[float, float]:
    """Mean latency and jobs a unit of time, when each job that is done is submitted again at once."""
    free = [0.0] * cores
    events = [(0.0, i) for i in range(jobs)]  # submissions
    latencies, ends = [], []
    while len(ends) < done:
        submitted, job = heapq.heappop(events)
        end = max(submitted, heapq.heappop(free)) + service
        heapq.heappush(free, end)
        latencies.append(end - submitted)
        ends.append(end)
        heapq.heappush(events, (end, job))
    warm = done // 3  # past the start
    return sum(latencies[warm:]) / len(latencies[warm:]), (done - warm) / (max(ends) - ends[warm - 1])


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 7])
def test_the_formula_is_what_a_queue_does(jobs, cores):
    target = dataclasses.replace(U50, engines=(3,) * cores)
    found = Estimate(target, CONSTANTS, (Cost(conv(3, 8, 8), 3e6, 0, 0, 0, 0),))  # 10 ms
    latency, rate = simulate(jobs, cores, found.ms)
    step = found.pipeline(jobs)
    assert step.latency_ms == pytest.approx(latency, rel=0.02)
    assert step.fps == pytest.approx(3000 * rate, rel=0.02) and step.ii_ms == pytest.approx(1000 / step.fps)
    assert step.images == pytest.approx(3 * jobs)


def test_three_jobs_give_the_paper_its_latency_from_its_throughput(pix2pix):
    in_flight = PAPER.fps * PAPER.latency_ms / 1e3
    assert round(in_flight / 3) == 3 and pytest.approx(1e3 / PAPER.fps, abs=0.05) == PAPER.ii_ms
    three = pix2pix.pipeline(3)
    assert three.latency_ms == pytest.approx(PAPER.latency_ms, rel=0.15)
    assert three.ii_ms == pytest.approx(PAPER.ii_ms, rel=0.15)
    slowed = dataclasses.replace(U50, mhz=U50.mhz * PAPER.fps / pix2pix.fps)  # as if the throughput were exact
    exact = dataclasses.replace(pix2pix, target=slowed).pipeline(3)
    assert exact.latency_ms == pytest.approx(PAPER.latency_ms, rel=0.02)


# --- figures -------------------------------------------------------------------------------------


def test_figures_draw_what_they_are_given(pix2pix):
    judged = zoo.judge()
    drawn = figures.throughput(judged, cards=["u50"]).axes[0]
    assert sum(len(points.get_offsets()) for points in drawn.collections[1:]) == 27
    assert {text.get_text().split()[0] for text in drawn.texts} == {"fpn", "ENet", "unet", "pix2pix"}
    bars = figures.layer_cycles(pix2pix).axes[0].patches
    total = sum(bar.get_height() for bar in bars)
    assert total == pytest.approx(pix2pix.cycles / 1e3)
    assert "x (the costliest 5" in figures.layer_cycles(pix2pix, title="x", limit=5).axes[0].get_title()
    paper = (PAPER.latency_ms, PAPER.ii_ms, PAPER.fps)
    axes = figures.jobs_in_flight([pix2pix.pipeline(n) for n in (1, 2, 3)], paper=paper).axes
    assert [ax.lines[1].get_ydata()[0] for ax in axes] == list(paper)
    assert math.isclose(axes[2].lines[0].get_ydata()[2], pix2pix.fps)
    assert len(figures.jobs_in_flight([pix2pix.pipeline(1)]).axes[0].lines) == 1
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("draw", [lambda: figures.throughput(zoo.judge().iloc[:0]), lambda: figures.jobs_in_flight([])])
def test_figures_refuse_nothing(draw):
    with pytest.raises(I2IError, match="none"):
        draw()
