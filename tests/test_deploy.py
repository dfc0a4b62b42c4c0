"""Every runner computes the network, in the precision it claims, one batch at a time or several in flight."""

import contextlib
import copy
import dataclasses
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from i2ilib import I2IError, IntegrityError, UnavailableError, models
from i2ilib.deploy import (
    BACKENDS,
    INTEGER,
    Runner,
    backends,
    bench,
    fastest_exact,
    make_runner,
    nncf,
    onnxruntime,
    open_runner,
    openvino,
    probe,
    status,
    verify,
)
from i2ilib.deploy.exact import ExactRunner
from i2ilib.deploy.onnxruntime import OnnxRuntimeRunner
from i2ilib.deploy.openvino import OpenVinoRunner, exact_int8, from_pytorch
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.models import Generator
from i2ilib.quant import quantise
from i2ilib.quant.export import to_onnx
from i2ilib.runtime import available, this_machine


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Generator(width=4, levels=5, out_channels=1)
    with torch.no_grad():
        for _ in range(20):  # running statistics
            net(torch.rand(4, 3, 64, 64) * 2 - 1)
    return net.eval()


@pytest.fixture(scope="module")
def batch():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def reference(net, batch):
    with torch.no_grad():
        return net(batch)


@pytest.fixture(scope="module")
def quantised(net, batch):
    return quantise(net, [batch])


@pytest.fixture(scope="module")
def files(net, quantised, batch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    carried = quantised.to_onnx(folder / "carried.onnx", form="float")
    return to_onnx(net, batch, folder / "float.onnx"), quantised.to_onnx(folder / "int8.onnx"), carried


SPREAD = 0.01  # the outputs here lie within ±0.05; bf16 keeps 8 bits


def make(name, net, files, quantised=None):
    """A runner, and how far from eager float32 it may be."""
    floats, integers, carried = files
    return {
        "float32": lambda: (PytorchRunner(copy.deepcopy(net)), 1e-6),
        "bf16": lambda: (PytorchRunner(copy.deepcopy(net), precision="bf16"), SPREAD),
        "openvino": lambda: (OpenVinoRunner(floats), 1e-5),
        "openvino-bf16": lambda: (OpenVinoRunner(floats, precision="bf16"), SPREAD),
        "int8": lambda: (OpenVinoRunner(integers, precision="int8"), SPREAD),
        "one stream": lambda: (OpenVinoRunner(integers, precision="int8", streams=1), SPREAD),
        "streams": lambda: (OpenVinoRunner(integers, precision="int8", streams=2), SPREAD),
        "many streams": lambda: (OpenVinoRunner(integers, precision="int8", streams=9), SPREAD),
        "int8-float": lambda: (OpenVinoRunner(carried, precision="int8-float"), SPREAD),
        "onnxruntime": lambda: (OnnxRuntimeRunner(floats), 1e-5),
        "onnxruntime-int8": lambda: (OnnxRuntimeRunner(integers, precision="int8"), SPREAD),
        "exact": lambda: (ExactRunner(quantised), SPREAD),
    }[name]()


RUNNERS = ["float32", "bf16", "openvino", "openvino-bf16", "int8", "one stream", "streams", "many streams"]
RUNNERS += ["int8-float", "onnxruntime", "onnxruntime-int8", "exact"]


@pytest.mark.parametrize("name", RUNNERS)
def test_runner_computes_the_network(net, files, batch, reference, name, quantised):
    if name == "openvino-bf16" and not status(name):
        pytest.skip("no unit for bf16 here; the test below sees that it is refused")
    runner, bound = make(name, net, files, quantised)
    with runner:
        assert isinstance(runner, Runner)
        runner.prepare(tuple(batch.shape))
        assert verify(runner, reference, batch) <= bound
        told = runner.describe()
        assert {"target", "device", "precision", "versions"} <= set(told) and told["origin"] == "measured"
        flying = [runner.submit(part) for part in batch.split(1) for _ in range(3)]
        for i, future in enumerate(flying):  # each answer belongs to its question
            assert (future.result() - reference[i // 3]).abs().max() <= bound


@pytest.mark.parametrize(("pays", "label"), [(True, "int8"), (False, "int8-float")])
def test_exact_integers_say_what_they_are_computed_in(quantised, monkeypatch, pays, label):
    monkeypatch.setattr("i2ilib.deploy.exact.int8_pays", lambda: pays)
    assert ExactRunner(quantised).describe()["precision"] == label


@pytest.mark.parametrize("precision", ["int8", "int8-float"])
def test_integers_are_the_exact_ones(quantised, files, batch, precision):
    """Up to the last bits of tanh, which is float."""
    with OpenVinoRunner(files[1 if precision == "int8" else 2], precision=precision) as runner:
        runner.prepare(tuple(batch.shape))
        apart = verify(runner, quantised.integer(batch), batch)
        assert set(runner.precisions().values()) <= ({"i8", "u8"} if precision == "int8" else {"f32"})
    assert apart < 1e-6 or (precision == "int8" and not exact_int8())


def test_a_quantised_network_runs_exactly_by_default(quantised, batch, monkeypatch):
    for exact, precision in ((True, "int8"), (False, "int8-float")):
        monkeypatch.setattr(openvino, "inexact_int8", lambda trouble="" if exact else probe.SATURATES: trouble)
        with from_pytorch(quantised, batch) as runner:
            assert runner.precision == precision
    with pytest.raises(
        I2IError, match=r"precision 'int8': expected exact integers, got sums .* saturate.*Use 'int8-float'"
    ):
        from_pytorch(quantised, batch, precision="int8")
    for model, precision in ((quantised, "float32"), (nn.Identity(), "int8")):
        with pytest.raises(I2IError, match=r"precision: expected 'int8' or 'int8-float'|'float32' or 'bf16'"):
            from_pytorch(model, batch, precision=precision)


def test_a_smaller_batch_is_padded_and_another_size_is_prepared(files, batch, reference):
    with OpenVinoRunner(files[0]) as runner:
        runner.prepare((4, 3, 64, 64))
        torch.testing.assert_close(runner.run(batch[:1]), reference[:1], atol=1e-5, rtol=0)
        assert runner.shape == (4, 3, 64, 64)
        torch.testing.assert_close(runner.run(torch.cat([batch, batch])), torch.cat([reference] * 2), atol=1e-5, rtol=0)
        assert runner.shape == (6, 3, 64, 64)
        with pytest.raises(I2IError, match=r"\[\?,3,64,64\]"):
            runner.run(torch.zeros(1, 4, 64, 64))


def test_float_network_is_not_passed_off_as_int8(files):
    with pytest.raises(IntegrityError, match="every convolution in INT8"):
        OpenVinoRunner(files[0], precision="int8").prepare((1, 3, 64, 64))


def test_bf16_says_how_many_layers_ran_in_it(files, batch, monkeypatch):
    runner = OpenVinoRunner(files[0], precision="bf16")
    assert runner.describe()["ran"] == {}  # nothing is compiled yet
    with runner:
        if status("openvino-bf16"):
            runner.prepare(tuple(batch.shape))
            ran = runner.describe()["ran"]
            assert ran["bf16"] >= 1 and set(ran) <= {"bf16", "float32"}
            assert sum(ran.values()) == len(runner.precisions())
        else:
            with pytest.raises(IntegrityError, match=r"at least one convolution in bf16, got .* all in f32"):
                runner.prepare(tuple(batch.shape))
    mixed = {"a": "bf16", "b": "f32", "c": "bf16"}
    monkeypatch.setattr(openvino, "_told", lambda compiled, key: mixed if key == "runtimePrecision" else {})
    with OpenVinoRunner(files[0], precision="bf16") as runner:
        runner.prepare(tuple(batch.shape))
        told = runner.describe()
        assert (told["precision"], told["ran"]) == ("bf16", {"bf16": 2, "float32": 1})


@pytest.mark.parametrize(("file", "precision", "kind"), [(0, "float32", "float32"), (2, "int8-float", "float32")])
def test_every_layer_is_counted_in_what_it_ran(files, batch, file, precision, kind):
    with OpenVinoRunner(files[file], precision=precision) as runner:
        runner.prepare(tuple(batch.shape))
        assert runner.describe()["ran"] == {kind: len(runner.precisions())}


@pytest.mark.parametrize("bad", [torch.zeros(3, 64, 64), torch.zeros(0, 3, 64, 64), torch.zeros(1, 3, 64, 64).double()])
def test_batches_that_are_none(net, files, bad):
    for name in ("float32", "openvino", "onnxruntime"):
        with make(name, net, files)[0] as runner, pytest.raises(I2IError, match="float32 on the CPU"):
            runner.run(bad)


def test_bad_files_and_precisions(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(IntegrityError, match=r"x\.onnx"):
        OpenVinoRunner(tmp_path / "x.onnx")
    with pytest.raises(I2IError, match="float32 or bf16 or int8"):
        OpenVinoRunner(tmp_path / "x.onnx", precision="int4")
    with pytest.raises(IntegrityError, match=r"x\.onnx"):
        OnnxRuntimeRunner(tmp_path / "x.onnx")
    with pytest.raises(I2IError, match="streams"):
        OpenVinoRunner(tmp_path / "x.onnx", streams=0)
    with pytest.raises(I2IError, match="'float32' or 'bf16'"):
        PytorchRunner(nn.Identity(), precision="float16")


def test_openvino_absent(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError, match="pip install openvino"):
        OpenVinoRunner(tmp_path / "x.onnx")


def test_weights_open_on_every_backend_that_is_here(net, batch, reference, tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(path, net, q_in=1)
    slow = ("torch-compiled", "torch-compiled-bf16")  # one is opened below
    for name in (name for name, there in backends().items() if there and name not in slow):
        runner, meta = open_runner(name, path, patch=64, calibration=lambda meta: [batch])
        with runner:
            assert meta["q_in"] == 1 and verify(runner, reference, batch) < 0.02


def test_fix_positions_travel_with_the_weights(net, quantised, batch, tmp_path):
    path = tmp_path / "m.safetensors"
    models.save(path, net, fix_positions=quantised.fix_positions)
    runner, _ = open_runner("openvino-int8-float", path, patch=64)
    with runner, from_pytorch(quantised, batch, precision="int8-float") as other:
        assert torch.equal(runner.run(batch), other.run(batch))


def test_backends_that_cannot_be(net, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    models.save(path, net)
    with pytest.raises(I2IError, match="torch or "):
        open_runner("tpu", path)
    with pytest.raises(I2IError, match="calibrate"):
        open_runner("exact", path, patch=64)
    monkeypatch.setitem(BACKENDS, "ghost", (("no_such_library",), "a test"))
    with pytest.raises(I2IError, match="no_such_library"):
        open_runner("ghost", path)


def test_what_a_backend_needs_besides(net, batch, monkeypatch):
    for name in INTEGER:
        monkeypatch.setattr("i2ilib.deploy.status", lambda name: True)
        with pytest.raises(I2IError, match=f"{name}.*quantised"):
            make_runner(name, net, batch)
    with pytest.raises(I2IError, match="xmodel"):
        make_runner("u50", net, batch, quantised=object())


def test_reasons_name_what_is_missing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("shutil.which", lambda name: None)
    there = backends()
    assert set(there) == set(BACKENDS) and all(here.reason for here in there.values())
    assert not there["torch-compiled"] and "C++ compiler" in there["torch-compiled"].reason


def test_compiled_computes_the_network(net, batch, reference):
    if not (there := backends()["torch-compiled"]):
        pytest.skip(there.reason)
    with make_runner("torch-compiled", net, batch) as runner:
        assert verify(runner, reference, batch) < 1e-5
        assert runner.describe()["target"] == "PyTorch compiled"


def test_a_failure_in_one_part_is_the_batchs(files, batch, monkeypatch):
    with OpenVinoRunner(files[0], streams=2) as runner:
        runner.prepare(tuple(batch.shape))
        infer = OpenVinoRunner._infer

        def second_fails(self, request, idle, x, y):
            infer(self, request, idle, x, y)
            if len(x) < self.part:
                raise RuntimeError("part two")

        monkeypatch.setattr(OpenVinoRunner, "_infer", second_fails)
        with pytest.raises(RuntimeError, match="part two"):
            runner.run(batch)
        monkeypatch.undo()
        assert runner.run(batch).shape[0] == len(batch)


def test_nncf_is_a_peer_in_int8(net, batch, reference):
    if not (there := available("nncf")):
        pytest.skip(there.reason)
    with nncf.from_pytorch(net, [batch]) as runner:
        if exact_int8():
            assert verify(runner, reference, batch) < SPREAD
            assert set(runner.precisions().values()) <= {"i8", "u8"}
        else:  # without such units OpenVINO may leave some of NNCF's convolutions in float, and says so
            with contextlib.suppress(IntegrityError):
                assert verify(runner, reference, batch) < 5 * SPREAD
    with pytest.raises(I2IError, match="at least one batch"):
        nncf.from_pytorch(net, [])


# --- what this machine's units can do -----------------------------------------------------------------


def test_only_true_sums_are_taken_for_exact():
    """A tie may go either way, by a step of 2^13; a lost carry may not."""
    wanted = probe.network()[2]
    one = (np.arange(wanted.size) == 7).reshape(wanted.shape)
    assert probe.is_exact(wanted) and probe.is_exact(wanted + 2**13 * one)
    assert not probe.is_exact(wanted + 2**14 * one)


@pytest.mark.parametrize("engine", [openvino, onnxruntime])
def test_engines_are_asked_and_are_exact_with_vnni(engine, monkeypatch):
    if {"amx_int8", "avx512_vnni" if engine is onnxruntime else ""} & set(this_machine().units):
        assert engine.exact_int8()
    seen = []
    monkeypatch.setattr(engine, "is_exact", lambda output: bool(seen.append(output)))
    asked = engine.exact_int8 if engine is onnxruntime else engine.inexact_int8
    assert asked.__wrapped__() == (False if engine is onnxruntime else probe.SATURATES)
    assert seen[0].shape == probe.network()[2].shape and np.abs(seen[0]).max() <= 2**20  # int8 times 2^13


def test_maps_without_a_sign_are_not_exact(monkeypatch):
    monkeypatch.setattr(openvino, "is_exact", lambda output: True)
    for kind, trouble in (("i8", ""), ("u8", openvino.UNSIGNED), ("f32", openvino.UNSIGNED)):
        monkeypatch.setattr(openvino, "_told", lambda compiled, key, kind=kind: {"conv": kind})
        assert openvino.inexact_int8.__wrapped__() == trouble


def test_pairs_that_saturate_are_found_out():
    """What AVX2 does: one factor unsigned, and sums of two products in 16 bits."""
    file, x, _ = probe.network()
    weight = onnx.numpy_helper.to_array(onnx.load_from_string(file).graph.initializer[0]).astype(np.int64)
    columns = nn.functional.unfold(torch.from_numpy(x), 3, padding=1)[0].numpy().astype(np.int64) + 128
    matrix = weight.reshape(len(weight), -1)
    pairs = (matrix[:, :, None] * columns).reshape(len(matrix), -1, 2, columns.shape[1]).sum(2)
    sums = pairs.clip(-(2**15), 2**15 - 1).sum(1) - 128 * matrix.sum(1, keepdims=True)
    output = (np.round(sums / 2**13).clip(-128, 127) * 2**13).astype(np.float32).reshape(probe.network()[2].shape)
    assert not probe.is_exact(output)


def test_bf16_where_the_processor_has_it(monkeypatch):
    names = [name for name in BACKENDS if name.endswith("bf16") and "cuda" not in name]
    for units in ((), ("avx2",), ("avx2", "avx512_f", "avx512_vnni")):
        machine = dataclasses.replace(this_machine(), units=units)
        monkeypatch.setattr("i2ilib.deploy.this_machine", lambda machine=machine: machine)
        assert not any(map(status, names)) and "would be emulated" in status("torch-bf16").reason
    machine = dataclasses.replace(this_machine(), units=("avx2", "avx512_bf16"))
    monkeypatch.setattr("i2ilib.deploy.this_machine", lambda: machine)
    assert status("torch-bf16")
    monkeypatch.setattr("i2ilib.deploy.openvino.abilities", lambda: ["FP32"])
    assert "would run float32" in status("openvino-bf16").reason


@pytest.mark.parametrize(("there", "name"), [((), "openvino-int8"), (("openvino-int8",), "openvino-int8-float")])
def test_the_default_is_the_fastest_that_is_exact(there, name, monkeypatch):
    monkeypatch.setattr("i2ilib.deploy.status", lambda backend: backend not in there)
    assert fastest_exact()[0] == name and fastest_exact()[1]


def test_the_default_without_openvino(monkeypatch):
    monkeypatch.setattr("i2ilib.deploy.status", lambda backend: backend == "exact")
    assert fastest_exact() == ("exact", "OpenVINO is not here")


def test_bench_reports_what_it_timed(net, batch):
    with PytorchRunner(net) as runner:
        row = bench({"eager": runner}, batch, n=3)["eager"]
    assert row["p5"] <= row["ms_per_patch"] <= row["p95"] and (row["n"], row["batch"]) == (3, len(batch))
    assert row["patches_per_s"] == pytest.approx(1e3 / row["ms_per_patch"]) and row["target"] == "PyTorch eager"
    assert "speedup" not in row


def test_bench_compares_round_by_round(batch, monkeypatch):
    """A machine that is slow in the second round: the times spread, the ratios do not."""
    clock = [0.0]
    monkeypatch.setattr(
        sys.modules["i2ilib.deploy.bench"], "time", types.SimpleNamespace(perf_counter=lambda: clock[0])
    )

    class Machine:
        calls = 0

        def __init__(self, ms):
            self.ms = ms

        def prepare(self, shape): ...

        def run(self, batch):
            Machine.calls += 1
            clock[0] += self.ms * (3 if 7 <= Machine.calls <= 10 else 1)

        def describe(self):
            return {}

    rows = bench({"slow": Machine(4.0), "fast": Machine(1.0)}, batch, n=3, peer="slow")
    assert rows["fast"]["p95"] > 2 * rows["fast"]["p5"]
    assert [rows["fast"][key] for key in ("speedup", "speedup_p5", "speedup_p95")] == pytest.approx([4.0] * 3)
    assert rows["slow"]["speedup"] == 1.0
    with pytest.raises(I2IError, match="peer: expected slow or fast, got 'other'"):
        bench({"slow": Machine(1.0), "fast": Machine(1.0)}, batch, peer="other")


AFTER = """
import os, signal, sys, threading
from i2ilib.deploy.openvino import OpenVinoRunner
import torch
runners = [OpenVinoRunner(sys.argv[1])]
runners[0].prepare((2, 3, 64, 64))
thread = threading.Thread(target=runners.clear)  # as when a worker drops the last reference
thread.start(); thread.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_an_interrupt_is_survived_wherever_a_runner_ended(net, tmp_path):
    path = to_onnx(net, torch.zeros(2, 3, 64, 64), tmp_path / "net.onnx")
    done = subprocess.run([sys.executable, "-c", AFTER, path], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done
