"""Every runner computes the network, in the precision it claims, one batch at a time or several in flight."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from i2ilib import I2IError, IntegrityError, UnavailableError, models
from i2ilib.deploy import BACKENDS, INTEGER, Runner, backends, bench, make_runner, nncf, open_runner, verify
from i2ilib.deploy.exact import ExactRunner
from i2ilib.deploy.onnxruntime import OnnxRuntimeRunner
from i2ilib.deploy.openvino import OpenVinoRunner, from_pytorch
from i2ilib.deploy.pytorch import PytorchRunner
from i2ilib.models import Generator
from i2ilib.quant import quantise
from i2ilib.quant.export import to_onnx
from i2ilib.runtime import available


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
    return to_onnx(net, batch, folder / "float.onnx"), quantised.to_onnx(folder / "int8.onnx")


SPREAD = 0.01  # the outputs here lie within ±0.05; bf16 keeps 8 bits


def make(name, net, files, quantised=None):
    """A runner, and how far from eager float32 it may be."""
    floats, integers = files
    return {
        "float32": lambda: (PytorchRunner(copy.deepcopy(net)), 1e-6),
        "bf16": lambda: (PytorchRunner(copy.deepcopy(net), precision="bf16"), SPREAD),
        "openvino": lambda: (OpenVinoRunner(floats), 1e-5),
        "openvino-bf16": lambda: (OpenVinoRunner(floats, precision="bf16"), SPREAD),
        "int8": lambda: (OpenVinoRunner(integers, precision="int8"), SPREAD),
        "one stream": lambda: (OpenVinoRunner(integers, precision="int8", streams=1), SPREAD),
        "streams": lambda: (OpenVinoRunner(integers, precision="int8", streams=2), SPREAD),
        "many streams": lambda: (OpenVinoRunner(integers, precision="int8", streams=9), SPREAD),
        "onnxruntime": lambda: (OnnxRuntimeRunner(floats), 1e-5),
        "onnxruntime-int8": lambda: (OnnxRuntimeRunner(integers, precision="int8"), SPREAD),
        "exact": lambda: (ExactRunner(quantised), SPREAD),
    }[name]()


RUNNERS = ["float32", "bf16", "openvino", "openvino-bf16", "int8", "one stream", "streams", "many streams"]
RUNNERS += ["onnxruntime", "onnxruntime-int8", "exact"]


@pytest.mark.parametrize("name", RUNNERS)
def test_runner_computes_the_network(net, files, batch, reference, name, quantised):
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


def test_int8_equals_the_fake_quantised_network(quantised, files, batch):
    step = 2.0 ** -quantised.fix_positions["head.conv"]
    with OpenVinoRunner(files[1], precision="int8") as runner:
        runner.prepare(tuple(batch.shape))
        # ties round to even here and up there; each can move the output by a step or two
        assert verify(runner, quantised.fake(batch), batch, lsb=step) <= 3
        assert set(runner.precisions().values()) == {"i8"}


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
    runner, _ = open_runner("openvino-int8", path, patch=64)
    with runner, from_pytorch(quantised, batch) as other:
        assert torch.equal(runner.run(batch), other.run(batch))


def test_backends_that_cannot_be(net, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    models.save(path, net)
    with pytest.raises(I2IError, match="torch or "):
        open_runner("tpu", path)
    with pytest.raises(I2IError, match="calibrate"):
        open_runner("openvino-int8", path, patch=64)
    monkeypatch.setitem(BACKENDS, "ghost", ("no_such_library", "a test"))
    with pytest.raises(I2IError, match="no_such_library"):
        open_runner("ghost", path)


def test_what_a_backend_needs_besides(net, batch, monkeypatch):
    for name in INTEGER:
        monkeypatch.setattr("i2ilib.deploy.backends", lambda: dict.fromkeys(BACKENDS, True))
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
        assert verify(runner, reference, batch) < SPREAD
        assert set(runner.precisions().values()) <= {"i8", "u8"}
    with pytest.raises(I2IError, match="at least one batch"):
        nncf.from_pytorch(net, [])


def test_bench_reports_what_it_timed(net, batch):
    with PytorchRunner(net) as runner:
        row = bench({"eager": runner}, batch, n=3)["eager"]
    assert row["p5"] <= row["ms_per_patch"] <= row["p95"] and (row["n"], row["batch"]) == (3, len(batch))
    assert row["patches_per_s"] == pytest.approx(1e3 / row["ms_per_patch"]) and row["target"] == "PyTorch eager"


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
