"""Design files and the command: what is found is what is written, and what is written can be read back."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from i2ilib.cli import main
from i2ilib.errors import I2IError
from i2ilib.fcad import PLATFORMS, Budget, Config, analyse, construct, design, evaluate
from i2ilib.fcad.ladder import at_level, splits
from i2ilib.fcad.platforms import SOURCES
from i2ilib.fcad.validate import compare


def conv(ci, co, kernel=3, **fields):
    return nn.Conv2d(ci, co, kernel, padding=kernel // 2, **fields)


class Gated(nn.Module):
    """A trunk with a gate, a shortcut, light stages by two and by four, and two outputs."""

    def __init__(self):
        super().__init__()
        self.enter, self.body, self.a, self.b = conv(3, 8), conv(8, 8), conv(8, 4), conv(8, 2, 5)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.two, self.four = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=4)

    def forward(self, x):
        x = self.enter(x)
        y = self.body(x * self.gate(x)) + x
        return {"large": self.b(self.four(y)), "small": self.a(self.two(y))}


@pytest.fixture(scope="module")
def graph():
    return analyse(Gated(), torch.zeros(1, 3, 16, 16))


@pytest.fixture
def found(graph):
    return design.best(graph, construct(graph), Budget(300, 400), (2, 2), name="gated")


def test_a_file_holds_the_design(found, graph, tmp_path):
    file = tmp_path / "design.json"
    design.write(found, file)
    again = design.read(file, graph)
    assert again == found and again.config.space == found.config.space and found.proven
    assert evaluate(again.config) == found.evaluation
    data = json.loads(file.read_text())
    assert (data["format"], data["version"]) == ("i2i-design", 1)
    assert "not modelled" in data["not_modelled"] and data["platform"]["dsp"] == 300
    assert sum(stage["dsp"] for branch in data["branches"] for stage in branch["stages"]) == found.evaluation.dsp


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: "not json", "a design file"),
        (lambda data: [], "a design file"),
        (lambda data: data | {"version": 2}, "version 1, got i2i-design, version 2"),
        (lambda data: data | {"format": "other"}, "i2i-design, version 1, got other"),
        (lambda data: {k: v for k, v in data.items() if k != "branches"}, "whole design file, got KeyError"),
        (lambda data: data["branches"][0].update(fps_modelled=1.0) or data, "the rates and resources of its factors"),
        (lambda data: data["branches"][0]["stages"][0].update(kpf=1) or data, "the rates and resources|factors"),
        (lambda data: data["branches"][0]["stages"][0].update(kpf=0) or data, "factors of stage"),
        (lambda data: data["network"].update(sha256="0" * 64) or data, "the network's layers"),
    ],
)
def test_files_that_are_none(found, graph, tmp_path, change, text):
    changed = change(json.loads(json.dumps(design.to_json(found))))
    file = tmp_path / "bad.json"
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(I2IError, match=text):
        design.read(file, graph)
    with pytest.raises(I2IError, match="expected a design file, got none"):
        design.read(tmp_path / "absent.json")


def test_the_hash_knows_the_layers_not_the_weights(graph):
    again, other = analyse(Gated(), torch.zeros(1, 3, 16, 16)), analyse(Gated(), torch.zeros(1, 3, 16, 32))
    assert design.network_hash(graph) == design.network_hash(again) != design.network_hash(other)


def test_the_smallest_design_for_a_rate_by_brute_force():
    """Every power of two of two small stages."""
    net = analyse(nn.Sequential(conv(2, 4), conv(4, 2)), torch.zeros(1, 2, 8, 8))
    space = construct(net)
    for fps in (3e5, 6e5, 1.2e6):
        found = design.smallest_for(net, space, fps)
        assert min(found.evaluation.delivered) >= fps and found.proven
        tables = [splits(stage, 8).tolist() for stage in space.pipelines[0].stages]
        least = min(
            result.dsp for pair in itertools.product(*tables)
            if (result := evaluate(Config(space, (pair,), (1,)))).slowest >= fps
        )  # fmt: skip
        assert found.evaluation.dsp <= least
    with pytest.raises(I2IError, match=r"room for the target: at least .* DSPs"):
        design.smallest_for(net, space, 1.2e6, budget=Budget(14, 100))
    for bad in (0, -1, (1, 2), "90"):
        with pytest.raises(I2IError, match="fps: expected a positive rate"):
            design.smallest_for(net, space, bad)


def test_the_smallest_design_counts_what_is_delivered(graph):
    """Copies of a fed branch take turns, so each must be faster."""
    space = construct(graph)
    names = space.names
    batch = [1, 1]
    batch[names.index("large")] = 2
    rate = 2000.0
    found = design.smallest_for(graph, space, rate, batch)
    assert min(found.evaluation.delivered) >= rate


def test_finn_takes_chains_with_whole_rows():
    chain = nn.Sequential(conv(4, 8), nn.ReLU(), conv(8, 8, 1), nn.MaxPool2d(2), conv(8, 4))
    net = analyse(chain, torch.zeros(1, 4, 8, 8))
    made = design.finn_folding(design.smallest_for(net, construct(net), 1e4))
    assert set(made) == {"Defaults", *(f"MVAU_hls_{n}" for n in range(3)),
                         *(f"ConvolutionInputGenerator_hls_{n}" for n in range(2))}  # fmt: skip
    for name, ci, co in (("MVAU_hls_0", 4, 8), ("MVAU_hls_1", 8, 8), ("MVAU_hls_2", 8, 4)):
        assert ci % made[name]["SIMD"] == 0 and co % made[name]["PE"] == 0


@pytest.mark.parametrize(
    ("net", "fps", "text"),
    [
        (Gated(), 10.0, "2 branches"),
        (nn.Sequential(conv(3, 8), conv(8, 8, groups=8)), 10.0, "got groups"),
        (nn.ConvTranspose2d(3, 8, 4, 2, 1), 10.0, "a transposed convolution"),
        (nn.Conv2d(3, 2, 3, padding=1), 4e5, "h = "),
    ],
)
def test_finn_has_no_counterpart(net, fps, text):
    traced = analyse(net, torch.zeros(1, 3, 16, 16))
    with pytest.raises(I2IError, match=text):
        design.finn_folding(design.smallest_for(traced, construct(traced), fps))


def test_every_platform_has_a_source():
    assert PLATFORMS.keys() == SOURCES.keys() and all(SOURCES.values())
    assert (PLATFORMS["U50"].bandwidth, PLATFORMS["Z7020"].dsp) == (2528e9, 220)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def onnx_file(tmp_path):
    """A chain as another tool writes it, by ONNX's own helpers."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.random(shape, np.float32), name)
               for name, shape in (("w0", (8, 3, 3, 3)), ("w1", (4, 8, 5, 5)))]  # fmt: skip
    sizes = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Resize", ["b", "", "scales"], ["c"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("Conv", ["c", "w1"], ["y"], name="second", pads=[2] * 4),
    ]  # fmt: skip
    maps = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 32, 32])]
    model = helper.make_model(helper.make_graph(nodes, "chain", maps, out, [*weights, sizes]))
    onnx.checker.check_model(model)
    file = tmp_path / "chain.onnx"
    onnx.save(model, file)
    return file


def test_the_command_on_a_chip(onnx_file, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "png")}
    assert main(["design", str(onnx_file), "--platform", "Z7020", "--out", str(files["json"]), "--csv",
                 str(files["csv"]), "--plot", str(files["png"])]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "no design of its space is better" in said and "LUT, FF, URAM and power are not modelled" in said
    found = design.read(files["json"], analyse(onnx_file))
    assert found.simulated[0] == pytest.approx(found.evaluation.slowest, rel=0.05)
    rows = list(csv.DictReader(files["csv"].open()))
    assert [row["stage"] for row in rows] == [stage.name for stage in found.config.space.pipelines[0].stages]
    assert sum(int(row["dsp"]) for row in rows) == found.evaluation.dsp <= 220
    assert files["png"].read_bytes()[:4] == b"\x89PNG"


def test_the_command_for_a_rate_and_folded(onnx_file, capsys):
    made = {}
    for fold in ("no", "exact", "rounded"):
        assert main(["design", str(onnx_file), "--fps", "2000", "--fold", fold, "--json"]) == 0
        made[fold] = json.loads(capsys.readouterr().out)
        assert made[fold]["branches"][0]["fps_delivered"] >= 2000 and made[fold]["platform"] is None
    assert made["rounded"]["dsp"] <= made["exact"]["dsp"] < made["no"]["dsp"]


def test_the_command_on_a_factory(tmp_path, capsys):
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def plain():\n    return nn.Conv2d(3, 8, 3, padding=1)\n"
        "def whole():\n    return plain(), torch.zeros(1, 3, 8, 8)\nnothing = 3\n"
    )
    chip = ["--dsp", "60", "--bram", "60", "--bandwidth", "4", "--mhz", "100", "--frames", "0"]
    assert main(["design", f"{file}:whole", *chip, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert main(["design", f"{file}:plain", "--input", "1,3,8,8", *chip, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["branches"] == whole["branches"]
    assert whole["frequency_hz"] == 1e8 and whole["platform"]["bandwidth_bit_s"] == 32e9
    for arguments, text in (
        ([f"{file}:plain", *chip], "--input N,C,H,W"),
        ([f"{file}:nothing", *chip], "a function nothing"),
        ([f"{tmp_path}/none.py:f", *chip], "a Python file"),
        ([f"{file}:whole"], "--platform, or --dsp and --bram"),
        ([f"{file}:whole", "--dsp", "60"], "--bram too"),
        ([f"{file}:whole", "--platform", "Z80"], "Z7045"),
        ([f"{file}:whole", *chip[:-2], "--frames", "1"], "0, or 2 or more"),
        ([f"{file}:whole", *chip, "--plot", str(tmp_path / "a.txt")], "a file that ends in"),
        ([f"{file}:whole", *chip, "--out", str(tmp_path)], "a file to write"),
        ([f"{file}:whole", *chip, "--batch", "1.5"], "batch_sizes"),
        ([f"{file}:whole", *chip, "--priorities", "0"], "priorities"),
    ):
        assert main(["design", *arguments]) == 2
        assert text in capsys.readouterr().err


def test_part_of_a_platform(onnx_file, capsys):
    assert main(["design", str(onnx_file), "--platform", "Z7020", "--dsp", "60", "--frames", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["dsp"] <= 60 and told["platform"]["name"] == "Z7020 in part"


# --- causes --------------------------------------------------------------------------------------


def cause(net, shape, cycles, **options):
    space = construct(analyse(net, torch.zeros(1, *shape)))
    return compare(at_level(space, cycles), frames=3, **options)["cause"].tolist()


@pytest.mark.parametrize(
    ("net", "shape", "cycles", "told"),
    [
        (nn.Sequential(conv(1, 2, stride=2), conv(2, 2, 1)), (1, 32, 32), 1, "input comes at one pixel a cycle, for 0"),
        (nn.ConvTranspose2d(1, 2, 4, 4), (1, 8, 8), 1, "output leaves at one pixel a cycle"),
        (nn.Sequential(conv(1, 96), nn.Upsample(scale_factor=4), conv(96, 1, 1, stride=4)), (1, 8, 8), 100,
         "the up-sampling writes 32 channels of one pixel a cycle, behind 0"),
        (conv(8, 8), (8, 16, 16), 1e6, "none"),
        (nn.Sequential(conv(8, 8), nn.MaxPool2d(3, 2), conv(8, 16, 7, stride=3)), (8, 65, 65), 2e4, "bursts"),
    ],
    ids=["input", "output", "light", "none", "bursts"],
)  # fmt: skip
def test_causes_have_names(net, shape, cycles, told):
    (row,) = compared(net, shape, cycles).to_dict("records")
    assert told in row["cause"] and (row["error (%)"] > 0.2) == (told != "none")


def compared(net, shape, cycles, **options):
    return compare(at_level(construct(analyse(net, torch.zeros(1, *shape))), cycles), frames=3, **options)


def test_a_slow_memory_is_told():
    (told,) = compared(nn.Sequential(conv(8, 32), conv(32, 8)), (8, 32, 32), 4000, bandwidth=1e9)["cause"]
    assert "external memory is too slow" in told


def test_a_branch_that_waits_for_another_is_told(graph):
    space = construct(graph)
    wide = at_level(space, [int(2e5 if name == "small" else 1e4) for name in space.names])
    told = compare(wide, frames=3)
    assert told.loc["large", "cause"] == "shares stages with a slower branch, and waits for it"
