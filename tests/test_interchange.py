"""The document against AMD's graph and result, the file against the network it came from, every damage refused."""

import copy
import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import shared
from safetensors import safe_open
from safetensors.torch import save_file
from test_quantise import NAMES, TinyED
from torch import nn

from i2ilib import I2IError, IntegrityError
from i2ilib.models import Generator, SRUNet
from i2ilib.models import save as save_model
from i2ilib.quant import interchange as ic
from i2ilib.quant import quantise
from i2ilib.runtime import write_tensors

AMD_KINDS = {
    "Input": "input",
    "Conv2d": "conv2d",
    "ConvTranspose2d": "conv_transpose2d",
    "LeakyReLU": "leaky_relu",
    "ReLU": "relu",
    "Cat": "concat",
    "Tanh": "tanh",
}


@pytest.fixture(scope="module")
def golden():
    return np.load(shared("golden/nndct/tiny_ed.npz"))


@pytest.fixture(scope="module")
def tiny(golden):
    net = TinyED().eval()
    keys = [key for key in golden.files if key.startswith("weights/")]
    net.load_state_dict({key.removeprefix("weights/"): torch.from_numpy(golden[key]) for key in keys})
    return quantise(net, torch.from_numpy(golden["calib"]).split(2))


@pytest.fixture(scope="module")
def theirs():
    return json.loads((shared("golden/nndct") / "tiny_ed_plain_quant_info.json").read_text())


class Mixture(nn.Module):
    """The operators that the other networks here lack, a module called twice, and no bias."""

    def __init__(self):
        super().__init__()
        self.twice, self.grouped = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 12, (1, 3), 1, (0, 1), 1, 3, False)
        self.max, self.mean, self.pad = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.ZeroPad2d((1, 1, 0, 0))
        self.up, self.shuffle = nn.Upsample(scale_factor=2), nn.PixelShuffle(2)

    def forward(self, x):
        y = self.mean(self.pad(self.max(self.twice(self.twice(x)))))
        return torch.sigmoid(torch.clamp(self.shuffle(self.grouped(self.up(y))), min=-0.25))


CASES = {
    "generator": (lambda: Generator(width=4, levels=4, out_channels=1), 32, {}),
    "relu behind concat": (
        lambda: Generator(width=4, levels=3, out_channels=1, order="pix2pix", slope=26 / 256),
        16,
        {},
    ),
    "bicubic residual": (lambda: SRUNet(n_filters=2, layer_multiplier=0.5), 16, {}),
    "mixture": (Mixture, 16, {}),
    "one convolution": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1)), 8, {}),
    "four bits": (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True)), 8, {"bits": 4}),
}


@pytest.fixture
def small():
    torch.manual_seed(0)
    return quantise(nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU()), [torch.rand(2, 3, 8, 8)])


# --- the document ------------------------------------------------------------------------------------------


def test_nodes_equal_the_graph_of_amds_quantiser(tiny):
    nodes = ic.describe(tiny)["nodes"]
    amd = json.loads((shared("golden/nndct") / "tiny_ed_graph.json").read_text())["plain"]
    index = {node["name"]: i for i, node in enumerate(nodes)}
    assert len(nodes) == len(amd)
    for ours, its in zip(nodes, amd, strict=True):
        assert ours["operator"] == AMD_KINDS[its["kind"]]
        assert [index[name] for name in ours["inputs"]] == its["inputs"]
        assert ours["shape"] == its["shape"][1:] and ours["fix_position"] == its["fixpos"]
        assert {role: about["name"] for role, about in ours["parameters"].items()} == its.get("params", {})
    assert {i: nodes[i]["name"] for i in NAMES} == NAMES


def test_attributes_equal_the_exported_xmodel(tiny):
    ops = json.loads((shared("golden/nndct") / "xmodel_ops.json").read_text())["tiny_ed_plain"]["ops"]
    ops = [op for op in ops if op["type"] not in ("fix", "const", "data")]
    for node, op in zip(ic.describe(tiny)["nodes"][1:], ops, strict=True):
        found, its = node["attributes"], op["attrs"]
        if node["parameters"]:
            shape = node["parameters"]["weight"]["shape"]
            transposed = node["operator"] == "conv_transpose2d"
            assert found["stride"] == its["stride"][::-1] and found["dilation"] == its["dilation"][::-1]
            assert found["padding"] == its["pad"][::-2] and found["groups"] == its["group"]  # left, right, top, bottom
            assert shape[2:] == its["kernel"][::-1]
            assert shape[:2][:: -1 if transposed else 1] == [its["out_dim"], its["in_dim"]]
        elif node["operator"] == "leaky_relu":
            assert found["slope"] == its["alpha"]


def test_shifts_bring_the_sum_to_the_result(tiny):
    nodes = {node["name"]: node for node in ic.describe(tiny)["nodes"]}
    e1, d3 = nodes["e1"], nodes["d3"]
    assert (e1["shift_cut"], e1["shift_bias"]) == (6 + 9 - 5, 6 + 9 - 9)  # fp: input 6, weight 9, a1 5, bias 9
    assert (d3["shift_cut"], d3["shift_bias"]) == (5 + 8 - 5, 5 + 8 - 7)  # rounded at the concat that reads it
    assert all(("shift_cut" in node) == node["operator"].startswith("conv") for node in nodes.values())


def test_document_is_json_and_says_the_scheme(small, tmp_path):
    path = ic.to_json(small, tmp_path / "small.json")
    document = json.loads(path.read_text())
    assert document == ic.describe(small)
    assert (document["format"], document["version"]) == ("i2ilib.quantised", 1)
    assert document["scheme"]["saturation"] == [-128, 127] and document["scheme"]["bits"] == 8
    assert document["input"] == {"name": "input", "shape": [3, 8, 8]}
    assert document["output"]["shape"] == [2, 8, 8]


def test_shorthands_are_spelled_out():
    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = nn.functional.pad(nn.functional.max_pool2d(self.conv(x), 2), (1, 2))
            return torch.cat([y, y], -3)

    nodes = {n["operator"]: n["attributes"] for n in ic.describe(quantise(Short(), [torch.rand(2, 3, 8, 8)]))["nodes"]}
    assert nodes["max_pool2d"]["stride"] == nodes["max_pool2d"]["kernel"] == [2, 2]
    assert nodes["pad"]["padding"] == [1, 2, 0, 0] and nodes["concat"] == {"axis": 1}


def test_a_graph_without_words_is_refused(small):
    relu = next(node for node in small.folded.graph.nodes if node.target is torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.gelu.default
    with pytest.raises(I2IError, match=r"operator from .*gelu"):
        ic.describe(small)
    relu.target = torch.ops.aten.add.Tensor
    relu.args = (next(node for node in small.folded.graph.nodes if node.op == "get_attr"), relu.args[0])
    with pytest.raises(I2IError, match="a constant"):
        ic.describe(small)


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_network_computes_the_same_to_the_bit(case, tmp_path):
    make, size, options = CASES[case]
    torch.manual_seed(0)
    x = torch.rand(3, 3, size, size) * 2 - 1
    saved = quantise(make().eval(), [x], **options)
    loaded = ic.load(ic.save(tmp_path / "net.safetensors", saved))
    assert loaded.fix_positions == saved.fix_positions and loaded.bits == saved.bits
    assert ic.describe(loaded) == ic.describe(saved)
    assert torch.equal(loaded.fake(x), saved.fake(x)) and torch.equal(loaded.integer(x), saved.integer(x))
    assert loaded.fake(x).std() > 0
    if options:
        return  # engines have 8 bits
    results = []
    for net in (saved, loaded):
        session = onnxruntime.InferenceSession(net.to_onnx(tmp_path / "net.onnx"))
        results.append(session.run(None, {"x": x.numpy()})[0])
    np.testing.assert_array_equal(*results)


def test_the_float_network_of_a_loaded_one_is_the_rounded_one(small, tmp_path):
    loaded = ic.load(ic.save(tmp_path / "net.safetensors", small))
    for folded, rounded in zip(loaded.folded.parameters(), small.graph.parameters(), strict=True):
        assert torch.equal(folded, rounded)
    assert not torch.equal(next(loaded.folded.parameters()), next(small.folded.parameters()))


def test_the_file_holds_amds_integers(tiny, golden, tmp_path):
    path = ic.save(tmp_path / "tiny.safetensors", tiny)
    with safe_open(path, "np") as file:
        names = [key.removeprefix("plain/param_int8/") for key in golden.files if "plain/param_int8/" in key]
        assert set(file.keys()) == set(names)
        for name in names:
            integers = file.get_tensor(name)
            assert integers.dtype == np.int8
            np.testing.assert_array_equal(integers, golden[f"plain/param_int8/{name}"])
        assert json.loads(file.metadata()[ic.FORMAT]) == ic.describe(tiny)
    out = ic.load(path).fake(torch.from_numpy(golden["test"]))
    np.testing.assert_allclose(out, golden["plain/quant_out"], atol=1e-6)


def test_wrong_and_damaged_files_are_refused(small, tmp_path):
    with pytest.raises(I2IError, match=r"\.safetensors"):
        ic.save(tmp_path / "net.json", small)
    with pytest.raises(I2IError, match="no file"):
        ic.load(tmp_path / "none.safetensors")
    save_model(tmp_path / "float.safetensors", Generator(width=2, levels=2))
    with pytest.raises(IntegrityError, match="without the description"):
        ic.load(tmp_path / "float.safetensors")
    path = ic.save(tmp_path / "net.safetensors", small)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(IntegrityError):
        ic.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="SHA-256"):
        ic.load(path)


def _set(*keys, to):
    def change(document, integers):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return change


def _rename(to):
    def change(document, integers):
        integers[to] = integers.pop("0.weight")
        document["nodes"][1]["parameters"]["weight"]["name"] = to

    return change


def _drop(document, integers):
    del integers["0.bias"]


def _widen(document, integers):
    integers["0.bias"] = integers["0.bias"].float()


def _double(document, integers):
    document["nodes"].append(dict(document["nodes"][2]))


CONV = ("nodes", 1)
CHANGES = [
    (_set("version", to=2), "of version 1, got i2ilib.quantised of version 2"),
    (_set("format", to="other"), "got other of version 1"),
    (_set(*CONV, "operator", to="conv3d"), "an operator from .*conv3d"),
    (_set(*CONV, "operator", to="batch_norm"), "an operator from .*batch_norm"),
    (_set("nodes", 2, "fix_position", to=None), "fix_positions: expected one for each"),
    (_set(*CONV, "fix_position", to=3), "too many or missing: 0"),
    (_set(*CONV, "parameters", "weight", "fix_position", to=None), "0.weight: expected a fix position"),
    (_set("nodes", 2, "fix_position", to=5.0), "expected a fix position, got 5.0"),
    (_set(*CONV, "shift_cut", to=99), "a node that PyTorch makes"),
    (_set(*CONV, "shape", to=[2, 8, 9]), "a node that PyTorch makes"),
    (_set(*CONV, "attributes", "padding", to=[0, 0]), "a node that PyTorch makes"),
    (_set(*CONV, "attributes", "stride", to="[__import__('os')]"), "attributes of numbers"),
    (_set(*CONV, "attributes", "stride", to=["x", "y"]), "attributes of numbers"),
    (_set(*CONV, "attributes", to={}), "KeyError"),
    (_set(*CONV, "inputs", to=["nobody"]), "KeyError: 'nobody'"),
    (_set("scheme", "bits", to=16), "bits"),
    (_set("scheme", "saturation", to=[0, 255]), "scheme, input or output"),
    (_set("input", "shape", to=[4, 8, 8]), "a model that PyTorch can export"),
    (_set("output", "name", to="0"), "got"),
    (_rename('weight"); raise SystemExit(); ("'), "a name of letters"),
    (_rename("training.weight"), "training"),
    (_drop, "too many or missing: .'0.bias'"),
    (_widen, "0.bias: expected int8"),
    (_double, "that the output depends on"),
]


@pytest.mark.parametrize(("change", "match"), CHANGES)
def test_a_description_that_makes_no_network_is_refused(small, tmp_path, change, match):
    path = ic.save(tmp_path / "net.safetensors", small)
    with safe_open(path, "pt") as file:
        integers, document = {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()[ic.FORMAT])  # noqa: SIM118
    change(document, integers)
    write_tensors(path, integers, {ic.FORMAT: json.dumps(document)})  # with a checksum that fits
    with pytest.raises(IntegrityError, match=match):
        ic.load(path)


def test_a_description_that_is_no_json_is_refused(tmp_path):
    for text in ("{", "[]", "null", '{"format": "i2ilib.quantised", "version": 1}'):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {ic.FORMAT: text})
        with pytest.raises(IntegrityError, match="a network written by"):
            ic.load(tmp_path / "a.safetensors")


# --- beside AMD's result -----------------------------------------------------------------------------------


def test_no_difference_to_amds_result(tiny, theirs):
    document = ic.describe(tiny)
    assert ic.compare(document, theirs) == []
    pairs = ic.match(document, theirs)
    assert pairs["a2"] == ("TinyED::nndct_leaky_relu_4", 5) and pairs["d3.weight"][0] == "TinyED::d3.weight"
    assert len(pairs) == len(tiny.fix_positions)


def test_differences_are_those_of_equalisation(tiny):
    other = json.loads((shared("golden/nndct") / "tiny_ed_default_quant_info.json").read_text())
    assert ic.compare(ic.describe(tiny), other) == [
        ic.Difference("e3.bias", "TinyED::e3.bias", 10, 9),
        ic.Difference("r3", "TinyED::nndct_relu_6", 5, 4),
    ]


def test_other_names_are_matched_by_order(tiny, theirs):
    document, other = ic.describe(tiny), copy.deepcopy(theirs)
    other["param"] = {
        f"Net::Net/m{i}.{name.rpartition('.')[2]}": v for i, (name, v) in enumerate(theirs["param"].items())
    }
    other["output"] = {f"Net::Net/{i}": value for i, value in enumerate(theirs["output"].values())}
    assert ic.compare(document, other) == []
    other["output"]["Net::Net/3"] = [[8, 1]]
    assert ic.compare(document, other) == [ic.Difference("r3", "Net::Net/3", 5, 1)]


def test_a_position_at_the_convolution_before_a_shuffle_is_the_groups():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2))
    quantised = quantise(net, [torch.rand(2, 3, 8, 8)])
    fix = quantised.fix_positions
    info = {
        "param": {f"N::{name}": [[8, fix[name]]] for name in ("0.weight", "0.bias")},
        "output": {"N::nndct_input_0": [[8, fix["input"]]], "N::nndct_conv2d_1": [[8, fix["1"]]]},
    }
    assert ic.compare(ic.describe(quantised), info) == []


def _renamed(section, old, new):
    return lambda info: info.update(
        {section: {new if name == old else name: value for name, value in info[section].items()}}
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda info: info["output"].popitem(), "expected 7 rounded tensors: input, a1.*got 6"),
        (lambda info: info["param"].popitem(), "expected 12 rounded tensors.*got 11"),
        (_renamed("output", "TinyED::nndct_relu_6", "TinyED::nndct_concat_6"), "a relu or conv2d, as r3, got concat"),
        (_renamed("param", "TinyED::e1.weight", "Net::x.bias"), "a weight, as e1.weight, got bias"),
        (lambda info: info["output"].update({"TinyED::nndct_input_0": [[16, 6]]}), "8 bits and a fix position"),
        (lambda info: info["output"].update({"TinyED::nndct_input_0": [[8, None]]}), "8 bits and a fix position"),
        (lambda info: info["output"].update({"TinyED::nndct_input_0": 6}), "'output' with"),
        (lambda info: info.pop("param"), "'param' with"),
    ],
)
def test_results_of_other_networks_are_refused(tiny, theirs, change, match):
    other = copy.deepcopy(theirs)
    change(other)
    with pytest.raises(I2IError, match=match):
        ic.compare(ic.describe(tiny), other)
