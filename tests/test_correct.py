"""Equalisation and bias correction: AMD's own results, unchanged functions, what breaks a chain, the errors."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import shared
from test_quantise import SLOPE, TinyED
from torch import fx, nn

from i2ilib import I2IError
from i2ilib.models import Generator, SRUNet, reparametrise
from i2ilib.quant import fake_quantise, fix_position
from i2ilib.quant import graph as g
from i2ilib.quant.correct import THROUGH, correct_biases, equalise, update_bias
from i2ilib.quant.fixed_point import to_integers

A = torch.ops.aten
SITES = {0: "input", 2: "a1", 4: "a2", 6: "r3", 9: "cat", 12: "cat_1", 13: "d1"}  # golden node: our tensor
CONVOLUTIONS = {1: "e1", 3: "e2", 5: "e3", 7: "d3", 10: "d2", 13: "d1"}


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden/nndct/tiny_ed.npz"))


@pytest.fixture(scope="module")
def tiny(golden):
    net = TinyED().eval()
    keys = [key for key in golden.files if key.startswith("weights/")]
    net.load_state_dict({key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in keys})
    return net


def parameters(graph):
    """By name: every parameter of the convolutions."""
    arguments = [arg for node in graph.graph.nodes if node.target in g.CONVOLUTIONS for arg in node.args[1:3]]
    return {arg.target: g.parameter(graph, arg).detach().clone() for arg in arguments if arg is not None}


def fill(graph, values):
    """Set every parameter of the convolutions by name."""
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target in values:
            g.set_parameter(graph, node, torch.as_tensor(values[node.target]))


def folded(golden, net, variant):
    """TinyED's graph with the parameters that AMD's quantiser had after folding, to the bit."""
    graph = g.capture(net, torch.from_numpy(golden["test"]))
    fill(graph, {name: golden[f"{variant}/param_folded/{name}"] for name in parameters(graph)})
    return graph


class Calibration(fx.Interpreter):
    """Positions by the most frequent so far, parameters and activations rounded; biases corrected where wanted."""

    def __init__(self, graph, *, correct=False):
        super().__init__(graph)
        self.correct, self.biases = correct, {}
        self.positions = {n: fix_position(v, "parameter") for n, v in parameters(graph).items()}
        self.kinds = {s.node: (s.name, s.kind) for s in g.sites(graph) if s.kind != "parameter"}
        self.votes = {name: Counter() for name, _ in self.kinds.values()}

    def integers(self):
        """The integer of every parameter, by name."""
        found = parameters(self.module).items()
        return {name: to_integers(value, self.positions[name], kind="parameter") for name, value in found}

    def run_node(self, node):
        inputs, _ = self.fetch_args_kwargs_from_env(node)
        value = super().run_node(node)
        if node.op == "get_attr":
            rounded = fake_quantise(value, self.positions[node.target], kind="parameter")
            return self.biases.get(node.target, rounded)
        if node in self.kinds:
            name, kind = self.kinds[node]
            self.votes[name][fix_position(value, kind)] += 1
            fp = min(self.votes[name], key=lambda fp: (-self.votes[name][fp], fp))
            self.positions[name] = fp
            value = fake_quantise(value, fp, kind=kind)
        if self.correct and node.target in g.CONVOLUTIONS:
            update_bias(self.module, self.biases, node, inputs, value)
        return value

    def calibrate(self, *batches):
        with torch.no_grad():
            for batch in batches:
                self.run(batch)
        return self


# --- AMD's quantiser ------------------------------------------------------------------------------


def test_equalised_parameters_are_the_quantisers_to_the_bit(golden, tiny):
    graph = folded(golden, tiny, "plain")
    (pair,) = equalise(graph)
    assert (pair.first, pair.second) == ("e3", "d3")
    alone = torch.tensor([0, 0, 1, 0, 1, 0, 0, 1]).bool()
    assert torch.equal(pair.scales == 1, alone) and torch.equal(pair.ranges.sum(0) < 0.5, alone)
    for name, value in parameters(graph).items():
        np.testing.assert_array_equal(value, golden[f"default/param_folded/{name}"], err_msg=name)


def test_equalised_parameters_are_the_quantisers_from_our_own_folding(golden, tiny):
    graph = g.capture(tiny, torch.from_numpy(golden["test"]))
    equalise(graph)
    for name, value in parameters(graph).items():
        want = golden[f"default/param_folded/{name}"]
        np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module", params=["AMD's folding", "ours"])
def corrected(request, golden, tiny):
    """A calibration in which the biases are corrected, and the corrections."""
    if request.param == "ours":
        graph = g.capture(tiny, torch.from_numpy(golden["test"]))
        equalise(graph)
    else:
        graph = folded(golden, tiny, "default")
    calibration = Calibration(graph, correct=True).calibrate(*torch.from_numpy(golden["calib"]).split(2))
    return calibration, correct_biases(graph, calibration.biases)


def test_bias_corrections_are_the_quantisers(golden, corrected):
    for index, name in CONVOLUTIONS.items():
        mine, want = corrected[1][f"{name}.bias"], golden[f"default/bias_corr/{index}"]
        np.testing.assert_allclose(mine, want, atol=3e-7, err_msg=name)


def test_positions_and_integers_of_the_default_settings_are_the_quantisers(golden, corrected):
    calibration, _ = corrected
    info = json.loads((shared("golden/nndct") / "tiny_ed_default_quant_info.json").read_text())
    positions = {name.split("::")[1]: position[0][1] for name, position in info["param"].items()}
    nodes = json.loads((shared("golden/nndct") / "tiny_ed_graph.json").read_text())["default"]
    positions |= {SITES[node["index"]]: node["fixpos"] for node in nodes if node["fixpos"] is not None}
    assert calibration.positions == positions
    for name, integers in calibration.integers().items():
        np.testing.assert_array_equal(integers, golden[f"default/param_int8/{name}"], err_msg=name)


def test_correction_moved_an_integer_that_rounding_alone_leaves(golden):
    """Else the test above would say nothing about the corrections."""
    plain = to_integers(torch.from_numpy(golden["default/param_folded/e3.bias"]), 9, kind="parameter")
    assert (plain.numpy() != golden["default/param_int8/e3.bias"]).sum() == 1


# --- the network function -------------------------------------------------------------------------


def uneven(graph, decades=1.5):
    """Every channel of every convolution gets a size of its own, all large enough to be equalised."""
    generator = torch.Generator().manual_seed(0)
    values = parameters(graph)
    for name in [name for name in values if name.endswith("weight")]:
        noise = torch.rand(values[name].shape[:2], generator=generator)[..., None, None]
        values[name] = values[name] / values[name].abs().amax((2, 3), keepdim=True) * 10 ** (decades * noise)
    fill(graph, values)


def assert_function_unchanged(net, x, pairs):
    graph = g.capture(net, x)
    for node in list(graph.graph.nodes):  # tanh would hide a difference
        if node.target in g.HOST:
            node.replace_all_uses_with(node.args[0])
    graph.recompile()
    uneven(graph)
    before, was = graph(x).detach(), parameters(graph)
    found = equalise(graph)
    assert [(pair.first, pair.second) for pair in found] == pairs
    assert all((pair.scales != 1).all() for pair in found)
    assert any((now != was[name]).any() for name, now in parameters(graph).items()) == bool(pairs)
    np.testing.assert_allclose(graph(x).detach(), before, atol=1e-5 * float(before.abs().max()), rtol=0)
    return graph


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def test_tiny_encoder_decoder_is_unchanged():
    assert_function_unchanged(seeded(TinyED), torch.rand(2, 3, 32, 32) * 2 - 1, [("e3", "d3")])


@pytest.mark.parametrize("order", ["dpu", "pix2pix"])
def test_generator_is_unchanged_and_only_its_innermost_pair_is_reached(order):
    net = seeded(lambda: Generator(width=4, levels=4, out_channels=1, order=order, slope=SLOPE))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert_function_unchanged(net, x, [("encoder.3.conv", "decoder.0.conv")])


def test_srunet_is_unchanged_and_its_stages_are_chains():
    """Stages of n blocks hold n - 1 pairs; skips, concats and resizing break the chain between stages."""
    net = reparametrise(seeded(lambda: SRUNet(n_filters=8, residual=False)))
    stages = ["dconv_down1", "dconv_down2", "dconv_down3", "dconv_down4", "dconv_up3", "dconv_up2", "dconv_up1"]
    graph = g.capture(net, torch.rand(2, 3, 16, 16))
    names = [node.args[1].target.removesuffix(".weight") for node in graph.graph.nodes if node.target in g.CONVOLUTIONS]
    want = []
    for stage in stages:
        chain = [name for name in names if name.startswith(stage)]
        chain += ["conv_last"] if stage == "dconv_up1" else []
        want += list(pairwise(chain))
    assert_function_unchanged(net, torch.rand(2, 3, 16, 16), want)


class Grouped(nn.Sequential):
    """Grouped, depthwise and transposed convolutions, over every operator of THROUGH; one has no bias."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.ReLU()),
            *(nn.ConvTranspose2d(12, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 2, 1, groups=2)),
        )


def test_groups_transposition_and_pooling_are_unchanged_and_ranges_meet():
    names = ["0", "3", "6", "8", "10"]
    graph = assert_function_unchanged(seeded(Grouped), torch.randn(2, 4, 16, 16), list(pairwise(names)))
    written = graph.get_parameter("8.weight").abs().amax((0, 2, 3))
    read = graph.get_parameter("10.weight").abs().amax((2, 3)).flatten()  # two groups of one output and three inputs
    torch.testing.assert_close(written, read)


# --- what belongs to a chain ----------------------------------------------------------------------


def chain(*between, ci=4):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *between, nn.Conv2d(ci, 2, 3, padding=1)).eval()


def pairs_of(net, **options):
    graph = g.capture(net, torch.rand(2, 3, 8, 8))
    uneven(graph)
    return equalise(graph, **options)


@pytest.mark.parametrize(
    ("between", "ci", "pairs"),
    [
        ([nn.ReLU()], 4, 1),
        ([nn.ReLU(), nn.MaxPool2d(2)], 4, 1),
        ([nn.AvgPool2d(2), nn.ReLU()], 4, 1),
        ([nn.LeakyReLU(SLOPE)], 4, 0),
        ([nn.PixelShuffle(2)], 1, 0),
        ([nn.ReLU(), nn.Upsample(scale_factor=2)], 4, 0),
        ([nn.Tanh()], 4, 0),
    ],
)
def test_what_lies_between(between, ci, pairs):
    assert len(pairs_of(chain(*between, ci=ci))) == pairs


def test_leaky_relu_is_crossed_on_request_without_changing_the_function():
    net, x = seeded(lambda: chain(nn.LeakyReLU(SLOPE))), torch.rand(2, 3, 8, 8)
    graph = g.capture(net, x)
    uneven(graph)
    before = graph(x).detach()
    (pair,) = equalise(graph, through=(*THROUGH, A.leaky_relu.default))
    assert (pair.scales != 1).all()
    np.testing.assert_allclose(graph(x).detach(), before, atol=1e-5 * float(before.abs().max()))


class Branches(nn.Module):
    """Two convolutions and a ReLU, with a second reader of the convolution or of the ReLU, or a concat between."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(6 if kind == "concat" else 3, 3, 1)

    def forward(self, x):
        if self.kind == "concat":
            return self.two(torch.cat([torch.relu(self.one(x)), x], 1))
        if self.kind == "called twice":
            return self.two(torch.relu(self.one(torch.relu(self.one(x)))))
        y = self.one(x)
        z = torch.relu(y)
        return self.two(z) + {"one reader": x, "two of the convolution": y, "two of the ReLU": z}[self.kind]


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [("one reader", 1), ("two of the convolution", 0), ("two of the ReLU", 0), ("concat", 0), ("called twice", 0)],
)
def test_every_tensor_on_the_way_has_one_reader(kind, pairs):
    assert len(pairs_of(Branches(kind))) == pairs


def test_small_and_empty_channels_are_left_alone():
    net = chain(nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[2].weight.fill_(0.25)
        net[0].weight[1], net[0].weight[2] = 0.2, 0.0  # 0.2 + 0.25 < 0.5; no weights
        net[2].weight[:, 2], net[2].weight[:, 3] = 4.0, 0.0
    (pair,) = equalise(graph := g.capture(net, torch.rand(2, 3, 8, 8)))
    assert pair.scales.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert pair.ranges.tolist() == [[1.0, pytest.approx(0.2), 0.0, 1.0], [0.25, 0.25, 4.0, 0.0]]
    now = parameters(graph)
    assert now["0.weight"][0].unique().tolist() == now["2.weight"][:, 0].unique().tolist() == [0.5]
    torch.testing.assert_close(now["0.bias"], net[0].bias.detach() / pair.scales)


# --- what it is good for --------------------------------------------------------------------------


def test_wild_channel_ranges_lose_less_to_int8_after_equalisation():
    net, x = seeded(lambda: chain(nn.ReLU())), torch.rand(4, 3, 16, 16)
    with torch.no_grad():  # the same function as before, but the first weights span three decades
        factor = torch.tensor([10.0, 1.0, 0.1, 0.01])
        net[0].weight *= factor[:, None, None, None]
        net[0].bias *= factor
        net[2].weight /= factor[:, None, None]
    graph = g.capture(net, x)
    want = graph(x).detach()

    def error():
        return float((Calibration(graph).calibrate(x).run(x) - want).detach().square().mean())

    before = error()
    equalise(graph)
    assert error() < 0.1 * before


def test_corrected_bias_takes_the_mean_error_away():
    net, x = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), torch.rand(4, 3, 16, 16)
    graph = g.capture(net, x)
    calibration = Calibration(graph, correct=True)
    on_grid = fake_quantise(x, fix_position(x, "input"), kind="input")
    exact = parameters(graph)
    weight, bias = (fake_quantise(v, calibration.positions[n], kind="parameter") for n, v in exact.items())

    def mean_error():
        conv, now = nn.functional.conv2d, calibration.biases.get("0.bias", bias)
        return (conv(on_grid, weight, now) - conv(on_grid, *exact.values())).mean((0, 2, 3))

    first = mean_error()
    assert first.abs().max() > 1e-4
    calibration.calibrate(*[x] * 20)
    torch.testing.assert_close(mean_error(), first * 0.95**20, atol=1e-6, rtol=1e-3)


def test_two_calls_in_one_batch_both_count():
    graph = g.capture(nn.Sequential(nn.Conv2d(3, 4, 1)), x := torch.rand(2, 3, 8, 8))
    node = next(node for node in graph.graph.nodes if node.target in g.CONVOLUTIONS)
    weight, bias = parameters(graph).values()
    error, biases = torch.tensor([1.0, -2.0, 0.0, 4.0]), {}
    output = nn.functional.conv2d(x, weight, bias) + error[:, None, None]
    for _ in range(2):  # the arguments of both hold the bias as it was before the batch
        update_bias(graph, biases, node, (x, weight, bias), output)
    torch.testing.assert_close(biases, {"0.bias": bias - 2 * 0.05 * error})


def test_convolution_without_bias_is_not_corrected():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU()), torch.rand(2, 3, 8, 8)
    graph = g.capture(net, x)
    assert correct_biases(graph, Calibration(graph, correct=True).calibrate(x).biases) == {}


def test_module_called_twice_has_one_correction():
    graph, x = g.capture(Branches("called twice"), torch.rand(2, 3, 8, 8)), torch.rand(2, 3, 8, 8)
    before = parameters(graph)
    corrections = correct_biases(graph, Calibration(graph, correct=True).calibrate(x).biases)
    assert set(corrections) == {"one.bias", "two.bias"}
    for name, correction in corrections.items():
        torch.testing.assert_close(parameters(graph)[name], before[name] - correction, rtol=0, atol=0)


# --- errors ---------------------------------------------------------------------------------------


def test_bad_calls():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = g.capture(net, torch.rand(2, 3, 8, 8))
    with pytest.raises(I2IError, match=r"f\(x / s\) = f\(x\) / s.*tanh"):
        equalise(graph, through=(A.relu.default, A.tanh.default))
    unfolded = torch.export.export(net.eval(), (torch.rand(2, 3, 8, 8),)).module()
    with pytest.raises(I2IError, match="without BatchNorm"):
        equalise(unfolded)
    relu = next(node for node in graph.graph.nodes if node.target is A.relu.default)
    with pytest.raises(I2IError, match="a convolution"):
        update_bias(graph, {}, relu, (), torch.zeros(1))
