"""Biases with a value for every pixel: integers by hand and by PyTorch in float64, both engines, files, training."""

import json

import pytest
import torch
from test_integer import SLOPE, Net, agree, noise, spread
from test_ties import eighths, engines
from torch import nn
from torch.nn import functional as F

from i2ilib import I2IError, IntegrityError
from i2ilib.deploy.openvino import from_pytorch
from i2ilib.deploy.qdq import broken_rules
from i2ilib.models import CodecAvatarDecoder
from i2ilib.quant import fake_quantise, inspect, layers, limit_shifts, load, nndct, quantise, with_positions
from i2ilib.quant import graph as g
from i2ilib.quant.correct import RATE, correct_biases, equalise, update_bias
from i2ilib.quant.fixed_point import fix_position
from i2ilib.quant.interchange import FORMAT, describe
from i2ilib.quant.qat import Trainable
from i2ilib.quant.rewrite import for_cpu
from i2ilib.runtime import read_tensors, write_tensors


class Untied(nn.Module):
    """A convolution and a bias of the shape of its result, on either side of the sum."""

    def __init__(self, conv, *shape, left=False):
        super().__init__()
        self.conv, self.bias, self.left = conv, nn.Parameter(noise(*shape, seed=len(shape))), left

    def forward(self, x):
        return self.bias + self.conv(x) if self.left else self.conv(x) + self.bias


def bare(ci, co, kernel=3, **options):
    return nn.Conv2d(ci, co, kernel, padding=kernel // 2, bias=False, **options)


def decoder(own=False):
    """Blocks as a codec avatar's: convolution, bias a pixel, LeakyReLU, twice the size; (N, 4, 8, 8) to twice that."""
    torch.manual_seed(0)
    return nn.Sequential(
        Untied(nn.Conv2d(4, 6, 5, padding=2, bias=own), 6, 8, 8),
        nn.LeakyReLU(SLOPE),
        nn.Upsample(scale_factor=2),
        Untied(bare(6, 5), 1, 5, 16, 16, left=True),
        nn.ReLU(),
        nn.Conv2d(5, 3, 3, padding=1),
    ).eval()


def coarse(net):
    """Parameters in eighths, so that sums lie on ties often."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((parameter * 8).round() / 8)
    return net


def node(graph, target):
    return next(node for node in graph.graph.nodes if node.target is target)


# --- the arithmetic ----------------------------------------------------------------------------------


def test_by_hand():
    """Two pixels of one channel: 3 x + 2^shift b, LeakyReLU 13/128, one cut; ties up."""
    net = nn.Sequential(Untied(nn.Conv2d(1, 1, 1, bias=False), 1, 1, 4), nn.LeakyReLU(SLOPE))
    with torch.no_grad():
        net[0].conv.weight.fill_(0.75)  # 3 at position 2
        net[0].bias.copy_(torch.tensor([[[0.5, -1.0, 2.0, -0.25]]]))  # 2, -4, 8, -1 at position 2
    x = torch.tensor([[[[1.5, -2.0, 1.0, 15.875]]]])  # 12, -16, 8, 127 at position 3
    positions = {"input": 3, "0.conv.weight": 2, "0.bias": 2, "1": 1}
    quantised = with_positions(net, positions, x)
    # sums at 3 + 2 = 5, so the bias goes up by 3: 36 + 16, -48 - 32, 24 + 64, 381 - 8 = 52, -80, 88, 373
    # LeakyReLU: -80 · 13/128 = -8.125; cut by 4: 3.25, -0.508, 5.5, 23.31
    want = torch.tensor([[[[3, -1, 6, 23]]]]) / 2
    assert torch.equal(quantised.integer(x), want) and torch.equal(quantised.fake(x), want)
    (about,) = (about for about in describe(quantised)["nodes"] if "shift_cut" in about)
    assert (about["shift_cut"], about["shift_bias"]) == (4, 3)


GEOMETRIES = {
    "wide kernel": (lambda: nn.Conv2d(3, 5, 5, padding=2, bias=False), (5, 10, 12)),
    "stride, with the axis of the batch": (lambda: nn.Conv2d(3, 4, 4, 2, 1, bias=False), (1, 4, 5, 6)),
    "groups and a bias of its own": (lambda: nn.Conv2d(3, 6, 3, 1, 0, groups=3), (6, 8, 10)),
    "dilation": (lambda: nn.Conv2d(3, 2, (3, 1), dilation=2, bias=False), (2, 6, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False), (4, 20, 24)),
    "transposed, a bias of its own": (lambda: nn.ConvTranspose2d(3, 2, 3, 2, 1, 1), (1, 2, 20, 24)),
    "one pixel": (lambda: nn.Conv2d(3, 2, (10, 12), bias=False), (2, 1, 1)),
}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_integers_are_those_of_float64(name, left):
    make, shape = GEOMETRIES[name]
    torch.manual_seed(1)
    x = noise(2, 3, 10, 12)
    quantised = quantise(nn.Sequential(Untied(make(), *shape, left=left), nn.LeakyReLU(SLOPE)), [x])
    for seed in range(3):
        moved = spread(quantised, seed)
        agree(moved, x)
        assert torch.equal(moved.integer(x), moved.fake(x))


@pytest.mark.parametrize("own", [False, True])
def test_a_decoder(own):
    net, x = decoder(own), noise(3, 4, 8, 8)
    quantised = quantise(net, x.split(1))
    agree(quantised, x)
    assert torch.equal(quantised.integer(x), quantised.fake(x))
    assert (quantised.integer(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()


def test_every_group_is_rounded_once_at_its_end_and_the_bias_as_a_parameter():
    net = decoder()
    quantised = quantise(net, [noise(2, 4, 8, 8)])
    kinds = {site.name: site.kind for site in quantised.sites}
    parameters = [f"{i}.{name}" for i in (0, 3) for name in ("conv.weight", "bias")] + ["5.weight", "5.bias"]
    maps = ["1", "2", "4", "5"]
    assert kinds == dict.fromkeys(parameters, "parameter") | dict.fromkeys(maps, "activation") | {"input": "input"}
    assert layers(quantised)["3.conv"] == ["3.conv.weight", "3.bias", "4"]
    for name, value in net.named_parameters():
        rounded = fake_quantise(value, quantised.fix_positions[name], kind="parameter")
        stands = next(n for n in quantised.graph.graph.nodes if n.target == name)
        assert torch.equal(g.parameter(quantised.graph, stands), rounded)
        assert quantised.fix_positions[name] == fix_position(value, "parameter")  # no shift at its limit here


def test_a_bias_of_the_convolution_is_added_to_the_untied_one():
    net, x = decoder(own=True), noise(2, 4, 8, 8)
    other = decoder()
    state = net.state_dict()
    state["0.bias"] = state["0.bias"] + state.pop("0.conv.bias")[:, None, None]
    other.load_state_dict(state)
    ours, theirs = quantise(net, [x]), quantise(other, [x])
    assert ours.fix_positions == theirs.fix_positions
    assert torch.equal(ours.integer(x), theirs.integer(x))
    assert net[0].conv.bias.abs().max() > 0  # the model is copied, not changed


@pytest.mark.parametrize(("x", "weight", "bias"), [(0.01, 1e-3, 100.0), (10.0, 5e3, 1e-4)], ids=["above", "below"])
@torch.no_grad()
def test_shifts_of_a_bias_far_from_its_sums_are_limited(x, weight, bias):
    net, x = nn.Sequential(Untied(bare(2, 2), 2, 6, 6)), noise(2, 2, 6, 6) * x
    net[0].conv.weight.mul_(weight)
    net[0].bias.mul_(bias)
    parameters = net[0].conv.weight, net[0].bias
    before, at = fix_position(x, "input"), [fix_position(value, "parameter") for value in parameters]
    rounded = [fake_quantise(value, fp, kind="parameter") for value, fp in zip(parameters, at, strict=True)]
    after = fix_position(F.conv2d(fake_quantise(x, before, kind="input"), rounded[0], padding=1) + rounded[1])
    limited = limit_shifts(before, *at, after)
    assert limited != (*at, after)
    quantised = quantise(net, [x])
    names = "0.conv.weight", "0.bias", quantised.sites[-1].name
    assert tuple(quantised.fix_positions[name] for name in names) == limited
    agree(quantised, x)


def test_one_bias_behind_two_calls():
    shared = Untied(bare(4, 4), 4, 6, 6)
    net, x = nn.Sequential(shared, nn.ReLU(), shared), noise(2, 4, 6, 6)
    quantised = quantise(net, [x])
    assert sum(site.kind == "parameter" for site in quantised.sites) == 2
    agree(quantised, x)


# --- engines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "cpu"])
@pytest.mark.parametrize("own", [False, True])
def test_engines_give_the_integers_ties_included(own, form, tmp_path):
    net, x = coarse(decoder(own)), eighths(4, 4, 8, 8)
    quantised = quantise(net, [x])
    want = quantised.integer(x)
    assert want.unique().numel() > 50
    for engine in engines(quantised.to_onnx(tmp_path / "up.onnx", form=form), x):
        assert torch.equal(engine, want)
    for engine in engines(quantised.to_onnx(tmp_path / "even.onnx", form=form, ties="even"), x):
        assert not torch.equal(engine, want)  # there are ties


def test_engines_with_untied_biases_behind_and_before_everything_else(tmp_path):
    def compute(net, x):
        y = torch.cat([x, net.down(x), F.relu(net.grouped(x))], 1)  # three positions meet
        y = net.pool(F.leaky_relu(net.wide(y), SLOPE))
        y = F.relu(net.up(y)) + x
        return torch.tanh(F.pixel_shuffle(net.last(y) + net.wide.conv(torch.cat([y, y, y], 1)), 2))

    net = Net(
        compute,
        down=Untied(bare(4, 4), 4, 8, 8),
        grouped=Untied(bare(4, 4, groups=2), 1, 4, 8, 8),
        wide=Untied(bare(12, 8), 8, 8, 8),
        pool=nn.AvgPool2d(2),
        up=Untied(nn.ConvTranspose2d(8, 4, 4, 2, 1), 4, 8, 8),
        last=Untied(bare(4, 8), 8, 8, 8),
    )
    x = eighths(3, 4, 8, 8)
    quantised = quantise(coarse(net).eval(), [x]).on_device()
    agree(quantised, x)
    want = quantised.integer(x)
    assert want.unique().numel() > 50
    for engine in engines(quantised.to_onnx(tmp_path / "all.onnx", form="cpu"), x):
        assert torch.equal(engine, want)


CUTS = [(cut, nn.Identity()) for cut in (0, 1, 2, 9, 16)] + [(cut, nn.ReLU()) for cut in (1, 16)]
CUTS += [(cut, nn.LeakyReLU(SLOPE)) for cut in (0, 1, 6, 12)]


@pytest.mark.parametrize("finer", [-2, 3])
def test_cuts_of_all_sizes(finer, tmp_path):
    """A concat rounds every convolution; biases on a grid coarser and finer than the sums."""
    generator = torch.Generator().manual_seed(0)
    parts = [Untied(bare(4, 4), 4, 12, 12) for _ in CUTS]
    net = Net(
        lambda net, x: torch.cat([act(part(x)) for part, (_, act) in zip(net.parts, CUTS, strict=True)], 1),
        parts=nn.ModuleList(parts),
    )
    positions = {"input": 3, "cat": 3}
    with torch.no_grad():
        for i, ((cut, _), part) in enumerate(zip(CUTS, parts, strict=True)):
            largest, fp = min(max(2 ** (cut - 5), 1), 127), cut + 3 + finer
            part.conv.weight.copy_(
                torch.randint(0, largest + 1, part.conv.weight.shape, generator=generator) * 2.0**-cut
            )
            part.bias.copy_(torch.randint(-127, 128, part.bias.shape, generator=generator) * 2.0**-fp)
            positions |= {f"parts.{i}.conv.weight": cut, f"parts.{i}.bias": fp}
    x = (torch.linspace(-128, 127, 144).reshape(1, 1, 12, 12) + 8 * noise(2, 4, 12, 12)).round() / 8
    quantised = with_positions(net, positions, x)
    want = quantised.integer(x)
    assert all(part.unique().numel() > 4 for part in want.split(4, 1))
    for engine in engines(quantised.to_onnx(tmp_path / "cuts.onnx"), x):
        assert torch.equal(engine, want)


def test_forms_for_matrix_units_leave_these_convolutions_alone():
    """All three would have another form with an ordinary bias: their lines are narrow."""
    for conv, shape in ((nn.ConvTranspose2d(4, 4, 4, 2, 1, bias=False), (4, 8, 8)), (bare(4, 4), (4, 4, 4))):
        x = noise(2, 4, 4, 4)
        for net, same in ((conv, False), (Untied(conv, *shape), True)):
            quantised = quantise(nn.Sequential(net, nn.ReLU()), [x])
            before, after = (
                [n.target for n in graph.graph.nodes if n.op == "call_function"]
                for graph in (quantised.graph, for_cpu(quantised.graph, quantised.sites)[0])
            )
            assert (before == after) == same


def test_openvino_computes_the_convolutions_exactly(tmp_path):
    quantised, x = quantise(decoder(), [noise(2, 4, 8, 8)]), noise(2, 4, 8, 8)
    path = quantised.to_onnx(tmp_path / "net.onnx", form="cpu")
    with from_pytorch(quantised, x) as runner:  # refuses what would not be
        assert torch.equal(runner.run(x), quantised.integer(x))
    with from_pytorch(quantised, x, precision="int8-float") as runner:
        assert torch.equal(runner.run(x), quantised.integer(x))
    assert not any(broken_rules(path).values())


# --- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_kept_and_loaded(own, tmp_path):
    x = noise(2, 4, 8, 8)
    quantised = quantise(decoder(own), [x])
    again = load(quantised.save(tmp_path / "net.safetensors"))
    assert describe(again) == describe(quantised) and again.fix_positions == quantised.fix_positions
    assert torch.equal(again.integer(x), quantised.integer(x))
    nodes = json.loads(quantised.to_json(tmp_path / "net.json").read_text())["nodes"]
    conv, untied = nodes[5:7]
    assert (conv["operator"], untied["operator"]) == ("conv2d", "untied_bias")
    assert untied["inputs"] == [conv["name"]] and untied["parameters"]["bias"]["shape"] == [1, 5, 16, 16]
    assert conv["parameters"].keys() == {"weight"} and untied["fix_position"] is conv["fix_position"] is None
    fix = quantised.fix_positions
    assert conv["shift_bias"] == fix["2"] + fix["3.conv.weight"] - fix["3.bias"]


def test_a_file_that_puts_the_bias_elsewhere_is_refused(tmp_path):
    path = quantise(decoder(), [noise(2, 4, 8, 8)]).save(tmp_path / "net.safetensors")
    integers, header = read_tensors(path, "")
    document = json.loads(header[FORMAT])
    first, second = document["nodes"][2:4]  # the bias, the activation
    first["inputs"], second["inputs"] = [second["name"]], first["inputs"]
    document["nodes"][2:4] = second, first
    write_tensors(path, integers, {FORMAT: json.dumps(document)})
    with pytest.raises(IntegrityError, match="operators that the output depends on"):
        load(path)


def test_the_shape_of_the_file_with_untied_biases_of_another_size_is_refused(tmp_path):
    path = quantise(decoder(), [noise(2, 4, 8, 8)]).save(tmp_path / "net.safetensors")
    integers, header = read_tensors(path, "")
    integers["0.bias"] = integers["0.bias"][:, :1, :1].contiguous()
    write_tensors(path, integers, header)
    with pytest.raises(IntegrityError, match="a sum of two tensors of one shape"):
        load(path)


# --- equalisation, bias correction, training ---------------------------------------------------------


def test_equalisation_scales_the_bias_with_its_channels():
    net, x = nn.Sequential(Untied(bare(3, 4), 4, 8, 8), nn.ReLU(), Untied(bare(4, 2), 1, 2, 8, 8)), noise(2, 3, 8, 8)
    with torch.no_grad():
        net[0].conv.weight.mul_(torch.tensor([8.0, 3, 2, 4])[:, None, None, None])
    graph = g.capture(net, x)
    (pair,) = equalise(graph)
    assert (pair.first, pair.second) == ("0.conv", "2.conv") and pair.scales.unique().numel() == 4
    torch.testing.assert_close(graph(x), net(x))
    biases = {n.target: g.parameter(graph, n) for n in graph.graph.nodes if n.op == "get_attr"}
    torch.testing.assert_close(biases["0.bias"], net[0].bias / pair.scales[:, None, None])
    assert torch.equal(biases["2.bias"], net[2].bias)
    agree(quantise(net, [x], equalise=True), x)


def test_a_bias_behind_two_convolutions_keeps_them_from_being_equalised():
    net = Net(
        lambda net, x: net.last(F.relu(net.one(x) + net.bias)) + net.other(F.relu(net.two(x) + net.bias)),
        **{name: bare(3, 3) for name in ("one", "two", "last", "other")},
    )
    net.bias = nn.Parameter(noise(3, 8, 8))
    assert equalise(g.capture(net, noise(2, 3, 8, 8))) == []


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()], ids=["relu", "none"])
def test_bias_correction_takes_off_the_mean_error_of_each_channel(activation):
    """Against the same steps by hand; without an activation the rounding of the sum counts as well."""
    net, x = nn.Sequential(Untied(bare(3, 4, stride=2), 4, 4, 4), activation), noise(4, 3, 8, 8)
    plain, corrected = quantise(net, x.split(2), bits=4), quantise(net, x.split(2), bits=4, correct_bias=True)
    assert corrected.fix_positions.keys() == plain.fix_positions.keys()
    weight, bias = net[0].conv.weight.detach(), net[0].bias.detach()
    rounded = [fake_quantise(v, fix_position(v, "parameter", bits=4), kind="parameter", bits=4) for v in (weight, bias)]
    now = rounded[1]
    fp_in, votes = fix_position(x[:2], "input", bits=4), []
    for batch in x.split(2):
        on_grid = fake_quantise(batch, fp_in, kind="input", bits=4)
        exact = F.conv2d(on_grid, weight, None, 2, 1) + bias
        sums = F.conv2d(on_grid, rounded[0], None, 2, 1) + now
        if isinstance(activation, nn.Identity):
            votes.append(fix_position(sums, bits=4))
            assert len(set(votes)) == 1
            sums = fake_quantise(sums, votes[0], bits=4)
        now = now - RATE * (sums - exact).mean((0, 2, 3))[:, None, None]
    kept = next(g.parameter(corrected.folded, s.node) for s in corrected.sites if s.name == "0.bias")
    torch.testing.assert_close(kept, now)
    steady = now - rounded[1]
    assert steady.abs().max() > 1e-3
    torch.testing.assert_close(steady, steady[:, :1, :1].expand_as(steady))
    agree(corrected, x)


def test_correction_of_one_convolution():
    graph = g.capture(nn.Sequential(Untied(bare(3, 4, 1), 1, 4, 8, 8)), x := torch.rand(2, 3, 8, 8))
    conv = node(graph, g.A.conv2d.default)
    weight, bias = (g.parameter(graph, part).detach() for part in (conv.args[1], g.bias_of(conv)))
    error, biases = torch.tensor([1.0, -2.0, 0.0, 4.0])[:, None, None], {}
    update_bias(graph, biases, conv, (x, weight, bias), F.conv2d(x, weight) + bias + error)
    torch.testing.assert_close(biases, {"0.bias": bias - RATE * error})
    torch.testing.assert_close(correct_biases(graph, biases), {"0.bias": (RATE * error).expand(1, 4, 8, 8)})


@pytest.mark.parametrize("own", [False, True])
def test_training_moves_the_bias_and_ends_in_the_integers(own):
    net, x = decoder(own), noise(4, 4, 8, 8)
    target = net(x).detach() + noise(3, 16, 16, seed=7)  # only the first bias and the last can follow
    start = quantise(net, [x])
    trainable = Trainable(net, [x], start=start)
    assert trainable.fix_positions == start.fix_positions
    assert torch.equal(trainable.eval()(x), start.fake(x))
    before = {name: p.detach().clone() for name, p in trainable.network.named_parameters()}
    optimiser = torch.optim.Adam(
        [{"params": trainable.weights(), "lr": 1e-2}, {"params": trainable.thresholds(), "lr": 1e-3}]
    )
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = F.mse_loss(trainable.train()(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    moved = {name for name, p in trainable.network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - {"0.conv.bias"}
    quantised = trainable.quantised()
    assert torch.equal(trainable.eval()(x), quantised.fake(x))
    agree(quantised, x)
    net.load_state_dict(trainable.network.state_dict())  # a convolution's own bias is in the untied one
    torch.testing.assert_close(net(x), trainable.network(x))


def test_gradient_is_that_of_a_sum():
    net, x = nn.Sequential(Untied(bare(2, 2), 2, 4, 4)), noise(3, 2, 4, 4)
    with torch.no_grad():
        net[0].bias.clamp_(-1, 1)
    trainable = Trainable(net, [4 * x])  # nothing is clipped
    trainable(x).sum().backward()
    grad = dict(trainable.network.named_parameters())["0.bias"].grad
    assert torch.equal(grad, torch.full_like(grad, 3.0))


# --- what others make of it --------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 4, 8, 8)], ids=str)
def test_inspection_puts_it_on_the_cpu_and_says_why(shape, left):
    net = nn.Sequential(Untied(bare(3, 4), *shape, left=left), nn.LeakyReLU(SLOPE), bare(4, 2))
    found = inspect(net, example=noise(1, 3, 8, 8))
    assert [(row.operator, row.device) for row in found.rows] == [
        ("conv2d", "DPU"),
        ("add", "CPU"),
        ("leaky_relu", "CPU"),
        ("conv2d", "DPU"),
    ]
    assert found.splits == 2
    untied, activation = found.cpu
    assert "untied bias" in untied.reason and "tie it" in untied.remedy
    assert activation.reason == f"part of {untied.tensor}, which is on the CPU"


def test_inspection_of_other_sums_is_as_before():
    net = Net(lambda net, x: F.relu(net.a(x) + net.b(x)) + net.bias, a=bare(3, 4), b=bare(3, 4))
    net.bias = nn.Parameter(noise(4, 1, 1))
    rows = inspect(net, example=noise(1, 3, 8, 8)).rows
    assert [(row.operator, row.device) for row in rows[2:4]] == [("add", "DPU"), ("relu", "DPU")]
    assert rows[4].reason.startswith("not a plain sum of two tensors of one shape; quantise takes only a sum of two")


def test_amds_quantiser_has_no_word_for_it(tmp_path):
    with pytest.raises(I2IError, match=r"0\.add: expected biases of one number a channel.*untied"):
        nndct.prepare(decoder(), [noise(2, 4, 8, 8)], noise(1, 4, 8, 8), folder=tmp_path / "job")
    assert not list(tmp_path.iterdir())


def refused():
    plain, bias = "of a convolution that nothing else reads and a bias", nn.Parameter(noise(3, 8, 8))

    def net(forward, *, bias=bias, **modules):
        made = Net(forward, conv=nn.Conv2d(3, 3, 3, padding=1), **modules)
        made.bias, made.other = bias, nn.Parameter(noise(3, 8, 8, seed=1))
        return made

    yield "of one number a channel", plain, net(lambda m, x: m.conv(x) + m.bias, bias=nn.Parameter(noise(3, 1, 1)))
    yield "of one image", plain, net(lambda m, x: m.conv(x) + m.bias, bias=nn.Parameter(noise(8, 8)))
    yield "behind an activation", plain, net(lambda m, x: F.relu(m.conv(x)) + m.bias)
    yield "on the input", plain, net(lambda m, x: m.conv(x + m.bias))
    yield "the convolution is read twice", plain, net(lambda m, x: (y := m.conv(x)) + m.bias + y)
    yield "two in turn", plain, net(lambda m, x: m.conv(x) + m.bias + m.other)
    yield "weighted", plain, net(lambda m, x: torch.add(m.conv(x), m.bias, alpha=2))
    yield "weighted, on the left", plain, net(lambda m, x: torch.add(m.bias, m.conv(x), alpha=2))
    yield "subtracted", "an operator from", net(lambda m, x: m.conv(x) - m.bias)
    yield "before BatchNorm", "before BatchNorm", net(lambda m, x: m.n(m.conv(x) + m.bias), n=nn.BatchNorm2d(3))
    yield "behind BatchNorm", plain, net(lambda m, x: m.n(m.conv(x)) + m.bias, n=nn.BatchNorm2d(3))
    once = "one call of a convolution that has a bias and an untied one"
    yield "own bias of two calls", once, net(lambda m, x: m.conv(F.relu(m.conv(x) + m.bias)) + m.other)
    yield "untied bias of two", once, net(lambda m, x: m.d(F.relu(m.conv(x) + m.bias)) + m.bias, d=bare(3, 3))


@pytest.mark.parametrize(("message", "net"), [pytest.param(m, n, id=i) for i, m, n in refused()])
def test_what_it_cannot_be(message, net):
    with pytest.raises(I2IError, match=message):
        quantise(net, [noise(2, 3, 8, 8)])
    with pytest.raises(I2IError, match=message):
        Trainable(net, [noise(2, 3, 8, 8)])


# --- the network that it is for ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_branches_of_a_codec_avatar_decoder(number, tmp_path):
    torch.manual_seed(0)
    net = CodecAvatarDecoder(size=64, width=0.125)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # they begin with zeros
    branch, x = net.eval().branch(number), noise(2, 4 if number == 1 else 7, 8, 8)
    quantised = quantise(branch, [x])
    assert sum(name.endswith("bias") for name in quantised.fix_positions) >= 5
    agree(quantised, x)
    want = quantised.integer(x)
    assert torch.equal(quantised.fake(x), want)
    for engine in engines(quantised.to_onnx(tmp_path / "branch.onnx", form="cpu"), x):
        assert torch.equal(engine, want)
    assert torch.equal(load(quantised.save(tmp_path / "branch.safetensors")).integer(x), want)
