"""The exact executor against PyTorch's own operators in float64, exact below 2^53, in every int8 value."""

import dataclasses
import gc
import itertools
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from i2ilib import I2IError
from i2ilib.models import Generator, SRUNet, UNet, reparametrise
from i2ilib.quant import graph as g
from i2ilib.quant import integer, quantise, with_positions
from i2ilib.runtime import this_machine

SLOPE = 26 / 256


class Net(nn.Module):
    """``forward(net, x)`` with some modules."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.compute = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.compute(self, x)


def oracle(quantised, x):
    """Every rounded feature map as integers, and the output, computed in float64 by PyTorch; ties up."""
    half, maps = 2 ** (quantised.bits - 1), {}
    sites = {site.node.name: site.name for site in quantised.sites if site.kind != "parameter"}

    class Exact(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if name := sites.get(node.name):
                step = 2.0 ** -quantised.fix_positions[name]
                maps[name] = torch.floor(value / step + 0.5).clamp(-half, half - 1)
                value = maps[name] * step
            return value

    with torch.no_grad():
        out = Exact(g.copy_graph(quantised.graph).double()).run(x.double())
    return maps, out


def agree(quantised, x):
    """Assert that executor and oracle have the same integers everywhere; they are returned."""
    want, out = oracle(quantised, x)
    got = {}
    assert torch.equal(quantised.integer(x, keep=got).double(), out)
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.dtype == torch.int8 and torch.equal(value.double(), want[name]), name
    return want


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- convolutions ---------------------------------------------------------------------------------

DIRECT = [  # in, out, kernel, stride, padding, dilation, groups, bias
    (3, 5, 3, 1, 1, 1, 1, True),
    (1, 1, 1, 1, 0, 1, 1, False),
    (4, 6, 4, 2, 1, 1, 2, True),
    (4, 4, 3, 1, 1, 1, 4, False),
    (3, 2, (1, 5), (2, 1), (0, 2), 1, 1, True),
    (2, 3, (5, 2), (1, 3), (3, 1), (2, 1), 1, True),
    (6, 9, 3, (3, 2), 2, (1, 3), 3, True),
    (2, 2, 2, 5, 0, 1, 1, False),
]
TRANSPOSED = [  # in, out, kernel, stride, padding, output_padding, bias
    (3, 5, 4, 2, 1, 0, True),
    (2, 3, 3, 2, 1, 1, True),
    (1, 1, 1, 1, 0, 0, False),
    (3, 2, 2, 4, 0, 0, True),  # pixels that no input reaches
    (2, 4, 2, 3, 0, 2, False),
    (3, 3, (2, 5), (3, 1), (1, 4), (2, 0), True),
    (2, 2, (6, 3), (2, 4), (0, 1), (1, 3), True),
    (2, 3, 3, 1, 3, 0, True),  # more padding than the kernel reaches: pixels are cut off
    (2, 1, 7, 2, 6, 1, False),
]


def spread(quantised, seed):
    """The network with its positions moved at random, so that shifts of all sizes and saturation occur."""
    generator = torch.Generator().manual_seed(seed)
    return quantised.moved(
        {name: fp + int(torch.randint(-3, 4, (), generator=generator)) for name, fp in quantised.fix_positions.items()}
    )


@pytest.fixture(params=["int8 products", "float32 products"])
def arithmetic(request, monkeypatch):
    """Both arithmetics, whichever this machine would choose."""
    eight = request.param == "int8 products"
    if eight and not integer.int8_exact():
        pytest.skip("int8 products saturate on this processor")
    monkeypatch.setattr(integer, "int8_pays", lambda: eight)


@pytest.mark.parametrize("few", [0, 10**6], ids=["as convolutions", "as matrix products"])
@pytest.mark.parametrize("case", DIRECT, ids=str)
def test_convolution_of_any_geometry(case, few, arithmetic, monkeypatch):
    monkeypatch.setattr(integer, "FEW", few)
    ci, co, kernel, stride, padding, dilation, groups, bias = case
    torch.manual_seed(1)
    conv = nn.Conv2d(ci, co, kernel, stride, padding, dilation, groups, bias)
    x = noise(2, ci, 11, 13)
    quantised = quantise(nn.Sequential(conv, nn.LeakyReLU(SLOPE)), [x])
    for seed in range(4):
        agree(spread(quantised, seed), x)


@pytest.mark.parametrize("few", [0, 10**6], ids=["as convolutions", "as matrix products"])
@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolution_of_any_geometry(case, few, arithmetic, monkeypatch):
    monkeypatch.setattr(integer, "FEW", few)
    ci, co, kernel, stride, padding, output_padding, bias = case
    torch.manual_seed(1)
    conv = nn.ConvTranspose2d(ci, co, kernel, stride, padding, output_padding, bias=bias)
    x = noise(2, ci, 5, 7)
    quantised = quantise(nn.Sequential(conv, nn.ReLU()), [x])
    for seed in range(4):
        agree(spread(quantised, seed), x)


def constant(conv, weight, bias=0.0):
    nn.init.constant_(conv.weight, weight)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_every_integer_at_its_lowest(bits):
    net = nn.Sequential(constant(nn.Conv2d(16, 2, 3, padding=1, bias=False), -1.0), nn.LeakyReLU(SLOPE))
    x = -torch.ones(1, 16, 4, 4)
    quantised = quantise(net, [x], bits=bits).moved({"input": bits - 1, "0.weight": bits - 1})
    lowest = -(2 ** (bits - 1))
    assert agree(quantised, x)["input"].unique().tolist() == [lowest]
    assert (quantised.graph.get_parameter("0.weight") * 2.0 ** (bits - 1)).unique().tolist() == [lowest]
    for fp in range(-12, 2 * bits):  # from one step to saturation in every pixel
        agree(quantised.moved({"1": fp}), x)
        agree(quantised.moved({"1": fp}), -x)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_fewer_bits_stay_within_their_range(bits):
    torch.manual_seed(0)
    net, x = Generator(width=4, levels=2, out_channels=1).eval(), noise(2, 3, 8, 12)
    for value in agree(quantise(net, [x], bits=bits).on_device(), x).values():
        assert value.min() >= -(2 ** (bits - 1)) and value.max() < 2 ** (bits - 1)


def test_bias_finer_or_coarser_than_the_sums():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(SLOPE)), noise(2, 3, 8, 8)
    nn.init.uniform_(net[0].bias, -0.01, 0.01)
    quantised = quantise(net, [x])
    sums = quantised.fix_positions["input"] + quantised.fix_positions["0.weight"]
    for shift in (-16, -5, -1, 0, 1, 9, 16):
        agree(quantised.moved({"0.bias": sums - shift}), x)
    wide = quantised.moved({"0.bias": sums + 16, "1": 2})  # sums, moved up, leave 32 bits
    assert wide._executor.convolutions[next(iter(wide._executor.convolutions))].bound >= 2**31
    agree(wide, x * 100)


def test_no_shift_and_shifts_to_the_left():
    net, x = nn.Sequential(nn.Conv2d(2, 2, 1)), noise(2, 2, 6, 6) / 50
    quantised = quantise(net, [x])
    sums = quantised.fix_positions["input"] + quantised.fix_positions["0.weight"]
    for fp in (sums, sums + 1, sums + 8):
        agree(quantised.moved({"0": fp}), x)


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.LeakyReLU(SLOPE)], ids=lambda module: str(module))
def test_shifts_beyond_the_word_leave_nothing(activation):
    net, x = nn.Sequential(nn.Conv2d(2, 2, 3), activation, nn.MaxPool2d(2)), noise(2, 2, 8, 8) * 4
    quantised = quantise(net, [x])
    name = quantised.sites[-2].name
    for fp in (-16, -24, -25, -30, -31, -32, -40, -64, -90):
        agree(quantised.moved({name: fp}), x)
        agree(quantised.moved({"2": fp}), x)


@pytest.mark.parametrize(("channels", "tail"), [(12000, nn.Identity()), (1200, nn.PixelShuffle(2))])
def test_leaky_relu_of_sums_that_leave_32_bits(channels, tail):
    net = nn.Sequential(constant(nn.Conv2d(channels, 4, 1, bias=False), 1.0), nn.LeakyReLU(SLOPE), tail)
    x = -torch.ones(1, channels, 2, 2)
    x[..., :100, 0, 0] = 1
    quantised = quantise(net, [x]).moved({"input": 7, "0.weight": 7})
    (conv,) = quantised._executor.convolutions.values()
    assert conv.bound * 26 >= 2**31 or conv.bound * 128 >= 2**31
    for fp in range(-6, 0):
        agree(quantised.moved({quantised.sites[-1].name: fp}), x)


def test_sums_that_could_overflow_are_refused():
    net = constant(nn.Conv2d(2**17 + 4096, 1, 1, bias=False), 1.0)
    with pytest.raises(I2IError, match=r"sums below 2\^31"):
        quantise(net, [torch.ones(2, 2**17 + 4096, 1, 1)]).moved({"weight": 7}).integer(
            torch.ones(1, 2**17 + 4096, 1, 1)
        )


def no_int8(*_):
    raise AssertionError("the int8 product was used")


def with_weights(x, weight):
    """A convolution without bias whose integer weights are just these."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False)
    with torch.no_grad():
        conv.weight.copy_(weight)
    return with_positions(nn.Sequential(conv), {"input": 0, "0.weight": 0, "0": -8}, x)


def test_input_channels_are_summed_in_parts_that_float32_holds(monkeypatch):
    """All sums are odd and beyond 2^24, where float32 holds no odd number."""
    monkeypatch.setattr(integer, "int8_pays", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", no_int8)
    channels = 2049
    weight = torch.full((2, channels, 1, 1), 127.0)
    for shape in ((1, channels, 2, 3), (1, channels, 20, 20)):  # by a matrix product, and by a convolution
        x = torch.full(shape, 127.0)
        quantised = with_weights(x, weight)
        (conv,) = quantised._executor.convolutions.values()
        ((product,),) = [conv.products]
        parts = [range(channels)[part] for part, _, _ in product.parts]
        assert len(parts) > 1 and sorted(i for part in parts for i in part) == list(range(channels))
        assert {filters.dtype for _, filters, _ in product.parts} == {torch.float32}
        sums = conv(x.permute(0, 2, 3, 1).to(torch.int8)).q
        assert sums.dtype == torch.int32 and sums.unique().tolist() == [channels * 127**2]
        agree(quantised, x)


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5]),
    st.integers(0, 2**31),
    st.sampled_from([1, 128]),
)
def test_parts_cover_the_channels_and_stay_below_the_limit(channels, out, kernel, seed, half):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (out, channels, kernel, kernel), generator=generator, dtype=torch.int8)
    limit = half * 128 * kernel**2 * 3  # a channel at its largest always fits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integer, "FLOAT32", limit)
        parts = integer.chunks(half * weight.long().abs().sum((2, 3)))
    assert [i for part in parts for i in range(channels)[part]] == list(range(channels))
    for part in parts:
        assert half * int(weight[:, part].long().abs().sum((1, 2, 3)).max()) <= limit
    if half * int(weight.long().abs().sum((1, 2, 3)).max()) <= limit:
        assert len(parts) == 1


def test_double_precision_is_left_for_kernels_beyond_float32(monkeypatch):
    monkeypatch.setattr(integer, "int8_pays", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", no_int8)
    weight, x = torch.full((1, 1, 33, 33), 127.0), torch.full((1, 1, 33, 34), 127.0)
    quantised = with_weights(x, weight)
    (conv,) = quantised._executor.convolutions.values()
    assert conv.products[0].parts[0][1].dtype == torch.float64
    assert conv(x.permute(0, 2, 3, 1).to(torch.int8)).q.unique().tolist() == [33**2 * 127**2]
    agree(quantised, x)


@pytest.mark.parametrize(
    ("architecture", "units", "exact", "pays"),
    [
        ("x86_64", ("avx2", "avx_vnni"), True, True),
        ("x86_64", ("amx_int8",), False, False),
        ("x86_64", ("avx2",), True, False),
        ("x86_64", (), True, False),
        ("arm64", ("neon", "dot"), True, False),
    ],
)
def test_int8_products_are_taken_where_they_are_fast_and_exact(monkeypatch, architecture, units, exact, pays):
    machine = dataclasses.replace(this_machine(), architecture=architecture, units=units)
    monkeypatch.setattr(integer, "this_machine", lambda: machine)
    monkeypatch.setattr(integer, "int8_exact", lambda: exact)
    assert integer.int8_pays.__wrapped__() is pays


@pytest.mark.parametrize("offset", ["first", "second"])
def test_saturating_hardware_is_found_out(monkeypatch, offset):
    """Units without VNNI move one factor to unsigned and saturate the sum of two products at 16 bits."""

    def pairwise(a, b):
        a, b = a.int(), b.int()
        if offset == "first":
            products, rest = (a + 128)[:, :, None] * b, -128 * b.sum(0)
        else:
            products, rest = a[:, :, None] * (b + 128), -128 * a.sum(1, keepdim=True)
        return products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1).sum(1) + rest

    monkeypatch.setattr(torch, "_int_mm", pairwise)
    assert not integer.int8_exact()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: a.int() @ b.int())
    assert integer.int8_exact()


# --- the other operators --------------------------------------------------------------------------


def conv(ci=4, co=4, kernel=3):
    return nn.Conv2d(ci, co, kernel, padding=kernel // 2)


def iadd(net, x):
    y = net.a(x)
    z = net.b(y)
    y += z
    return net.c(y)


def up(factor, mode="bilinear"):
    return nn.Upsample(scale_factor=factor, mode=mode)


OPERATORS = {
    "max pool": nn.Sequential(conv(), nn.MaxPool2d(2), conv()),
    "max pool, padded": nn.Sequential(conv(), nn.MaxPool2d((3, 2), (2, 1), (1, 0))),
    "max pool, ceil": nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((1, 4), (1, 3), ceil_mode=True)),
    "mean": nn.Sequential(conv(), nn.AvgPool2d(2), nn.LeakyReLU(SLOPE), nn.AvgPool2d((4, 1), (1, 2))),
    "nearest": nn.Sequential(conv(), up((3, 2), "nearest"), nn.LeakyReLU(SLOPE)),
    "nearest, to a size": Net(lambda net, x: F.interpolate(x, size=(32, 24))),
    "bilinear 2": nn.Sequential(conv(), up(2), conv()),
    "bilinear 4": nn.Sequential(up(4), nn.ReLU()),
    "bilinear 8": nn.Sequential(up(8)),
    "bilinear, rectangular": nn.Sequential(up((1, 4)), nn.LeakyReLU(SLOPE), up((2, 1))),
    "bilinear into concat": Net(lambda net, x: torch.cat([x, net.u(net.a(x))], 1), a=nn.Conv2d(4, 3, 4, 2, 1), u=up(2)),
    "pad": nn.Sequential(conv(), nn.ZeroPad2d((1, 2, 0, 3)), conv(), nn.ZeroPad2d((-1, 2, 1, -2))),
    "shuffle": nn.Sequential(conv(4, 12), nn.LeakyReLU(SLOPE), nn.PixelShuffle(2), conv(3, 4)),
    "shuffle of the input": nn.Sequential(nn.PixelShuffle(2), nn.LeakyReLU(SLOPE)),
    "add": Net(lambda net, x: net.a(x) + net.b(net.a(x)) + x, a=conv(), b=conv()),
    "add to itself": Net(lambda net, x: (y := net.a(x)) + y, a=conv()),
    "add in place": Net(iadd, a=conv(), b=conv(), c=conv()),
    "concat": Net(lambda net, x: net.c(torch.cat([x, y := net.a(x), net.b(y)], 1)), a=conv(), b=conv(), c=conv(12)),
    "concat, one twice": Net(lambda net, x: torch.cat([y := F.leaky_relu(net.a(x), SLOPE), y], 1), a=conv()),
    "activation alone": nn.Sequential(nn.LeakyReLU(SLOPE), nn.LeakyReLU(SLOPE), nn.ReLU(), conv()),
    "activation of two": Net(lambda net, x: torch.cat([y := net.a(x), F.leaky_relu(y, SLOPE)], 1), a=conv()),
    "ReLU6": nn.Sequential(conv(), nn.ReLU6(), conv(), nn.ReLU6(inplace=True)),
    "ReLU6 alone": nn.Sequential(nn.ReLU6(), nn.ReLU(), nn.ReLU6(), conv()),
    "ReLU6 into a sum": Net(
        lambda net, x: torch.relu(F.relu6(net.a(x)) + F.relu6(y := net.b(x))) + y, a=conv(), b=conv()
    ),
    "padding by a word": nn.Sequential(nn.Conv2d(4, 4, (2, 3), padding="same"), nn.Conv2d(4, 4, 3, padding="valid")),
    "twice": Net(lambda net, x: net.a(F.relu(net.a(x))), a=conv()),
    "nothing": nn.Identity(),
}


def moved(name):
    """The network of an operator with its positions moved at random, four times, and a batch."""
    torch.manual_seed(0)
    for module in OPERATORS[name].modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    x = noise(2, 4, 8, 12)
    quantised = quantise(OPERATORS[name], [x])
    for seed in range(4):
        yield spread(quantised, seed), x


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name):
    for quantised, x in moved(name):
        agree(quantised, x)


@pytest.mark.parametrize("name", ["max pool", "max pool, ceil", "mean", "nearest", "bilinear 2", "pad"])
def test_image_of_another_size_than_the_captured(name):
    quantised = quantise(OPERATORS[name], [noise(2, 4, 8, 12)])
    agree(quantised, noise(3, 4, 13, 9))


HOSTS = {
    "tanh": nn.Sequential(conv(), nn.Tanh()),
    "tanh between": nn.Sequential(conv(), nn.Tanh(), conv()),
    "tanh, ReLU": nn.Sequential(conv(), nn.Tanh(), nn.ReLU(), conv()),
    "sigmoid, LeakyReLU": nn.Sequential(conv(), nn.Sigmoid(), nn.LeakyReLU(SLOPE)),
    "clamp, shuffle": Net(lambda net, x: F.pixel_shuffle(net.a(x).clamp(-0.4, 0.3), 2), a=conv()),
    "tanh into concat": Net(lambda net, x: torch.cat([x, torch.tanh(net.a(x))], 1), a=conv()),
    "tanh of a map that goes on": Net(lambda net, x: torch.tanh(y := net.a(x)) + net.b(y), a=conv(), b=conv()),
}


@pytest.mark.parametrize("name", HOSTS)
def test_host_operator_computes_in_float(name):
    """Its float32 values are the fake-quantised network's, so what is rounded after it is as well."""
    x = noise(2, 4, 8, 12)
    quantised = quantise(HOSTS[name], [x])
    maps = {}
    assert torch.equal(quantised.integer(x, keep=maps), quantised.fake(x))
    for key, value in quantised.activations(x).items():
        assert torch.equal(maps[key] * 2.0 ** -quantised.fix_positions[key], value), key


# --- whole networks -------------------------------------------------------------------------------

NETWORKS = {
    "generator": lambda: Generator(width=4, levels=3, out_channels=1),
    "pix2pix": lambda: Generator(width=4, levels=3, order="pix2pix", slope=SLOPE),
    "unet": lambda: UNet(filters=(4, 4, 6, 6), scale=2),
    "srunet": lambda: SRUNet(n_filters=4, layer_multiplier=0.5, downsample=0.75),
    "folded": lambda: reparametrise(SRUNet(n_filters=4, layer_multiplier=0.5, residual=False)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_in_integers_is_the_fake_quantised_one(name, arithmetic):
    torch.manual_seed(0)
    x = noise(3, 3, 16, 24) / 2
    net = NETWORKS[name]()
    net(x)  # running statistics
    quantised = quantise(net.eval(), [x])
    out = quantised.integer(x)
    assert torch.equal(out, quantised.fake(x)) and out.std() > 0
    for batch in x.split(1):
        assert torch.equal(quantised.integer(batch), quantised.fake(batch))
    agree(quantised.on_device(), x)


def test_executor_goes_with_its_network():
    quantised = quantise(nn.ConvTranspose2d(2, 2, 4, 2, 1), [noise(2, 2, 4, 4)])
    quantised.integer(noise(2, 2, 4, 4))
    held = weakref.ref(next(iter(quantised._executor.convolutions.values())))
    assert held() is not None
    del quantised
    gc.collect()
    assert held() is None


def test_ties_go_up_and_not_to_even():
    """By hand: 0.5, 1.5, -0.5, -1.5 steps become 1, 2, 0, -1."""
    net = constant(nn.Conv2d(1, 1, 1, bias=False), 1.0)
    x = torch.tensor([0.5, 1.5, -0.5, -1.5]).reshape(1, 1, 2, 2)
    quantised = quantise(nn.Sequential(net), [x]).moved({"input": 1, "0.weight": 0, "0": 0})
    assert quantised.integer(x).flatten().tolist() == [1, 2, 0, -1]
    inputs = quantised.moved({"input": 0})
    assert inputs.integer(x).flatten().tolist() == [1, 2, 0, -1]


def test_bilinear_weights_by_hand():
    quantised = quantise(nn.Sequential(up(2)), [torch.rand(2, 1, 2, 2)]).moved({"input": 0, "0": 4})
    out = quantised.integer(torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]]))
    assert out[0, 0].tolist() == list(itertools.repeat([0, 1, 3, 4], 4))
