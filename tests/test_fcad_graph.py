"""Analysis and construction: the decoder's printed figures, torchvision's counts, and every way to be refused."""

import contextlib
import dataclasses
import itertools
import math
from typing import NamedTuple

import pytest
import torch
from fcad_decoder import decoder_space
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from i2ilib import models
from i2ilib.errors import I2IError, IntegrityError
from i2ilib.fcad import Config, analyse, construct, evaluate
from i2ilib.models.codec_avatar import CodecAvatarDecoder
from i2ilib.runtime import quiet, require

FRAME = torch.zeros(1, 3, 8, 8)


def conv(ci, co, kernel=3, **fields):
    return nn.Conv2d(ci, co, kernel, padding=kernel // 2, **fields)


def meta(make, *shapes):
    """Graph of a network without memory for its weights."""
    with torch.device("meta"):
        return analyse(make(), tuple(torch.zeros(shape) for shape in shapes))


def filled(net):
    """Exporters drop biases of zero."""
    for parameter in net.parameters():
        nn.init.uniform_(parameter)
    return net.eval()


def stages(space):
    return [[dataclasses.replace(stage, name="") for stage in pipeline.stages] for pipeline in space.pipelines]


def smallest(space):
    ones = tuple(((1, 1, 1),) * len(pipeline.stages) for pipeline in space.pipelines)
    return evaluate(Config(space, ones, (1,) * len(ones)))


# --- the decoder --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder():
    return meta(CodecAvatarDecoder, (1, 256), (1, 3))


def cut(value, digits=1):
    """As Table I prints: cut, not rounded."""
    return math.floor(value * 10**digits) / 10**digits


def test_decoder_against_table_1(decoder):
    assert decoder.names == ("geometry", "texture", "warp")
    assert [cut(2 * branch.macs / 1e9) for branch in decoder.branches] == [1.9, 11.3, 4.9]
    assert [cut(branch.parameters / 1e6) for branch in decoder.branches] == [1.1, 6.1, 1.9]
    assert max(branch.largest for branch in decoder.branches) == 16 * 1024 * 1024
    shared = decoder.shared
    assert sum(layer.macs > 0 for layer in shared) == 5
    assert round(2 * sum(layer.macs for layer in shared) / 1e9, 1) == 4.5  # 18.1 - 13.6


def test_decoder_operations_of_equation_3(decoder):
    space = construct(decoder)
    assert [round(pipeline.ops / 1e9, 6) for pipeline in space.pipelines] == [1.997660, 11.356512, 0.419430]
    assert round(decoder.ops / 1e9, 6) == 13.773603
    assert round(decoder.parameters / 1e6, 3) == 7.310


@pytest.mark.parametrize("bits", [8, 16])
def test_decoder_is_the_typed_one(decoder, bits):
    space, typed = construct(decoder, bits=bits), decoder_space(bits)
    assert stages(space) == stages(typed)
    assert (space.names, space.order, space.taps) == (typed.names, (0, 1, 2), ())
    assert (space.shared_from(2), space.shared_from(1)) == ({1}, set())


def test_decoder_tables(decoder):
    table = decoder.branch_table()
    assert table.index.tolist() == ["geometry", "texture", "warp", "network"]
    assert table["convolutions"].tolist() == [6, 8, 6, 15]
    rows = decoder.table()
    assert len(rows) == len(decoder.layers)
    assert rows.loc["shared.conv1.conv.conv", "branches"] == "texture, warp"
    assert rows["MMAC"].sum() == pytest.approx(decoder.macs / 1e6)
    untied = {layer.name for layer in decoder.layers if layer.untied}
    assert "texture.conv7.conv.conv" in untied
    assert "texture.conv6.conv" not in untied
    assert decoder.layer("texture.conv7.conv.conv").bias == 16 * 512 * 512


# --- counts of others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gmacs", "parameters"),
    [
        # GMAC and parameters as torchvision documents them with each model's weights ("_ops", "num_params")
        ("alexnet", 0.714, 61_100_840),
        ("vgg16", 15.47, 138_357_544),
        ("resnet18", 1.814, 11_689_512),
        ("mobilenet_v2", 0.301, 3_504_872),
        ("squeezenet1_1", 0.349, 1_235_496),
    ],
)
def test_torchvision(name, gmacs, parameters):
    make = getattr(require("torchvision").models, name)
    weights = require("torchvision").models.get_model_weights(name)["IMAGENET1K_V1"].meta
    assert (weights["_ops"], weights["num_params"]) == (gmacs, parameters)
    graph = meta(make, (1, 3, 224, 224))
    assert graph.macs / 1e9 == pytest.approx(gmacs, abs=0.0006 if gmacs < 10 else 0.006)
    with torch.device("meta"):
        norms = sum(m.num_features for m in make().modules() if isinstance(m, nn.BatchNorm2d))
    assert graph.parameters == parameters - norms  # a batch norm's scale folds into the weights
    assert smallest(construct(graph)).slowest > 0


def test_our_networks():
    """Against products counted by hooks; a generator of 54 M weights on the meta device."""
    for make, shape in (
        (models.Generator, (1, 3, 256, 256)),
        (models.SRUNet, (1, 3, 64, 96)),
        (models.UNet, (1, 3, 64, 96)),
    ):
        with torch.device("meta"):
            net = make()
        graph = analyse(net, torch.zeros(shape, device="meta"))
        hooked = 0

        def count(module, inputs, output):
            nonlocal hooked
            per = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            hooked += module.weight.numel() * per.shape[2] * per.shape[3]

        hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        net.eval()(torch.zeros(shape, device="meta"))
        assert graph.macs == hooked
        assert len(hooks) >= len(construct(graph).pipelines[0].stages)  # published files keep convolutions unused
        assert smallest(construct(graph)).slowest > 0


def test_skips_wait_in_external_memory():
    """A U-Net's skips are written and read once each; the bottleneck comes straight from the stage before."""
    net = models.Generator(width=8, levels=3)
    space = construct(analyse(net, torch.zeros(1, 3, 32, 32)))
    (pipeline,) = space.pipelines
    assert [len(stage.sources) for stage in pipeline.stages] == [0, 1, 1, 1, 2, 2]
    assert pipeline.stages[4].sources == ((0, 3), (0, 1))  # the latest first
    assert [stage.external for stage in pipeline.stages] == [
        3 * 32 * 32,
        0,
        0,
        0,
        2 * 16 * 8 * 8,
        2 * 8 * 16 * 16 + 3 * 32 * 32,
    ]


# --- ONNX ---------------------------------------------------------------------------------------------------


def facts(layer):
    return dataclasses.replace(layer, name="", inputs=(), parameter="")


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_gives_the_same_layers(tmp_path, dynamo):
    net, inputs, path = (
        filled(CodecAvatarDecoder(size=64, width=0.125)),
        (torch.zeros(1, 256), torch.zeros(1, 3)),
        tmp_path / "net.onnx",
    )
    names = ["geometry", "texture", "warp"]
    with quiet("torch.onnx"):
        torch.onnx.export(net, inputs, path, dynamo=dynamo, input_names=["latent", "view"], output_names=names)
    traced, read = analyse(net, inputs), analyse(path)
    assert [facts(layer) for layer in read.layers] == [facts(layer) for layer in traced.layers]
    assert (read.names, read.inputs) == (traced.names, traced.inputs)
    assert stages(construct(read)) == stages(construct(traced))
    assert read.layer("geometry.conv1.conv.conv").untied


class Classifier(nn.Module):
    """What the decoder does not have: pools, batch norm, a grouped convolution, a sum, a linear layer, SiLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, stride=2, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2))
        self.depth, self.point = conv(8, 8, groups=8), nn.Conv2d(8, 8, 1)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.PixelShuffle(2), conv(2, 4))
        self.mean, self.dense, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8 * 4 * 4, 6), nn.Linear(8, 5)

    def forward(self, x):
        y = self.stem(2 * x - 1)
        y = y + torch.relu(self.point(self.depth(y)))
        return {
            "dense": self.dense(y.flatten(1)),
            "head": self.head(self.mean(y).flatten(1)),
            "map": self.up(y).clamp(0, 1),
        }


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_of_other_operators(tmp_path, dynamo):
    net, x, path = filled(Classifier()), torch.zeros(2, 3, 16, 16), tmp_path / "net.onnx"
    with quiet("torch.onnx"):
        torch.onnx.export(net, (x,), path, dynamo=dynamo, output_names=["dense", "head", "map"])
    traced, read = analyse(net, x), analyse(path)
    order = lambda graph: sorted(map(repr, (facts(layer) for layer in graph.layers)))  # noqa: E731
    assert order(read) == order(traced)
    assert [(branch.name, branch.macs, branch.ops) for branch in read.branches] == [
        (branch.name, branch.macs, branch.ops) for branch in traced.branches
    ]
    assert smallest(construct(read)) == smallest(construct(traced))


def test_onnx_with_q_and_dq(tmp_path):
    """A quantised network's file is the float network, with the biases that quantisation folds in."""
    from i2ilib.quant import quantise

    torch.manual_seed(0)
    net, x = models.Generator(width=8, levels=3).eval(), torch.rand(2, 3, 32, 32)
    quantise(net, [x]).to_onnx(tmp_path / "q.onnx")
    read, traced = analyse(tmp_path / "q.onnx"), analyse(net, x)
    strip = lambda graph: [dataclasses.replace(facts(layer), bias=0) for layer in graph.layers]  # noqa: E731
    assert strip(read) == strip(traced)


def test_onnx_errors(tmp_path):
    with pytest.raises(I2IError, match="expected an ONNX file, got none"):
        analyse(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x01not a model")
    with pytest.raises(IntegrityError, match="readable ONNX file"):
        analyse(str(tmp_path / "bad.onnx"))


def onnx_file(path, nodes, initialisers=(), *, size=(1, 3, 8, 8), out=None):
    onnx = require("onnx")
    value = onnx.helper.make_tensor_value_info
    made = [onnx.helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes]
    kept = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in initialisers]
    graph = onnx.helper.make_graph(made, "g", [value("x", 1, size)], [value("y", 1, out)], kept)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    return path


def test_onnx_refusals(tmp_path):
    weight = ("w", torch.zeros(8, 3, 3, 3))
    softmax = [("Conv", ["x", "w"], ["a"], {}), ("Softmax", ["a"], ["y"], {"name": "soft"})]
    with pytest.raises(I2IError, match="soft, operator Softmax"):
        analyse(onnx_file(tmp_path / "a.onnx", softmax, [weight]))
    left = analyse(onnx_file(tmp_path / "a.onnx", softmax, [weight]), leave_ends=True)
    assert ([layer.kind for layer in left.layers], left.host) == (["conv"], ("soft (Softmax)",))
    for op in ("Div",):
        nodes = [("Conv", ["x", "w"], ["a"], {}), (op, ["one", "a"], ["y"], {})]
        with pytest.raises(I2IError, match=f"operator {op}"):
            analyse(onnx_file(tmp_path / "b.onnx", nodes, [weight, ("one", torch.ones(()))]))
    with pytest.raises(I2IError, match=r"expected a known shape, got .*fixed height and width"):
        analyse(onnx_file(tmp_path / "c.onnx", [("Relu", ["x"], ["y"], {})], size=("n", 3, "h", "w")))
    with pytest.raises(I2IError, match="an output that depends on an input"):
        analyse(onnx_file(tmp_path / "d.onnx", [("Relu", ["c"], ["y"], {})], [("c", torch.zeros(3))]))


def test_onnx_split_and_free_batch(tmp_path):
    nodes = [("Split", ["x"], ["a", "b"], {"axis": 1, "num_outputs": 2}), ("Add", ["a", "b"], ["y"], {})]
    graph = analyse(onnx_file(tmp_path / "s.onnx", nodes, size=("n", 4, 8, 8)))
    assert [(layer.kind, layer.out_shape) for layer in graph.layers] == [("add", (2, 8, 8))]
    assert graph.inputs == {"x": (4, 8, 8)}


# --- layers --------------------------------------------------------------------------------------------------


def layer_of(net, x=FRAME, index=0):
    return analyse(net, x).layers[index]


def test_macs_of_every_kind():
    """Against definitions: products that meet an input, no inserted zeros."""
    assert layer_of(conv(3, 8)).macs == 3 * 8 * 9 * 64
    assert layer_of(nn.Conv2d(3, 6, 3, 2, groups=3)).macs == 6 * 9 * 9
    deconv = layer_of(nn.ConvTranspose2d(3, 8, 4, 2, 1))
    assert deconv.macs == 3 * 8 * (4 * 4 // 4) * 16 * 16  # K²/4 products at each output
    assert layer_of(nn.Linear(8, 5), torch.zeros(1, 3, 8)).macs == 3 * 8 * 5
    dense = analyse(nn.Sequential(conv(3, 2), nn.Flatten(), nn.Linear(128, 10)), FRAME).layers[1]
    assert (dense.macs, dense.kernel, dense.in_shape) == (1280, (8, 8), (2, 8, 8))


class Untied(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.conv, self.own = conv(3, 8, bias=False), nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return torch.relu(self.own + self.conv(x))


def test_biases():
    assert (layer_of(Untied((8, 8, 8))).bias, layer_of(Untied((8, 8, 8))).untied) == (512, True)
    assert (layer_of(Untied((1, 8, 1, 1))).bias, layer_of(Untied((1, 8, 1, 1))).untied) == (8, False)
    assert layer_of(Untied(())).bias == 0
    assert layer_of(nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8))).bias == 8


def test_norms_and_reshapes_vanish_and_modules_stay_as_they_are():
    net = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Unflatten(1, (8, 8, 8)), nn.ReLU()
    ).train()
    assert [layer.kind for layer in analyse(net, FRAME).layers] == ["conv", "activation"]
    assert all(module.training for module in net.modules())


def test_swish_by_hand_is_one_activation():
    for function in (lambda y: y * torch.sigmoid(y), lambda y: y.sigmoid() * y, nn.functional.silu):
        graph = analyse(Call(function), FRAME)
        assert [layer.kind for layer in graph.layers] == ["conv", "activation"]
        assert graph.ops == 2 * graph.macs + 8 * 64


def test_inputs_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv(3, 8)

        def forward(self, *, frame, flag=None):
            return self.a(frame), flag

    graph = analyse(Net(), {"frame": FRAME})
    assert (graph.inputs, graph.names) == ({"frame": (3, 8, 8)}, ("branch 1",))


def test_pools_with_indices_and_modules_in_half():
    net = nn.Sequential(conv(3, 8), nn.MaxPool2d(2, return_indices=True))
    graph = analyse(net, FRAME)
    assert graph.layers[1].out_shape == (8, 4, 4)
    assert analyse(conv(3, 8).half(), FRAME.half()).macs == graph.macs


def test_layer_errors():
    graph = analyse(conv(3, 8), FRAME)
    with pytest.raises(I2IError, match="a name of the graph's, got 'x'"):
        graph.layer("x")
    with pytest.raises(I2IError, match="the same factor in height and width, got 2 × 3"):
        analyse(nn.Upsample(scale_factor=(2, 3)), FRAME)
    with pytest.raises(I2IError, match="stride: expected the same in height and width, got 1×2"):
        analyse(nn.Conv2d(3, 8, 3, (1, 2)), FRAME)


class Call(nn.Module):
    """A convolution, then any function of its output."""

    def __init__(self, function):
        super().__init__()
        self.body, self.function = conv(3, 8), function

    def forward(self, x):
        return self.function(self.body(x))


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8)), "^1, operator group_norm: expected convolution.* leave"),
        (nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False)), "operator batch_norm"),
        (Call(lambda y: y * y[:, :, :1]), "operator mul"),
        (Call(lambda y: nn.functional.conv2d(y, y)), "operator conv2d"),
        (Call(lambda y: 1 / y), "operator reciprocal|operator div"),
        (Call(lambda y: y.softmax(1)), "operator softmax"),
        (Call(lambda y: y.mean(1)), "operator mean"),
        (Call(lambda y: torch.cat([y, y], 2)), "operator cat"),
        (Call(lambda y: torch.relu(y) + torch.ones(8, 8)), "a bias behind a convolution, got 8×8 added"),
        (nn.Conv3d(3, 8, 3), "operator conv3d"),
        (Call(lambda y: y if y.sum() > 0 else -y), "Call: expected a module that PyTorch exports, got"),
        (conv(4, 8), "a module that PyTorch exports, got RuntimeError"),
        (Call(lambda y: torch.zeros(3)), "an output that depends on an input"),
    ],
)  # fmt: skip
def test_unknown_operators(net, text):
    x = torch.zeros(1, 3, 4, 4, 4) if isinstance(net, nn.Conv3d) else FRAME
    with pytest.raises(I2IError, match=text):
        analyse(net, x)


def test_operators_at_the_end_can_be_left_to_the_host():
    graph = analyse(Call(lambda y: y.softmax(1)), FRAME, leave_ends=True)
    assert [layer.kind for layer in graph.layers] == ["conv"] and "softmax" in graph.host[0]
    with pytest.raises(I2IError, match="operator softmax"):
        analyse(Call(lambda y: y.softmax(1) + 1), FRAME, leave_ends=True)


def test_bad_arguments():
    with pytest.raises(I2IError, match=r"example_inputs: expected a tensor, a tuple of them, or a dict .*, got None"):
        analyse(conv(3, 8))
    with pytest.raises(I2IError, match="a PyTorch module or the path of an ONNX file, got int"):
        analyse(3, FRAME)
    for strange in (3, "abc", FRAME.numpy()):
        with pytest.raises(I2IError, match=f"example_inputs: expected a tensor, .*, got {type(strange).__name__}"):
            analyse(conv(3, 8), strange)


def test_errors_of_a_module_without_a_message():
    def silent(net, x):
        raise KeyError

    with pytest.raises(I2IError, match="Branches: expected a module that PyTorch exports, got KeyError"):
        analyse(Branches(silent), FRAME)


def test_only_shapes_of_example_inputs_count():
    """Tensors without data serve a module with data, and the reverse."""
    graph = analyse(conv(3, 8), FRAME)
    assert analyse(conv(3, 8), FRAME.to("meta")) == graph
    assert analyse(conv(3, 8).to("meta"), FRAME) == graph


def test_global_pooling_of_a_rectangle():
    """As PyTorch, whatever the shape of the map."""
    net = nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    frame = torch.zeros(1, 3, 8, 6)
    pool = analyse(net, frame).layers[1]
    assert (pool.kind, pool.out_shape, pool.kernel) == ("pool", tuple(net[:2](frame).shape[1:]), (8, 6))
    first, last = construct(analyse(net, frame)).pipelines[0].stages
    assert (first.out_height, first.out_width, last.macs) == (1, 1, 40)


# --- branches ------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Branches(nn.Module):
    """A trunk and two heads, wired by a function."""

    def __init__(self, wire):
        super().__init__()
        self.trunk, self.left, self.right, self.wire = conv(3, 8), conv(8, 4), conv(8, 16), wire
        self.twice, self.four, self.pool = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=4), nn.MaxPool2d(2)

    def forward(self, x):
        return self.wire(self, x)


def space_of(wire, **options):
    return construct(analyse(Branches(wire), FRAME), **options)


def layout(space):
    return {pipeline.name: [(stage.name, stage.sources) for stage in pipeline.stages] for pipeline in space.pipelines}


def test_shared_layers_go_to_the_highest_demand():
    space = space_of(lambda net, x: Pair(net.left(y := net.trunk(x)), net.right(y)))
    assert layout(space) == {"left": [("left", ((1, 0),))], "right": [("trunk", ()), ("right", ((1, 0),))]}
    assert space.order == (1, 0)
    assert smallest(space).branches[0].name == "left"


def test_names_of_outputs():
    def wire(net, x):
        return {"a": net.left(y := net.trunk(x)), "b": (y, [net.right(y)])}

    assert analyse(Branches(wire), FRAME).names == ("a", "b.1", "b.2")
    assert analyse(Branches(lambda net, x: net.trunk(x)), FRAME).names == ("output",)
    assert analyse(Branches(lambda net, x: (x + 1, net.trunk(x))), FRAME).names == ("branch 1", "branch 2")


@pytest.mark.parametrize("twice", [False, True])
def test_branches_that_share_everything(twice):
    """Two outputs of one layer, and the same layers computed twice, make one pipeline."""

    def wire(net, x):
        y = net.trunk(x)
        return y, net.trunk(x) if twice else y

    graph = analyse(Branches(wire), FRAME)
    space = construct(graph)
    assert layout(space) == {"branch 1": [("trunk", ())]}
    assert space.taps == (("branch 2", 0, 0),)
    assert graph.branches[0].macs == graph.branches[1].macs == graph.macs
    assert space.pipelines[0].stages[0].external == 3 * 64 + 8 * 64  # one output, written once


def test_nested_sharing():
    """Two branches share five blocks, a third shares two of those, a fourth nothing; MACs by PyTorch's own counter."""

    class Four(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = (6, 16, 16, 8, 8, 8)
            pairs = itertools.pairwise(sizes)
            self.trunk = nn.ModuleList(nn.Sequential(conv(a, b), nn.ReLU(), nn.Upsample(None, 2)) for a, b in pairs)
            self.texture, self.warp, self.mask, self.geometry = conv(8, 3), conv(8, 2), conv(16, 1), conv(3, 4)

        def forward(self, code, view):
            maps = [torch.cat([code, view], 1)]
            for block in self.trunk:
                maps.append(block(maps[-1]))
            heads = {"texture": self.texture(maps[5]), "warp": self.warp(maps[5]), "mask": self.mask(maps[2])}
            return heads | {"geometry": self.geometry(code)}

    net, inputs = Four(), (torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 6))
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    graph = analyse(net, inputs)
    assert 2 * graph.macs == counter.get_total_flops()
    space = construct(graph)
    assert space.names == ("texture", "warp", "mask", "geometry")
    assert [len(pipeline.stages) for pipeline in space.pipelines] == [6, 1, 1, 1]
    assert [pipeline.stages[0].sources for pipeline in space.pipelines] == [(), ((0, 4),), ((0, 1),), ()]


def test_branches_that_share_nothing():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 8), conv(4, 2)

        def forward(self, x, z):
            return self.a(x), self.b(z)

    graph = analyse(Two(), (FRAME, torch.zeros(1, 4, 6, 6)))
    assert graph.shared == ()
    assert layout(construct(graph)) == {"branch 1": [("a", ())], "branch 2": [("b", ())]}


def test_an_output_on_the_way_and_one_handed_through():
    space = space_of(lambda net, x: {"mid": torch.relu(y := net.trunk(x)), "end": net.right(torch.relu(y)), "in": x})
    assert layout(space) == {"end": [("trunk", ()), ("right", ((0, 0),))]}
    assert space.taps == (("mid", 0, 0), ("in", -1, -1))


def test_shared_weights_count_once_and_work_twice():
    graph = analyse(Branches(lambda net, x: (net.trunk(x), net.trunk(x.relu()))), FRAME)
    assert graph.parameters == 8 * 3 * 9 + 8
    assert graph.macs == 2 * 8 * 27 * 64
    assert [layer.name for layer in graph.layers if layer.macs] == ["trunk", "trunk:2"]


# --- fusion --------------------------------------------------------------------------------------------------


def test_light_stages():
    (pipeline,) = space_of(lambda net, x: net.left(net.pool(torch.relu(net.trunk(x))))).pipelines
    first, second = pipeline.stages
    assert (first.pool, first.out_height, first.upsample, first.light) == (2, 4, 1, True)
    assert first.ops == 2 * first.macs + 8 * 64 + 8 * 16
    assert (second.in_height, second.height) == (4, 4)
    (pipeline,) = space_of(lambda net, x: net.left(net.twice(net.twice(net.trunk(x))))).pipelines
    assert (pipeline.stages[0].upsample, pipeline.stages[0].out_width) == (4, 32)


def test_a_map_used_before_and_after_its_upsampling():
    space = space_of(lambda net, x: (net.left(y := net.trunk(x)), net.right(net.twice(y))))
    assert layout(space) == {"branch 1": [("left", ((1, 0),))], "branch 2": [("trunk", ()), ("right", ((1, 0),))]}
    assert space.pipelines[1].stages[0].upsample == 2
    assert space.pipelines[0].stages[0].in_height == 8


def test_transposed_convolution_with_upsampling():
    net = nn.Sequential(nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.Upsample(scale_factor=2), conv(8, 4))
    first, second = construct(analyse(net, FRAME)).pipelines[0].stages
    assert (first.height, first.made, first.out_height, first.handed_on) == (8, (16, 16), 32, None)
    assert first.macs == 3 * 8 * 16 * 64
    assert second.in_height == 32
    odd = construct(analyse(nn.ConvTranspose2d(3, 8, 3, 2), FRAME)).pipelines[0].stages[0]
    assert odd.handed_on == (17, 17)


def test_concatenation_and_sum_are_wiring():
    def cat(net, x):
        y = net.trunk(x)
        return nn.functional.conv2d(torch.cat([net.left(y), y, x], 1), torch.ones(2, 15, 1, 1))

    stages = space_of(cat).pipelines[0].stages
    assert stages[2].sources == ((0, 1), (0, 0))
    assert stages[2].external == 2 * 8 * 64 + 3 * 64 + 2 * 64  # the trunk's map waits; input read again; output
    space = space_of(lambda net, x: net.left(net.trunk(x)) + net.trunk(x)[:, :4])
    assert [stage.sources for stage in space.pipelines[0].stages] == [(), ((0, 0),)]
    assert space.pipelines[0].stages[1].external == 2 * 8 * 64 + 4 * 64


def test_construction_errors():
    with pytest.raises(I2IError, match="graph: expected at least one convolution or linear layer, got activation"):
        construct(analyse(nn.ReLU(), FRAME))
    for factor in (0.5, 1.5):
        with pytest.raises(I2IError, match=f"expected an up-sampling by a whole number, got {factor}"):
            space_of(lambda net, x, factor=factor: nn.functional.interpolate(net.trunk(x), scale_factor=factor))
    for bits in (4, "8", None):
        with pytest.raises(I2IError, match=f"bits: expected 8 or 16, got {bits!r}"):
            space_of(lambda net, x: net.trunk(x), bits=bits)
    for clock in (0, math.nan, math.inf, "200 MHz", None):
        with pytest.raises(I2IError, match=f"frequency_hz: expected a positive clock in Hz, got {clock!r}"):
            space_of(lambda net, x: net.trunk(x), frequency_hz=clock)
    with pytest.raises(I2IError, match=r"graph: expected a Graph, got Conv2d\. Analyse the network first"):
        construct(nn.Conv2d(3, 4, 3))


class Halves(nn.Module):
    """Two convolutions, the second within a context."""

    def __init__(self, around=contextlib.nullcontext):
        super().__init__()
        self.a, self.b, self.around = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1), around

    def forward(self, x):
        x = self.a(x).relu()
        with self.around():
            return self.b(x).relu()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_change_nothing(off):
    x = torch.zeros(1, 3, 16, 16)
    expected = analyse(Halves(), x)
    assert analyse(Halves(off), x).layers == expected.layers
    whole = Halves()
    whole.forward = off()(whole.forward)
    assert analyse(whole, x).layers == expected.layers
