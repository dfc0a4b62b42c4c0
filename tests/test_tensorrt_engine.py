"""Engines: what a runner does around TensorRT's calls, driven by a stand-in that ONNX Runtime computes."""

import contextlib
import importlib.util
import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from i2ilib import I2IError, IntegrityError, UnavailableError
from i2ilib.deploy import Runner, verify
from i2ilib.deploy import tensorrt_engine as te
from i2ilib.deploy.tensorrt import compile_onnx
from i2ilib.models import Generator
from i2ilib.quant import quantise
from i2ilib.quant.export import to_onnx
from i2ilib.runtime import Availability

onnx = pytest.importorskip("onnx")
STANDIN = Path(__file__).parent / "standins" / "tensorrt" / "__init__.py"
X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


class CpuStream:
    cuda_stream = 7  # any handle but the default stream's 0

    def synchronize(self):
        pass


class CpuEvent:
    def record(self, stream):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return (later.at - self.at) * 1e3


class CpuGpu(te.Gpu):
    """Memory of the CPU in the GPU's place; everything else is the runner's own."""

    def status(self):
        return Availability(True, "a stand-in")

    def facts(self):
        return {"gpu": "Stand-in 1", "compute_capability": "9.0"}

    def clock_mhz(self):
        return 1000

    def stream(self):
        return CpuStream()

    def on(self, stream):
        return contextlib.nullcontext()

    def event(self):
        return CpuEvent()

    def host(self, shape):
        return torch.full(shape, 7.0)  # never what was in flight before

    device = host


@pytest.fixture
def trt(monkeypatch):
    """The stand-in as ``tensorrt`` 11.x, and memory of the CPU as the GPU's."""
    spec = importlib.util.spec_from_file_location("tensorrt", STANDIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(te, "GPU", CpuGpu())
    return module


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Generator(width=2, levels=2).eval()


@pytest.fixture(scope="module")
def quantised(net):
    return quantise(net, [X])


@pytest.fixture(scope="module")
def files(net, quantised, tmp_path_factory):
    """ONNX file by precision."""
    folder = tmp_path_factory.mktemp("onnx")
    float32 = to_onnx(net, X, folder / "float.onnx")
    return {"float32": float32, "float16": float32, "int8": quantised.to_onnx(folder / "int8.onnx", ties="even")}


@pytest.fixture
def engine(trt, files, tmp_path):
    return te.build(files["float32"], tmp_path / "net.engine", batch=(1, 2, 4))


def reference(path, x):
    """The file's output, operator by operator as written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return torch.from_numpy(onnxruntime.InferenceSession(str(path), options).run(None, {"x": x.numpy()})[0])


# --- the stand-in is one -----------------------------------------------------------------------------


def test_the_stand_in_has_nothing_that_tensorrt_has_not(trt):
    real = pytest.importorskip("tensorrt_rtx")
    classes = {name: kind for name, kind in vars(trt).items() if isinstance(kind, type) and name != "Severity"}
    assert len(classes) > 15
    for name, kind in classes.items():
        theirs = getattr(real, name, None) or getattr(real.tensorrt_rtx, name)
        own = {x for x in vars(kind) if not x.startswith("_")} - {"nbytes"}
        assert own <= set(dir(theirs)), name
    assert "nbytes" in dir(real.IHostMemory)


def test_the_gpu_that_tests_put_in_place_answers_the_same_calls():
    own = {name for name in vars(te.Gpu) if not name.startswith("_")}
    assert own == {name for name in vars(CpuGpu) if not name.startswith("_")}


# --- build and run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", te.PRECISIONS)
def test_an_engine_computes_what_its_file_says(trt, files, tmp_path, precision):
    path = te.build(files[precision], tmp_path / "net.engine", precision=precision, batch=(1, 2, 4))
    with te.TensorRtRunner(path) as runner:
        assert isinstance(runner, Runner)
        runner.prepare((4, 3, 16, 16))
        half = te.to_half(files["float16"], tmp_path / "half.onnx")
        expected = reference(half if precision == "float16" else files[precision], X)
        assert verify(runner, expected, X) == 0
        assert runner.run(X).shape == (3, 3, 16, 16)
        told = runner.describe()
    assert told["target"] == "TensorRT" and told["device"] == "Stand-in 1" and told["precision"] == precision
    assert told["versions"]["tensorrt"] == "11.4.1" and told["origin"] == "measured"


def test_the_sidecar_says_what_the_engine_is(trt, files, tmp_path):
    path = te.build(files["int8"], tmp_path / "deep" / "net.engine", precision="int8", batch=(1, 2, 4))
    record = json.loads(te.sidecar(path).read_text())
    import hashlib

    assert record["engine_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["onnx_sha256"] == hashlib.sha256(files["int8"].read_bytes()).hexdigest()
    assert record["plan_bytes"] == path.stat().st_size and record["device_memory_bytes"] == 4096
    assert (record["gpu"], record["compute_capability"], record["tensorrt"]) == ("Stand-in 1", "9.0", "11.4.1")
    assert (record["precision"], record["onnx"]) == ("int8", "int8.onnx") and record["build_s"] >= 0
    assert record["convolutions"] == record["convolutions_in_int8"] == 4
    assert record["tensors"] == [
        {"name": "x", "mode": "input", "dtype": "float", "shapes": [[n, 3, 16, 16] for n in (1, 2, 4)]},
        {"name": "y", "mode": "output", "dtype": "float", "shapes": [[-1, 3, 16, 16]]},
    ]
    assert "keeps no engine" in record["warnings"], "a warning is kept, not fatal"


@pytest.mark.parametrize("flavour", ["10.12", "11, flag ignored", "11, flag gone", "11, enumeration gone"])
def test_one_build_serves_every_version(trt, files, tmp_path, monkeypatch, flavour):
    if flavour == "10.12":  # the flag has another bit there, and without it the network is weakly typed
        monkeypatch.setattr(trt, "__version__", "10.12.0.36")
        flags = type("Flags", (), {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})
        monkeypatch.setattr(trt, "NetworkDefinitionCreationFlag", flags)
    elif flavour.endswith("flag gone"):
        monkeypatch.setattr(trt, "NetworkDefinitionCreationFlag", type("Flags", (), {}))
    elif flavour.endswith("enumeration gone"):
        monkeypatch.delattr(trt, "NetworkDefinitionCreationFlag")
    path = te.build(files["float32"], tmp_path / "net.engine")
    with te.TensorRtRunner(path) as runner:
        assert verify(runner, reference(files["float32"], X), X) == 0


def test_many_batches_in_flight_come_back_in_their_places(engine, files):
    with te.TensorRtRunner(engine, in_flight=3) as runner:
        batches = [torch.full((1 + i % 4, 3, 16, 16), i / 12) for i in range(12)]
        futures = [runner.submit(batch) for batch in batches]
        for batch, future in zip(batches, futures, strict=True):
            assert torch.equal(future.result(), reference(files["float32"], batch))


def test_no_more_than_its_slots_are_in_flight(engine, monkeypatch):
    under_way, most, lock, both = 0, 0, threading.Lock(), threading.Barrier(2)
    compute = te._Slot.compute

    def slow(slot):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        both.wait(60)  # for the other slot
        time.sleep(0.02)  # for a third, which should not come
        compute(slot)
        with lock:
            under_way -= 1

    monkeypatch.setattr(te._Slot, "compute", slow)
    with te.TensorRtRunner(engine, in_flight=2) as runner:
        for future in [runner.submit(X) for _ in range(6)]:
            future.result()
    assert most == 2


def test_a_batch_below_the_engines_smallest_is_filled_up(trt, files, tmp_path):
    path = te.build(files["float32"], tmp_path / "net.engine", batch=(2, 2, 2))
    with te.TensorRtRunner(path) as runner:
        runner.run(X[:2])
        assert torch.allclose(runner.run(X[:1]), reference(files["float32"], X[:1]), atol=1e-6)


def test_a_file_of_fixed_batch_gives_an_engine_of_that_batch(trt, files, tmp_path):
    model = onnx.load(files["float32"])
    for tensor in (model.graph.input[0], model.graph.output[0]):
        tensor.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, tmp_path / "three.onnx")
    path = te.build(tmp_path / "three.onnx", tmp_path / "net.engine")
    assert [shape[0] for shape in te.check_engine(path, te.machine())["tensors"][0]["shapes"]] == [3, 3, 3]
    with te.TensorRtRunner(path) as runner:
        assert verify(runner, reference(files["float32"], X), X) < 1e-6


def test_a_runner_opens_again_after_its_block(engine, files):
    with te.TensorRtRunner(engine) as runner:
        pass
    assert runner.loaded is None, "the device is free"
    assert verify(runner, reference(files["float32"], X), X) == 0


def test_a_slot_comes_back_after_an_error(engine, monkeypatch):
    with te.TensorRtRunner(engine, in_flight=1) as runner:
        with monkeypatch.context() as broken:
            broken.setattr(CpuStream, "cuda_stream", 0)
            with pytest.raises(RuntimeError, match="TensorRT did not run the batch"):
                runner.run(X)
        assert runner.run(X).shape == (3, 3, 16, 16)


def test_timing_counts_what_trtexec_counts(engine):
    with te.TensorRtRunner(engine) as runner:
        told = runner.time_gpu(X, warm_up_ms=5, seconds=0.02, iterations=4)
        assert told["n"] >= 4 and told["batch"] == 3 and told["clock_mhz"] == (1000, 1000)
        for name in ("h2d_ms", "gpu_ms", "d2h_ms", "enqueue_ms"):
            assert 0 <= told[name] <= told[f"{name}_p99"]
        assert told["gpu_ms"] >= told["enqueue_ms"] > 0, "the stand-in computes while it enqueues"
        assert told["origin"] == "measured"
        assert runner.time_gpu(X, warm_up_ms=0, seconds=0, iterations=2)["n"] == 2
        assert runner.run(X).shape == (3, 3, 16, 16)


# --- from a network in memory ------------------------------------------------------------------------


def test_from_pytorch_to_an_engine(trt, net, quantised, tmp_path):
    for model, precision in ((net, None), (net, "float16"), (quantised, None)):
        with te.from_pytorch(model, X, tmp_path, precision=precision, batch=(1, 2, 4)) as runner:
            expected = quantised.fake(X) if model is quantised else model(X)
            assert runner.describe()["precision"] == precision or ("int8" if model is quantised else "float32")
            assert verify(runner, expected.detach(), X) < (0.02 if model is quantised else 2e-3)
    assert {p.name for p in tmp_path.glob("*.engine")} == {"float32.engine", "float16.engine", "int8.engine"}


def test_an_engine_of_the_same_network_is_taken_again(trt, net, tmp_path, monkeypatch):
    te.from_pytorch(net, X, tmp_path, batch=(1, 2, 4))
    built = []
    monkeypatch.setattr(te, "build", lambda *a, build=te.build, **k: built.append(1) or build(*a, **k))
    te.from_pytorch(net, X, tmp_path, batch=(1, 2, 4))
    assert not built
    te.from_pytorch(net, X, tmp_path, batch=(1, 2, 2))
    assert len(built) == 1, "another batch"
    te.from_pytorch(Generator(width=2, levels=2), X, tmp_path, batch=(1, 2, 2))
    assert len(built) == 2, "other weights"
    monkeypatch.setattr(trt, "__version__", "11.5.0")
    te.from_pytorch(Generator(width=2, levels=2), X, tmp_path, batch=(1, 2, 2))
    assert len(built) == 3, "another TensorRT"


def test_ties_go_up_on_request(trt, quantised, tmp_path):
    with te.from_pytorch(quantised.on_device(), X, tmp_path, ties="up") as runner:
        assert verify(runner, quantised.on_device().integer(X), X, lsb=quantised.step) == 0


@pytest.mark.parametrize(("kind", "precision"), [("float", "int8"), ("quantised", "float16"), ("float", "fp16")])
def test_a_network_has_only_its_own_precisions(trt, net, quantised, tmp_path, kind, precision):
    model = quantised if kind == "quantised" else net
    with pytest.raises(I2IError, match=f"expected .* for a {kind} network, got '{precision}'"):
        te.from_pytorch(model, X, tmp_path, precision=precision)


# --- what build refuses ------------------------------------------------------------------------------


def test_arguments_that_make_no_engine(trt, files, tmp_path):
    out = tmp_path / "net.engine"
    with pytest.raises(I2IError, match="precision: expected float32 or float16 or int8, got 'fp16'"):
        te.build(files["float32"], out, precision="fp16")
    for batch in ((0, 1, 2), (2, 1, 2), (1, 3, 2)):
        with pytest.raises(I2IError, match=re.escape(f"got {batch}")):
            te.build(files["float32"], out, batch=batch)
    with pytest.raises(I2IError, match="expected an ONNX file, got no file"):
        te.build(tmp_path / "none.onnx", out)
    for name, content in (("text", b"hello, this is no network"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(IntegrityError, match="expected an ONNX network"):
            te.build(tmp_path / name, out)
    assert not out.exists()


def test_the_files_types_are_the_precision(trt, files, tmp_path):
    with pytest.raises(I2IError, match=r"expected explicit Q/DQ pairs, got none\. Quantise"):
        te.build(files["float32"], tmp_path / "e", precision="int8")
    for precision in ("float32", "float16"):
        with pytest.raises(I2IError, match=rf"as {precision}: expected no Q/DQ pairs, got \d+\. Build it as int8"):
            te.build(files["int8"], tmp_path / "e", precision=precision)


def test_a_failed_build_tells_why_and_leaves_the_old_engine(engine, trt, files):
    before = engine.read_bytes(), te.sidecar(engine).read_bytes()
    model = onnx.load(files["float32"])
    for node in model.graph.node:
        node.op_type = "Det" if node.op_type == "Tanh" else node.op_type
    bad = engine.with_name("bad.onnx")
    onnx.save(model, bad)
    with pytest.raises(I2IError, match=r"a network that TensorRT runs, got .*no implementation for Det"):
        te.build(bad, engine)
    assert (engine.read_bytes(), te.sidecar(engine).read_bytes()) == before


def test_a_file_that_the_parser_refuses(trt, files, tmp_path):
    model = onnx.load(files["float32"])
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(I2IError, match=r"got .*Failed to parse"):
        te.build(tmp_path / "bad.onnx", tmp_path / "e")


def test_a_builder_without_a_reason(trt, files, tmp_path, monkeypatch):
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
    assert "keeps no engine" in compile_onnx(trt, files["float32"], batch=(1, 1, 1)).reason
    monkeypatch.setattr(trt.OnnxParser, "parse_from_file", lambda self, path: True)
    assert compile_onnx(trt, files["float32"], batch=(1, 1, 1)).reason == "the builder gave no reason"


# --- what a runner refuses ---------------------------------------------------------------------------


def spoil(engine, **changes):
    record = json.loads(te.sidecar(engine).read_text()) | changes
    te.sidecar(engine).write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


@pytest.mark.parametrize(
    ("key", "was", "here"),
    [
        ("gpu", "NVIDIA TITAN Xp", "Stand-in 1"),
        ("compute_capability", "6.1", "9.0"),
        ("tensorrt", "10.12.0", "11.4.1"),
    ],
)
def test_an_engine_of_another_machine(engine, key, was, here):
    spoil(engine, **{key: was})
    with pytest.raises(IntegrityError) as error:
        te.TensorRtRunner(engine)
    assert f"expected {key} {here}, got {key} {was}" in str(error.value)
    assert "build('float.onnx', 'net.engine', precision='float32', batch=(1, 2, 4))" in str(error.value)


def test_all_that_differs_is_told_at_once(engine):
    spoil(engine, gpu="NVIDIA TITAN Xp", compute_capability="6.1")
    with pytest.raises(IntegrityError, match=r"gpu Stand-in 1, compute_capability 9\.0, got gpu NVIDIA TITAN Xp, "):
        te.check_engine(engine, te.machine())


def test_an_engine_that_changed(engine):
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="engine_sha256"):
        te.TensorRtRunner(engine)


def test_an_engine_of_another_file(engine, files):
    assert te.check_engine(engine, te.machine(), onnx=files["float32"])["onnx"] == "float.onnx"
    with pytest.raises(IntegrityError, match="onnx_sha256"):
        te.check_engine(engine, te.machine(), onnx=files["int8"])
    with pytest.raises(FileNotFoundError):
        te.check_engine(engine, te.machine(), onnx=engine.with_name("none.onnx"))


def test_an_engine_without_its_sidecar(engine):
    te.sidecar(engine).unlink()
    with pytest.raises(IntegrityError, match=r"the engine's sidecar, got no file.*build it here"):
        te.TensorRtRunner(engine)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"gpu": 1}'])
def test_a_sidecar_that_is_none(engine, text):
    te.sidecar(engine).write_text(text)
    with pytest.raises(IntegrityError, match=r"the sidecar that build\(\) writes"):
        te.TensorRtRunner(engine)


def test_no_engine(trt, tmp_path):
    with pytest.raises(I2IError, match="expected an engine, got no file"):
        te.TensorRtRunner(tmp_path / "none.engine")


def test_an_engine_that_tensorrt_cannot_read(engine):
    import hashlib

    engine.write_bytes(b"nonsense")
    spoil(engine, engine_sha256=hashlib.sha256(b"nonsense").hexdigest())
    with pytest.raises(IntegrityError, match=r"an engine of TensorRT 11\.4\.1, got the plan's header is not"):
        te.TensorRtRunner(engine)


def test_an_engine_with_other_ends(trt, engine, files, tmp_path):
    model = onnx.load(files["float32"])
    model.graph.output.append(onnx.helper.make_tensor_value_info("again", 1, ["batch", 3, 16, 16]))
    model.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["again"]))
    onnx.save(model, tmp_path / "two.onnx")
    path = te.build(tmp_path / "two.onnx", tmp_path / "two.engine")
    with pytest.raises(IntegrityError, match=r"one float32 input and one float32 output, got .*output again float"):
        te.TensorRtRunner(path)


def test_batches_that_no_engine_takes(engine):
    with te.TensorRtRunner(engine) as runner:
        for bad in (X[0], X.double(), X[:0]):
            with pytest.raises(I2IError, match="float32 on the CPU"):
                runner.run(bad)
        for shape in ((5, 3, 16, 16), (1, 3, 16, 32), (1, 1, 16, 16)):
            with pytest.raises(I2IError, match=r"1 to 4 images of shape \(3, 16, 16\), got .*Build an engine"):
                runner.run(torch.zeros(shape))
            with pytest.raises(I2IError, match="1 to 4 images"):
                runner.prepare(shape)
            with pytest.raises(I2IError, match="1 to 4 images"):
                runner.time_gpu(torch.zeros(shape), warm_up_ms=0, seconds=0)
        assert runner.run(X).shape == (3, 3, 16, 16)


def test_a_shape_that_the_context_refuses(engine, trt, monkeypatch):
    monkeypatch.setattr(trt.IExecutionContext, "set_input_shape", lambda *_: False)
    with pytest.raises(I2IError, match="a shape that the engine takes"):
        te.TensorRtRunner(engine)


def test_at_least_one_batch_in_flight(engine):
    with pytest.raises(I2IError, match="in_flight: expected 1 or more, got 0"):
        te.TensorRtRunner(engine, in_flight=0)


# --- status ------------------------------------------------------------------------------------------


def test_status_with_everything(trt):
    assert te.status() == (True, "TensorRT 11.4.1 on Stand-in 1")


def test_status_without_the_library(monkeypatch, tmp_path, files):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert not te.status() and "tensorrt" in te.status().reason
    with pytest.raises(UnavailableError, match="OpenVINO works without"):
        te.build(files["float32"], tmp_path / "e")
    with pytest.raises(UnavailableError, match="TensorRT: expected the library and an NVIDIA GPU"):
        te.TensorRtRunner(tmp_path / "e")


def test_status_with_the_stub(trt, monkeypatch):
    monkeypatch.delattr(trt, "Builder")
    assert not te.status() and "stub" in te.status().reason


def test_status_without_a_driver(trt, monkeypatch):
    monkeypatch.setattr(trt, "DRIVER", False)
    assert not te.status()
    assert te.status().reason == (
        "TensorRT 11.4.1 finds no driver that it can use (CUDA initialization failure with error: 35)"
    )


def test_status_of_pytorch(trt, monkeypatch):
    monkeypatch.setattr(te, "GPU", te.Gpu())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not te.status() and "is a build without CUDA" in te.status().reason
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not te.status() and "Needs an NVIDIA GPU" in te.status().reason


# --- float16 -----------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Operators whose float16 has rules of its own: a resize with scales, constants, a clamp."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        y = nn.functional.interpolate(self.conv(x), scale_factor=2, mode="bilinear")
        y = nn.functional.interpolate(y + 0.25, scale_factor=2, mode="bilinear")
        return (y * 3).clamp(0, 1)


def test_half_agrees_with_onnxruntimes_converter(files, tmp_path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    theirs = convert_float_to_float16(onnx.load(files["float32"]), keep_io_types=True)
    onnx.save(theirs, tmp_path / "theirs.onnx")
    ours = te.to_half(files["float32"], tmp_path / "ours.onnx")
    assert torch.equal(reference(ours, X), reference(tmp_path / "theirs.onnx", X))


def test_half_is_half_inside_and_float_outside(tmp_path):
    torch.manual_seed(0)
    net = Everything().eval()
    float32 = to_onnx(net, X, tmp_path / "f.onnx")
    half = onnx.load(te.to_half(float32, tmp_path / "h.onnx"))
    float_, half_ = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    assert {t.type.tensor_type.elem_type for t in (*half.graph.input, *half.graph.output)} == {float_}
    scales = {name for node in half.graph.node if node.op_type == "Resize" for name in node.input[2:3]}
    kinds = {t.name: t.data_type for t in half.graph.initializer}
    assert scales and all(kinds[name] == float_ for name in scales)
    assert {kind for name, kind in kinds.items() if name not in scales} <= {half_, onnx.TensorProto.INT64}
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph.value_info
    assert {t.type.tensor_type.elem_type for t in typed} == {half_}, "every tensor between the two casts"
    assert 0 < (reference(tmp_path / "h.onnx", X) - net(X)).abs().max().item() < 5e-3


def test_half_refuses_what_it_would_spoil(files, tmp_path):
    with pytest.raises(I2IError, match="a float32 network, got one with Q/DQ pairs"):
        te.to_half(files["int8"], tmp_path / "h.onnx")
    with pytest.raises(I2IError, match="expected an ONNX file, got no file"):
        te.to_half(tmp_path / "none.onnx", tmp_path / "h.onnx")
    model = onnx.load(files["float32"])
    for value, told in ((65504.0, None), (7e4, "70000"), (float("nan"), "nan")):
        weight = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        array = onnx.numpy_helper.to_array(weight).copy()
        array.flat[0] = value
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
        onnx.save(model, tmp_path / "large.onnx")
        if told is None:
            assert te.to_half(tmp_path / "large.onnx", tmp_path / "h.onnx").exists()
        else:
            with pytest.raises(I2IError, match=rf"{re.escape(weight.name)} in .*values up to 65504, got {told}"):
                te.to_half(tmp_path / "large.onnx", tmp_path / "h.onnx")


def test_a_cast_to_float_becomes_one_to_half(tmp_path):
    h = onnx.helper
    nodes = [
        h.make_node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT32),
        h.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT),
        h.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.float32(0.5))),
        h.make_node("Mul", ["f", "c"], ["y"]),
    ]
    ends = [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4]) for name in "xy"]
    model = h.make_model(h.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[h.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "f.onnx")
    x = torch.tensor([[1.0, 2.5, -3.0, 4.0]])
    assert reference(te.to_half(tmp_path / "f.onnx", tmp_path / "h.onnx"), x).tolist() == [[0.5, 1.0, -1.5, 2.0]]


# --- on a real GPU -----------------------------------------------------------------------------------

there = te.status()


@pytest.mark.skipif(not there, reason=there.reason)
def test_on_this_machines_gpu(net, quantised, tmp_path):
    for model, precision, bound in ((net, "float32", 1e-4), (net, "float16", 5e-3), (quantised, "int8", 0.05)):
        with te.from_pytorch(model, X, tmp_path, precision=precision, batch=(1, 2, 4)) as runner:
            expected = (quantised.fake(X) if precision == "int8" else net(X)).detach()
            assert verify(runner, expected, X) < bound
            assert runner.time_gpu(X, seconds=0.1)["gpu_ms"] > 0
