"""Calibration, placement of fix positions and integers against AMD's quantiser, one layer at a time, the errors."""

import json

import numpy as np
import pytest
import torch
from conftest import shared
from torch import nn

from i2ilib import I2IError
from i2ilib.models import Generator
from i2ilib.quant import Quantised, fake_quantise, layers, quantise, run, sensitivity, tail_aware, with_positions
from i2ilib.quant import graph as g

SLOPE = 13 / 128


class TinyED(nn.Module):
    """The small encoder-decoder of the golden data, by its description."""

    def __init__(self, slope=SLOPE):
        super().__init__()
        self.e1, self.e2 = nn.Conv2d(3, 8, 4, 2, 1), nn.Conv2d(8, 8, 4, 2, 1, bias=False)
        self.e3, self.d3 = nn.Conv2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False)
        self.d2, self.d1 = nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        self.b2, self.bd3, self.bd2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.a1, self.a2 = nn.LeakyReLU(slope), nn.LeakyReLU(slope)
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


def trained(golden, slope=SLOPE):
    net = TinyED(slope).eval()
    keys = [key for key in golden.files if key.startswith("weights/")]
    net.load_state_dict({key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in keys})
    return net


@pytest.fixture(scope="module")
def tiny(golden):
    return trained(golden)


@pytest.fixture(scope="module")
def quantised(golden, tiny):
    return quantise(tiny, torch.from_numpy(golden["calib"]).split(2))


NAMES = {0: "input", 2: "a1", 4: "a2", 6: "r3", 9: "cat", 12: "cat_1", 13: "d1"}  # golden node: our tensor


def test_float_network_is_the_golden_one(golden, tiny):
    with torch.no_grad():
        out = tiny(torch.from_numpy(golden["test"]))
    np.testing.assert_allclose(out, golden["plain/float_out"], atol=1e-6)


VARIANTS = ["plain", "default", "slope02"]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, golden, tiny, quantised):
    """A variant's name, and our quantised network."""
    batches = torch.from_numpy(golden["calib"]).split(2)
    if request.param == "default":
        return request.param, quantise(tiny, batches, equalise=True, correct_bias=True)
    if request.param == "slope02":
        with pytest.warns(UserWarning, match="LeakyReLU of slope 0.2 becomes 26/256"):
            return request.param, quantise(trained(golden, 0.2), batches)
    return request.param, quantised


def test_fix_positions_equal_the_quantiser(variant):
    name, ours = variant
    info = json.loads((shared("golden/nndct") / f"tiny_ed_{name}_quant_info.json").read_text())
    params = {key.split("::")[1]: position[0][1] for key, position in info["param"].items()}
    tensors = {NAMES[int(key.rpartition("_")[2])]: position[0][1] for key, position in info["output"].items()}
    assert ours.fix_positions == params | tensors
    graph = json.loads((shared("golden/nndct") / "tiny_ed_graph.json").read_text())[name]
    assert tensors == {NAMES[node["index"]]: node["fixpos"] for node in graph if node["fixpos"] is not None}


def test_folded_and_rounded_parameters_equal_the_quantiser(golden, variant):
    name, ours = variant
    checked = 0
    for site in (site for site in ours.sites if site.kind == "parameter"):
        node = next(n for n in ours.graph.graph.nodes if n.name == site.node.name)
        integers = g.parameter(ours.graph, node) * 2.0 ** ours.fix_positions[site.name]
        np.testing.assert_array_equal(integers.detach().numpy(), golden[f"{name}/param_int8/{site.name}"])
        if name != "default":  # there the folded bias is a corrected one
            folded = g.parameter(ours.folded, site.node).detach()
            np.testing.assert_allclose(folded, golden[f"{name}/param_folded/{site.name}"], atol=1e-6)
        checked += 1
    assert checked == 12


def test_every_integer_equals_the_quantiser(golden, variant):
    """All int8 feature maps, to the bit, and the float sums between them; then the output."""
    name, ours = variant
    x, maps = torch.from_numpy(golden["test"]), {}
    out = ours.integer(x, keep=maps)
    assert maps.keys() == set(NAMES.values())
    for index, tensor in NAMES.items():
        np.testing.assert_array_equal(maps[tensor], golden[f"{name}/act_int8/{index}"], err_msg=tensor)
    np.testing.assert_allclose(out, golden[f"{name}/quant_out"], atol=1e-6)
    np.testing.assert_allclose(ours.fake(x), golden[f"{name}/quant_out"], atol=1e-6)
    for tensor, value in ours.activations(x).items():
        assert torch.equal(value, maps[tensor] * 2.0 ** -ours.fix_positions[tensor])
    assert torch.equal(ours.on_device().integer(x), maps["d1"] * ours.step) and ours.step == 2.0**-4


def test_unrounded_sums_equal_the_quantiser(golden, quantised):
    """Between two fix positions nothing is rounded."""
    sums = {"conv2d": 1, "conv2d_1": 3, "conv2d_2": 5, "conv_transpose2d": 7, "conv_transpose2d_1": 10}
    found = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            found[node.name] = value
            site = next((s for s in quantised._feature_maps if s.node.name == node.name), None)
            return value if site is None else fake_quantise(value, quantised.fix_positions[site.name], kind=site.kind)

    Keep(quantised.graph).run(torch.from_numpy(golden["test"]))
    for node, index in sums.items():
        np.testing.assert_array_equal(found[node].detach(), golden[f"plain/act_float/{index}"])


# --- which tensors are rounded ---------------------------------------------------------------------


class Probe(nn.Module):
    """The super-resolution network of the golden export, by its list of operators."""

    def __init__(self):
        super().__init__()
        self.c1, self.a1, self.mp = nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(SLOPE), nn.MaxPool2d(2)
        self.c2, self.b2, self.r2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.c3, self.ps = nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x):
        skip = self.a1(self.c1(x))
        y = self.up(self.r2(self.b2(self.c2(self.mp(skip)))))
        y = self.ps(self.c3(torch.cat([skip, y], 1)))
        bicubic = nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        return torch.clamp(y + bicubic, -1, 1)


class UBlock(nn.Module):
    """One level of pix2pix's generator as published: nested, activations first and in place."""

    def __init__(self, outer, inner, sub=None, ci=None, co=None, in_place=True):
        super().__init__()
        self.outermost = ci is not None
        down = nn.Conv2d(ci or outer, inner, 4, 2, 1, bias=False)
        width = inner if sub is None else 2 * inner
        up = nn.ConvTranspose2d(width, co or outer, 4, 2, 1, bias=self.outermost)
        if self.outermost:
            parts = [down, sub, nn.ReLU(in_place), up, nn.Tanh()]
        elif sub is None:
            parts = [nn.LeakyReLU(SLOPE, in_place), down, nn.ReLU(in_place), up, nn.BatchNorm2d(outer)]
        else:
            parts = [nn.LeakyReLU(SLOPE, in_place), down, nn.BatchNorm2d(inner), sub]
            parts += [nn.ReLU(in_place), up, nn.BatchNorm2d(outer), nn.Dropout(0.5)]
        self.model = nn.Sequential(*parts)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def pix2pix(in_place=True, levels=8, width=4):
    filters = [width * min(2**level, 8) for level in range(levels)]
    block = UBlock(filters[-2], filters[-1], in_place=in_place)
    for level in range(levels - 2, 0, -1):
        block = UBlock(filters[level - 1], filters[level], block, in_place=in_place)
    return UBlock(None, filters[0], block, ci=3, co=1, in_place=in_place)


EXPORTED = {  # of AMD's export: our network, its input
    "tiny_ed_plain": (TinyED, (2, 3, 32, 32)),
    "pix2pix_inplace": (pix2pix, (2, 3, 256, 256)),
    "sr_probe_plain": (Probe, (2, 3, 32, 32)),
}
TYPES = {
    "placeholder": "data",
    "conv2d": "conv2d",
    "conv_transpose2d": "transposed-conv2d",
    "leaky_relu": "leaky-relu",
    "max_pool2d": "maxpool2d",
    "cat": "concat",
    "upsample_bicubic2d": "aten::upsample_bicubic2d",
}


@pytest.mark.parametrize("name", EXPORTED)
def test_fix_operators_follow_the_same_tensors_as_in_the_export(name):
    """Every rounded tensor of the export, by the operator before its ``fix`` and its shape, and every parameter."""
    ops = json.loads((shared("golden/nndct") / "xmodel_ops.json").read_text())[name]["ops"]
    by_name = {op["name"]: op for op in ops}
    rounded = [by_name[op["inputs"]["input"][0]] for op in ops if op["type"] == "fix"]
    maps = [op for op in rounded if op["type"] != "const"]
    # channels last, but for the bicubic result, which is laid out for the framework
    last = lambda op: op["shape"][1:] if op["type"].startswith("aten") else [op["shape"][i] for i in (3, 1, 2)]  # noqa: E731
    want = sorted((op["type"], last(op)) for op in maps)

    kind, shape = EXPORTED[name]
    net = kind()
    found, parameters = [], 0
    for site in g.sites(g.capture(net, torch.zeros(shape))):
        if site.kind == "parameter":
            parameters += 1
            continue
        node = site.node
        while node.target is torch.ops.aten.pixel_shuffle.default:  # the export rounds before it: the same values
            node = node.args[0]
        operator = node.op if node.op == "placeholder" else g.operator_name(node.target)
        found.append((TYPES.get(operator, operator), list(node.meta["val"].shape[1:])))
    assert sorted(found) == want
    assert parameters == len(rounded) - len(maps)


def test_network_of_the_export_runs_in_integers():
    torch.manual_seed(0)
    net = Probe().eval()
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    quantised = quantise(net, [x])
    assert torch.equal(quantised.integer(x), quantised.fake(x))
    with torch.no_grad():
        assert (quantised.fake(x) - net(x)).abs().max() < 0.1


def test_activations_in_place_change_what_the_skips_carry():
    """In place the skip is the activated tensor, at one position; else the sums and the activation have one each."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    names = {}
    for in_place in (True, False):
        net = pix2pix(in_place, levels=3)
        torch.manual_seed(1)
        for parameter in net.parameters():
            nn.init.normal_(parameter, 0, 0.3)
        net.eval()
        quantised = quantise(net, [x])
        with torch.no_grad():
            torch.testing.assert_close(quantised.folded(x), net(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(quantised.integer(x), quantised.fake(x))
        names[in_place] = [site.name for site in quantised.sites if site.kind != "parameter"]
    skips = ["model.0", "model.1.model.1"]
    assert not set(skips) & set(names[True]) and set(skips) < set(names[False])
    assert sorted(names[True]) == sorted(set(names[False]) - set(skips))


# --- calibration -----------------------------------------------------------------------------------


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
    net = Generator(width=4, levels=4, out_channels=1, order="pix2pix", slope=SLOPE)
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


def test_model_is_not_touched():
    class Watched(nn.Conv2d):
        moved = False

        def _apply(self, *args, **kwargs):
            self.moved = True
            return super()._apply(*args, **kwargs)

    net = Watched(3, 3, 1).train()
    before = net.weight.detach().clone()
    quantise(net, [torch.rand(2, 3, 4, 4)])
    assert net.training and not net.moved and torch.equal(net.weight, before)


def test_batch_norm_without_its_own_parameters_is_folded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4, affine=False))
    x = torch.randn(4, 3, 8, 8)
    net(x * 3 + 1)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(g.capture(net, x)(x), net(x), atol=1e-5, rtol=1e-5)


# --- one layer at a time ---------------------------------------------------------------------------


def test_layers_name_every_tensor_once(quantised):
    found = layers(quantised)
    names = [name for part in found.values() for name in part]
    assert sorted(names) == sorted(quantised.fix_positions)
    assert found["e1"] == ["e1.weight", "e1.bias", "a1"] and found["d1"] == ["d1.weight", "d1.bias", "d1"]
    assert found["d3"] == ["d3.weight", "d3.bias"] and found["cat"] == ["cat"]  # rounded at the concat
    assert list(found)[-1] == "d1"


def test_layers_of_a_module_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    found = layers(quantise(Twice(), [torch.rand(2, 3, 8, 8)]))
    assert found == {
        "input": ["input"],
        "conv": ["conv.weight", "conv.bias", "conv"],
        "conv#conv2d_1": ["conv.weight", "conv.bias", "conv#conv2d_1"],
    }


def test_run_rounds_what_is_named_and_nothing_else(golden, quantised):
    x, everything = torch.from_numpy(golden["test"]), quantised.fix_positions
    folded, sites = quantised.folded, quantised.sites
    with torch.no_grad():
        assert torch.equal(run(folded, sites, x, {}), folded(x))
    assert torch.equal(run(folded, sites, x, everything), quantised.fake(x))
    weight = everything["e2.weight"]
    rounded = g.copy_graph(folded)
    node = next(n for n in rounded.graph.nodes if n.op == "get_attr" and n.target == "e2.weight")
    g.set_parameter(rounded, node, fake_quantise(g.parameter(rounded, node).detach(), weight, kind="parameter"))
    with torch.no_grad():
        assert torch.equal(run(folded, sites, x, {"e2.weight": weight}), rounded(x))
    assert torch.equal(run(folded, sites, x, everything, bits=4), quantise_at(quantised, 4).fake(x))


def quantise_at(quantised, bits):
    return Quantised(quantised.folded, quantised.fix_positions, quantised.example_shape, bits=bits)


def test_sensitivity_finds_the_layer_that_hurts(golden, quantised):
    x = torch.from_numpy(golden["test"])
    coarse = quantised.moved({"e2.weight": quantised.fix_positions["e2.weight"] - 6})
    with torch.no_grad():
        exact = quantised.folded(x)
    error = lambda net: float((net(x) - exact).abs().mean())  # noqa: E731
    before, after = sensitivity(quantised, error), sensitivity(coarse, error)
    assert before.keys() == layers(quantised).keys()
    assert max(after, key=after.get) == "e2" and after["e2"] > 5 * before["e2"] > 0
    assert {name: after[name] for name in after if name != "e2"} == {n: before[n] for n in before if n != "e2"}


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_fewer_bits_cost_more(golden, tiny, bits):
    x = torch.from_numpy(golden["test"])
    with torch.no_grad():
        exact = tiny(x)
    nets = [quantise(tiny, torch.from_numpy(golden["calib"]).split(2), bits=b) for b in (bits, 8)]
    few, many = ((net.fake(x) - exact).abs().mean() for net in nets)
    assert few > 2 * many
    assert all(value.unique().numel() <= 2**bits for value in nets[0].activations(x).values())


def test_moved_changes_a_copy(golden, quantised):
    x = torch.from_numpy(golden["test"])
    before = dict(quantised.fix_positions)
    moved = quantised.moved({"a1": 2})
    assert quantised.fix_positions == before and moved.fix_positions == before | {"a1": 2}
    assert not torch.equal(moved.fake(x), quantised.fake(x))
    assert moved.moved({"a1": before["a1"]}).fake(x).equal(quantised.fake(x))
    with pytest.raises(I2IError, match="too many or missing: a7"):
        quantised.moved({"a7": 2})


def test_on_device_ends_before_the_hosts_operators(golden, quantised):
    x = torch.from_numpy(golden["test"])
    part = quantised.on_device()
    assert part.fix_positions == quantised.fix_positions
    assert torch.equal(torch.tanh(part.fake(x)), quantised.fake(x)) and torch.equal(part.integer(x), part.fake(x))
    steps = part.fake(x) / part.step
    assert torch.equal(steps, steps.round()) and steps.abs().max() <= 128


# --- the errors ------------------------------------------------------------------------------------


class Calls(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.call = nn.Conv2d(4, 4, 3, padding=1), forward
        self.norm = nn.BatchNorm2d(4)
        self.offset = nn.Parameter(torch.ones(1, 4, 8, 8))

    def forward(self, x):
        return self.call(self, x)


def interpolate(**how):
    return Calls(lambda net, x: nn.functional.interpolate(net.conv(x), **how))


REFUSED = {
    "GELU": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU()), "^1: expected an operator from .* got gelu"),
    "product": (Calls(lambda net, x: net.conv(x) * x), "^mul: expected an operator"),
    "BatchNorm first": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), "^0: .*before BatchNorm"),
    "BatchNorm of a skip": (
        Calls(lambda net, x: (y := net.conv(x)) + net.norm(y)),
        "before BatchNorm",
    ),
    "BatchNorm of batches": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        "running statistics",
    ),
    "a scalar": (Calls(lambda net, x: net.conv(x) + 1), "sum of two tensors"),
    "a parameter": (Calls(lambda net, x: net.conv(x).relu() + net.offset), "sum of two tensors"),
    "a factor": (Calls(lambda net, x: torch.add(x, net.conv(x), alpha=2)), "sum of two tensors"),
    "broadcast": (Calls(lambda net, x: net.conv(x) + nn.functional.max_pool2d(x, 8)), "sum of two tensors"),
    "mean of nine": (nn.AvgPool2d(3), "mean over 2, 4, 8"),
    "mean, padded": (nn.AvgPool2d(2, padding=1), "mean over 2, 4, 8"),
    "mean, ceil": (nn.AvgPool2d(2, ceil_mode=True), "mean over 2, 4, 8"),
    "mean, divisor": (nn.AvgPool2d(2, divisor_override=3), "mean over 2, 4, 8"),
    "pool, dilated": (nn.MaxPool2d(2, dilation=2), "pool without dilation"),
    "nearest 1.5": (interpolate(scale_factor=1.5), "a whole factor, got"),
    "nearest 2.1": (interpolate(scale_factor=2.1, recompute_scale_factor=False), "a whole factor, got"),
    "bilinear 3": (interpolate(scale_factor=3, mode="bilinear"), "a whole factor, 2, 4 or 8"),
    "bilinear 2.1": (interpolate(scale_factor=2.1, mode="bilinear"), "a whole factor, 2, 4 or 8"),
    "bilinear down": (interpolate(scale_factor=0.5, mode="bilinear"), "a whole factor, 2, 4 or 8"),
    "bilinear, corners": (interpolate(scale_factor=2, mode="bilinear", align_corners=True), "align_corners=False"),
    "concat of rows": (Calls(lambda net, x: torch.cat([x, net.conv(x)], 2)), "concat of channels"),
    "padding with ones": (nn.ConstantPad2d(1, 1.0), "with zeros"),
    "padding of channels": (Calls(lambda net, x: nn.functional.pad(x, (0, 0, 0, 0, 1, 1))), "height and width"),
    "reflection": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "expected an operator"),
    "transposed, groups": (nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=2), "without groups"),
    "transposed, groups, BatchNorm": (
        nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=2), nn.BatchNorm2d(4)),
        "without groups",
    ),
    "transposed, dilated": (nn.ConvTranspose2d(4, 4, 3, dilation=2), "without groups and dilation"),
    "two outputs": (Calls(lambda net, x: (net.conv(x), x)), "1 in, 2 out"),
    "no tensor": (Calls(lambda net, x: x.shape[1]), "one tensor"),
    "depends on values": (Calls(lambda net, x: net.conv(x) if x.sum() > 0 else x), "that PyTorch can export"),
    "other channels": (nn.Conv2d(5, 5, 1), "Conv2d: expected a model that PyTorch can export"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_integers_cannot_say_is_refused(name):
    net, message = REFUSED[name]
    with pytest.raises(I2IError, match=message):
        quantise(net.eval(), [torch.rand(2, 4, 8, 8)])


def test_two_inputs_are_refused():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(I2IError, match="Two: expected a model that PyTorch can export"):
        quantise(Two(), [torch.rand(2, 4, 8, 8)])


def test_an_error_of_the_model_itself_is_kept():
    def refuse(net, x):
        raise I2IError("frame", expected="something else")

    with pytest.raises(I2IError, match=r"^frame: expected something else$"):
        g.capture(Calls(refuse), torch.rand(2, 4, 8, 8))


def test_convolution_called_twice_before_batch_norm_is_refused():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    with pytest.raises(I2IError, match="called once"):
        quantise(nn.Sequential(conv, norm, conv, norm).eval(), [torch.rand(2, 4, 8, 8)])


def test_bad_calls():
    net, batch = nn.Conv2d(3, 3, 1), torch.rand(2, 3, 8, 8)
    with pytest.raises(I2IError, match="at least one batch"):
        quantise(net, [])
    with pytest.raises(I2IError, match="'dpu'"):
        quantise(net, [batch], scheme="nncf")
    with pytest.raises(I2IError, match="finite"):
        quantise(net, [torch.full((2, 3, 8, 8), float("nan"))])
    with pytest.raises(I2IError, match="one for each of the 4 tensors"):
        with_positions(net, {"input": 6}, batch)
    for bits in (1, 9, "8", 7.5):
        with pytest.raises(I2IError, match=r"bits: expected 2 to 8, got"):
            quantise(net, [batch], bits=bits)


class Saturated(nn.Module):
    """Most outputs are far out where tanh is flat; what counts is near zero."""

    def __init__(self, tail):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(1, 1, 1), tail
        nn.init.constant_(self.conv.weight, 60.0)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x):
        return self.tail(self.conv(x))


def test_the_last_position_by_what_comes_out_behind_a_tanh():
    x = (torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1) ** 3
    model = Saturated(nn.Tanh()).eval()
    plain = quantise(model, [x])
    aware = tail_aware(plain, [x])
    name = plain.sites[-1].name
    assert {key for key, fp in aware.fix_positions.items() if plain.fix_positions[key] != fp} == {name}
    errors = {}  # by brute force, all positions
    for fp in range(plain.fix_positions[name], plain.fix_positions[name] + 7):
        errors[fp] = float((plain.moved({name: fp}).fake(x) - model(x).detach()).square().mean())
    limit = aware.fix_positions["input"] + aware.fix_positions["conv.weight"]  # shifts go right
    assert aware.fix_positions[name] == min((fp for fp in errors if fp <= limit), key=errors.get)
    assert errors[aware.fix_positions[name]] < errors[plain.fix_positions[name]]


def test_without_a_tail_calibration_is_right():
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = quantise(Saturated(nn.Identity()).eval(), [x])
    assert tail_aware(plain, [x]).fix_positions == plain.fix_positions
