"""The inspector against AMD's operator filter (golden device assignments), every rule, and every error."""

import dataclasses
import json

import pytest
import torch
from conftest import shared
from torch import nn

from i2ilib import I2IError
from i2ilib.models import Generator, SRUNet, UNet, reparametrise
from i2ilib.quant.inspect import TARGETS, inspect

SLOPE = 13 / 128
ISA2, DWC = "DPUCAHX8H_ISA2", "DPUCAHX8H_ISA2_DWC"
NAMES = {  # the filter's: ours
    "conv_transpose_2d": "conv_transpose2d",
    "maxpool": "max_pool2d",
    "resize": "upsample_bilinear2d",
    "elemwise_add": "add",
    "aten::upsample_bicubic2d": "upsample_bicubic2d",
}


class Probe(nn.Module):
    """The golden data's ``sr_probe``, by its list of operators."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(16, 12, 3, 1, 1)
        self.a1, self.r2, self.mp, self.ps = nn.LeakyReLU(SLOPE), nn.ReLU(), nn.MaxPool2d(2), nn.PixelShuffle(2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x):
        skip = self.a1(self.c1(x))
        y = self.up(self.r2(self.c2(self.mp(skip))))
        y = self.ps(self.c3(torch.cat([skip, y], 1)))
        return torch.clamp(y + nn.functional.interpolate(x, scale_factor=2, mode="bicubic"), -1, 1)


def pix2pix(*, slope, in_place):
    net = Generator(width=64, out_channels=1, order="pix2pix", slope=slope)
    for module in net.modules():
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            module.inplace = in_place
    return net


@pytest.fixture(scope="module")
def golden_models():
    return {
        "pix2pix_ngf64_slope13_128_inplace": (pix2pix(slope=SLOPE, in_place=True), 256),
        "pix2pix_ngf64_slope0.2_inplace": (pix2pix(slope=0.2, in_place=True), 256),
        "pix2pix_ngf64_slope13_128": (pix2pix(slope=SLOPE, in_place=False), 256),
        "sr_probe_slope13_128": (Probe(), 32),
    }


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "U50"])
def test_devices_equal_the_operator_filter_except_activations_by_themselves(golden_models, target):
    golden = json.loads((shared("golden/nndct") / "device_assignment.json").read_text())[target]
    assert set(golden) == set(golden_models)
    for name, (net, size) in golden_models.items():
        expected, before = [], "input"
        for operator, shape, device, *_ in golden[name]:
            if operator in ("input", "permute"):  # no operators of the network; permute: layout around bicubic
                continue
            # The filter looks at one operator at a time; no engine runs an activation behind a concat, or one whose
            # convolution is read a second time (by the skip, if the activation does not write in place).
            by_itself = operator == "relu" and before == "concat"
            by_itself |= operator == "leaky_relu" and name == "pix2pix_ngf64_slope13_128"
            n, h, w, c = (shape[0], *shape[2:], shape[1]) if operator.startswith("aten::") else shape
            expected.append((NAMES.get(operator, operator), (n, c, h, w), "cpu" if by_itself else device))
            before = operator
        rows = inspect(net, target, torch.zeros(1, 3, size, size)).rows
        found = [(r.operator, r.shape, r.device.lower()) for r in rows if r.operator != "batch_norm"]
        assert found == expected
        assert all(r.device == "DPU" for r in rows if r.operator == "batch_norm")


def test_diagnose_change_diagnose():
    first = inspect(Generator(width=4, order="pix2pix"))
    assert [r.operator for r in first.cpu].count("relu") == [r.operator for r in first.cpu].count("leaky_relu") == 7
    assert first.splits == 15  # 14 activations cut the chain
    assert all("26/256" in r.remedy and "order='dpu'" in r.remedy for r in first.cpu if r.operator == "leaky_relu")
    second = inspect(Generator(width=4, order="pix2pix", slope=26 / 256))
    assert len(second.cpu) == len(first.cpu) and not any("26/256" in r.remedy for r in second.cpu)
    third = inspect(Generator(width=4, dropout=0.5))
    assert [(r.operator, r.remedy) for r in third.cpu] == [("tanh", "")] and third.splits == 1
    assert {r.operator for r in third.rows if r.device == "none"} == {"dropout"}
    assert "one piece" in third.verdict and "tanh" in third.verdict


@pytest.mark.parametrize("net", [SRUNet(n_filters=8), UNet(filters=(8, 8, 16, 16)), reparametrise(SRUNet(n_filters=8))])
def test_enlargers_need_another_target_and_the_host(net):
    whole = inspect(net, "U50")
    assert [r.operator for r in whole.cpu] == ["upsample_bilinear2d"] * 3 + ["upsample_bicubic2d", "clamp"]
    assert whole.cpu[-1].remedy == "" and all("DWC" in r.remedy for r in whole.cpu[:3])
    core = type(net)(dataclasses.replace(net.config, residual=False))
    assert inspect(core, "U50").splits == 4 and inspect(core, DWC).cpu == [] and inspect(core, DWC).splits == 1
    assert "bicubic" in {r.operator: r for r in inspect(net, DWC).cpu}["upsample_bicubic2d"].operator


def test_folding_removes_the_sums():
    net = SRUNet(n_filters=8, residual=False)
    sums = [sum(r.operator == "add" for r in inspect(m).rows) for m in (net, reparametrise(net))]
    assert sums[0] > 0 == sums[1]


conv, up = nn.Conv2d, nn.ConvTranspose2d


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("layers", "reason", "remedy"),
    [
        ([conv(3, 4, 17)], "kernel 17×17 exceeds 16", "at most 16"),
        ([conv(3, 4, 5, 5)], "stride 5×5 exceeds 4", "at most 4"),
        ([conv(3, 4097, 1)], "4097 out exceed 4096", "4096 channels"),
        ([conv(3, 2064, 1), conv(2064, 2, 4)], "4·4·ceil(2064/16) = 2064 > 2048", "smaller kernel"),
        ([conv(3, 4, 1), conv(4, 4, 1, groups=2)], "2 groups", "groups=1"),
        ([conv(3, 3, 1, groups=3)], "depthwise", "DWC"),
        ([conv(3, 2100, 1), conv(2100, 2, 3, dilation=2)], "dilation 2", "dilation=1"),
        ([up(3, 4, 3, 2, 1, output_padding=1)], "output_padding", "kernel 4, stride 2"),
        ([up(3, 4, 3, dilation=2)], "dilation 2", "dilation=1"),
        ([up(3, 4, 17, 17)], "stride 17×17 exceeds 16", "at most 16"),
        ([nn.ReLU()], "it follows the input", "behind a convolution"),
        ([conv(3, 4, 1), nn.MaxPool2d(2), nn.ReLU()], "it follows max_pool2d", "before max_pool2d"),
        ([conv(3, 4, 1), nn.ReLU(), nn.ReLU()], "it follows relu", "behind a convolution"),
        ([conv(3, 4, 1), Function(lambda x: nn.functional.leaky_relu(x + x, SLOPE))], "only ReLU", "before the sum"),
        ([conv(3, 4, 17), nn.ReLU()], "part of 0", "move 0"),
        ([conv(3, 4, 17), nn.BatchNorm2d(4), nn.ReLU()], "part of 0", "move 0"),
        ([nn.BatchNorm2d(3)], "no convolution before", "behind a convolution"),
        ([conv(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)], "each batch", "track_running_stats"),
        ([conv(3, 4, 1), Function(lambda x: x + 1)], "sum", "bias"),
        ([conv(3, 4, 1), Function(lambda x: torch.add(x, x, alpha=2))], "sum", "bias"),
        ([conv(3, 4, 1), Function(lambda x: torch.cat([x, x], 2))], "another axis", "dim=1"),
        ([nn.MaxPool2d(9)], "window 9×9 exceeds 8", "at most 8"),
        ([nn.MaxPool2d(2, 9)], "stride 9×9 exceeds 8", "at most 8"),
        ([nn.MaxPool2d(2, dilation=2)], "dilation", "dilation=1"),
        ([nn.AvgPool2d((2, 4))], "not a square", "square"),
        ([nn.AdaptiveAvgPool2d(1)], "not in the operator list", "AvgPool2d"),
        ([nn.Upsample(scale_factor=1.5)], "whole factor", "integer"),
        ([nn.UpsamplingBilinear2d(scale_factor=2)], "align_corners=True", "align_corners=False"),
        ([nn.Conv2d(3, 4, 1), nn.GELU()], "not in the operator list", "26/256"),
        ([nn.Conv2d(3, 4, 1), nn.SiLU(inplace=True)], "not in the operator list", "26/256"),
        ([nn.GroupNorm(1, 3)], "not in the operator list", "BatchNorm2d"),
        ([nn.Linear(32, 4)], "not in the operator list", "1×1"),
        ([Function(lambda x: x * 2)], "not in the operator list", "weights and bias"),
        ([Function(lambda x: x.chunk(3, 1)[1])], "not in the operator list", "listed operators"),
    ],
)
def test_what_keeps_an_operator_off_the_dpu(layers, reason, remedy):
    row = inspect(nn.Sequential(*layers), ISA2, torch.zeros(1, 3, 32, 32)).rows[-1]
    assert row.device == "CPU" and reason in row.reason and remedy in row.remedy


@pytest.mark.parametrize("layer", [nn.ReflectionPad2d(1), nn.ConstantPad2d(1, 0.5), nn.Softmax(1)])
def test_operator_before_the_network_needs_no_second_piece(layer):
    found = inspect(nn.Sequential(layer, conv(3, 3, 1)))
    assert found.rows[0].device == "CPU" and found.rows[0].remedy and found.splits == 1


@pytest.mark.parametrize(
    ("layers", "target"),
    [
        ([conv(3, 4, 16, 4)], ISA2),
        ([conv(3, 4, 3, dilation=2, padding="same")], ISA2),
        ([conv(3, 2048, 1), conv(2048, 2, 4)], ISA2),  # the bank exactly full
        ([conv(3, 3, 3, groups=3), nn.ReLU6()], DWC),
        ([conv(3, 4, 1), nn.Hardtanh(0.0, 6.0)], ISA2),
        ([conv(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.LeakyReLU(SLOPE, inplace=True)], ISA2),
        ([conv(3, 4, 1), Function(lambda x: torch.relu(x + x))], ISA2),
        ([up(3, 4, 16, 16), nn.ReLU()], ISA2),
        ([nn.MaxPool2d(8)], ISA2),
        ([nn.AvgPool2d(4)], ISA2),
        ([nn.Upsample(scale_factor=3)], ISA2),
        ([nn.Upsample(scale_factor=2, mode="bilinear")], DWC),
        ([nn.ZeroPad2d(1), conv(3, 4, 3)], ISA2),
        ([conv(3, 4, 1), Function(lambda x: x.float()), nn.ReLU()], ISA2),
        ([conv(3, 4, 1), nn.PixelShuffle(2)], ISA2),
    ],
)
def test_what_the_dpu_runs(layers, target):
    found = inspect(nn.Sequential(*layers), target, torch.zeros(1, 3, 32, 32))
    assert found.cpu == [] and found.splits == 1 and not any(r.remedy for r in found.rows)


def test_in_place_activation_is_what_the_skip_reads():
    class Skip(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.c, self.a, self.d = conv(3, 4, 3, padding=1), nn.ReLU(inplace), conv(4, 4, 3, padding=1)

        def forward(self, x):
            y = self.c(x)
            z = self.a(y)
            return torch.cat([self.d(z), y], 1)

    class Statement(Skip):
        def forward(self, x):
            y = self.c(x)
            self.a(y)
            return self.d(y)

    assert inspect(Skip(True)).cpu == [] and inspect(Statement(True)).cpu == []
    assert [r.operator for r in inspect(Statement(True)).rows] == ["conv2d", "relu", "conv2d"]
    (row,) = inspect(Skip(False)).cpu
    assert row.tensor == "a" and "c is also read" in row.reason


def test_tanh_counts_only_in_the_middle():
    end, middle = nn.Sequential(conv(3, 3, 1), nn.Tanh()), nn.Sequential(conv(3, 3, 1), nn.Tanh(), conv(3, 3, 1))
    assert inspect(end).cpu[0].remedy == "" and inspect(end).splits == 1
    assert "end" in inspect(middle).cpu[0].remedy and inspect(middle).splits == 2


def test_limits_are_data():
    small = dataclasses.replace(TARGETS[ISA2], name="small", kernel=3)
    assert inspect(conv(3, 4, 4), small).cpu and not inspect(conv(3, 4, 3), small).cpu
    plain = dataclasses.replace(TARGETS[ISA2], activations=("relu",))
    assert "not among" in inspect(nn.Sequential(conv(3, 4, 1), nn.ReLU6()), plain).cpu[0].reason
    assert {name: target.fingerprint for name, target in TARGETS.items()} == {  # from the public target descriptions
        ISA2: "0x20200000010002a",
        DWC: "0x20200000010002b",
        "DPUCAHX8H_ISA2_ELP2": "0x20200000000002e",
        "U50": "0x20200000010002a",
    }


def test_model_stays_as_it_is_and_the_table_shows_all():
    net = nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.GELU()).train()
    found = inspect(net)
    assert net.training and not net[0]._forward_hooks and net[1].num_batches_tracked == 0
    frame = found.frame()
    assert list(frame["device"]) == ["DPU", "DPU", "CPU"] and list(frame["tensor"]) == ["0", "1", "2"]
    assert frame["shape"][0] == (1, 4, 254, 254)  # three channels by the first convolution, 256x256 by default
    text, html = str(found), found._repr_html_()
    for row in found.rows:
        assert row.operator in text and row.reason in text and row.reason in html
    assert found.verdict in text and found.verdict in html and "1 gelu" in found.verdict
    assert found._repr_html_() == html
    assert "nothing" in inspect(nn.Sigmoid(), example=torch.zeros(1, 3, 8, 8)).verdict


class Choosing(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "arguments", "match"),
    [
        (conv(3, 3, 1), {"target": "DPUCZDX8G"}, "DPUCAHX8H_ISA2_DWC or .*got 'DPUCZDX8G'"),
        (nn.ReLU(), {}, "example: expected a tensor"),
        (nn.Sequential(conv(3, 3, 1), Choosing()), {}, "^1: .*depend on values"),
        (Generator(width=4), {"example": torch.zeros(1, 3, 100, 100)}, r"encoder.6.conv: .*Pass an example of a size"),
        (nn.Bilinear(2, 2, 2), {"example": torch.zeros(1, 2, 2, 2)}, "Bilinear: .*input2"),
    ],
)
def test_bad_calls(net, arguments, match):
    with pytest.raises(I2IError, match=match):
        inspect(net, **arguments)
