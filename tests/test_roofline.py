"""The work of a network against PyTorch's own counts; roofs and bounds by hand; times from the engine itself."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from i2ilib import I2IError, IntegrityError
from i2ilib.deploy import roofline
from i2ilib.deploy.roofline import Peaks, Point, Work, bound, peaks, points, whole, work
from i2ilib.models import Generator
from i2ilib.models.analysis import count_macs
from i2ilib.quant import quantise
from i2ilib.quant.export import to_onnx
from i2ilib.runtime import this_machine

MACHINE = Peaks(
    {"int8": 1000.0, "bf16": 400.0, "float32": 100.0},
    {"int8": "x", "bf16": "x", "float32": "x"},
    ((2**10, 200.0), (2**20, 100.0), (2**30, 10.0)),
    "a processor",
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Generator(width=4, levels=5, out_channels=1).eval()


@pytest.fixture(scope="module")
def batch():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def files(net, batch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return to_onnx(net, batch, folder / "float.onnx"), quantise(net, [batch]).to_onnx(folder / "int8.onnx")


def test_work_is_what_pytorch_counts(net, batch, files):
    for file in files:
        todo = work(file, batch.shape)
        assert sum(each.macs for each in todo) == count_macs(net, batch)
        layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert sum(each.weights for each in todo) == sum(layer.weight.numel() for layer in layers)
        assert (todo[0].inputs, todo[0].outputs) == (batch.numel(), 2 * 4 * 32 * 32)
        assert todo[-1].outputs == 2 * 64 * 64
    assert todo[0].bytes("float32") == 4 * (4 * 3 * 16 + batch.numel() + 2 * 4 * 32 * 32)


def test_roof_and_bandwidth_by_hand():
    assert MACHINE.memory_gbs == 10 and MACHINE.cache_gbs == 200
    assert MACHINE.gbs(2**15) == pytest.approx(150)  # halfway in the logarithm
    assert MACHINE.gbs(1) == 200 and MACHINE.gbs(2**40) == 10
    assert MACHINE.roof("int8", 5) == 50 and MACHINE.roof("int8", 500) == 1000
    assert MACHINE.roof("float32", 5, gbs=200) == 100


def test_bound_is_the_sum_over_layers():
    compute = Work("a", macs=10**9, weights=100, inputs=100, outputs=56)  # 256 values, 4 x 256 bytes in float32
    memory = Work("b", macs=1, weights=2**20 - 256, inputs=0, outputs=0)
    assert bound([compute], MACHINE, "float32") == pytest.approx(10.0)  # 1 GMAC at 100 GMAC/s
    assert bound([memory], MACHINE, "int8") == pytest.approx((2**20 - 256) / 100 / 1e6, rel=1e-4)
    both = bound([compute, memory], MACHINE, "int8")  # a working set of 1 MiB: 100 GB/s
    assert both == pytest.approx(1.0 + (2**20 - 256) / 100e6)


def test_points_and_the_whole():
    a, b = Point("a", 4_000_000, 1000, "int8", 2.0), Point("b", 2_000_000, 500, "int8", 1.0)
    assert a.intensity == 4000 and a.gmacs == pytest.approx(2.0)
    total = whole([a, b], "int8")
    assert (total.macs, total.bytes, total.ms) == (6_000_000, 1500, 3.0)
    assert whole([a, b], "int8", ms=6.0, name="INT8").gmacs == pytest.approx(1.0)


@pytest.mark.parametrize(("index", "precision"), [(0, "float32"), (1, "int8")])
def test_points_come_from_the_engine(files, batch, index, precision):
    found = points(files[index], batch, precision=precision, n=2)
    assert [p.macs for p in found] == [w.macs for w in work(files[index], batch.shape)]
    assert {p.precision for p in found} == {precision}
    assert all(0 < p.ms < 1000 and math.isfinite(p.gmacs) for p in found)


def test_peaks_measure_every_precision():
    found = peaks(seconds=0.0, sizes=(2**16, 2**20))
    assert {"int8", "float32"} <= set(found.gmacs) <= {"int8", "bf16", "float32"}
    assert all(rate > 0 for rate in found.gmacs.values()) and found.by.keys() == found.gmacs.keys()
    assert set(found.by.values()) <= {"torch.mm", "torch._int_mm", "OpenVINO convolution"}
    assert [size for size, _ in found.bandwidth] == [2**16, 2**20] and found.cache_gbs > 0


def test_a_precision_the_processor_lacks_does_not_count(monkeypatch):
    monkeypatch.setattr(roofline, "_precisions", lambda compiled: {"relu": "float32"})
    assert roofline._convolution("bf16", 0.0) == 0.0
    monkeypatch.setattr(roofline, "int8_pays", lambda: False)
    assert roofline._product("int8", 0.0) == 0.0
    plain = dataclasses.replace(this_machine(), units=("avx2",))
    monkeypatch.setattr(roofline, "this_machine", lambda: plain)
    assert roofline._product("bf16", 0.0) == 0.0
    monkeypatch.setattr(roofline, "_convolution", lambda precision, seconds: 0.0)
    monkeypatch.setattr(roofline, "_SIDE", 16)
    assert peaks(seconds=0.0, sizes=(2**16,)).by == {"float32": "torch.mm"}


def test_bad_questions(files, batch, tmp_path, monkeypatch):
    for sizes in ((), (2**20, 2**16), (1, 2**20)):
        with pytest.raises(I2IError, match="rising numbers of bytes"):
            peaks(seconds=0.0, sizes=sizes)
    with pytest.raises(I2IError, match="precision: expected int8 or bf16 or float32, got 'int4'"):
        points(files[0], batch, precision="int4")
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(IntegrityError, match="an ONNX network"):
        work(tmp_path / "x.onnx", batch.shape)
    with pytest.raises(IntegrityError, match=r"\(1, 5, 64, 64\)"):
        work(files[0], (1, 5, 64, 64))
    monkeypatch.setattr(roofline, "_precisions", lambda compiled: {})
    with pytest.raises(IntegrityError, match="no time for node"):
        points(files[0], batch)
