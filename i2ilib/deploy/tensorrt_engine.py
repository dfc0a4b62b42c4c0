"""Engines that run on an NVIDIA GPU: build them from ONNX, know them again by their sidecar, run and time them.

An engine belongs to one GPU model and one version of TensorRT. Beside ``net.engine`` lies ``net.engine.json``, which
says what it was built from, for and with; a runner refuses what does not match the machine.

Precision lives in the ONNX file (TensorRT 10.12 to 11.x, strongly typed networks): float32 as written, float16 by
:func:`to_half`, INT8 by explicit QuantizeLinear/DequantizeLinear pairs.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from ..errors import I2IError, IntegrityError, UnavailableError
from ..quant import Quantised
from ..quant.export import to_onnx
from ..quant.tracing import evaluation_copy
from ..runtime import Availability, atomic_path, available, require, versions, write_json
from .gpu import Gpu
from .half import pairs_in, read_onnx, to_half
from .runner import check_batch
from .sidecar import batches, check_engine, sha256, sidecar
from .tensorrt import compile_onnx, log_of

PRECISIONS = ("float32", "float16", "int8")
WARM_UP_MS, SECONDS, ITERATIONS = 200.0, 3.0, 10  # trtexec's defaults
GPU = Gpu()  # tests put the CPU in its place


def status() -> Availability:
    """Whether engines can be built and run here; the reason names the missing part."""
    if not (there := available("tensorrt")):
        return there
    trt = require("tensorrt")
    if not hasattr(trt, "Builder"):
        return Availability(False, "the module named tensorrt here is a stub: the wheels come from NVIDIA's own index")
    if not (gpu := GPU.status()):
        return gpu
    try:
        trt.Builder(log_of(trt))
    except (TypeError, RuntimeError) as error:  # "factory function returned nullptr" without a driver that fits
        why = str(log_of(trt)) or str(error)
        return Availability(False, f"TensorRT {trt.__version__} finds no driver that it can use ({why})")
    return Availability(True, f"TensorRT {trt.__version__} on {GPU.facts()['gpu']}")


def machine() -> dict[str, str]:
    """What an engine that runs here must have been built for: GPU, compute capability, TensorRT's version.

    Raises:
        UnavailableError: If engines cannot run here.
    """
    if not (there := status()):
        raise UnavailableError(
            "TensorRT", expected="the library and an NVIDIA GPU", got=there.reason, remedy="OpenVINO works without."
        )
    return {**GPU.facts(), "tensorrt": require("tensorrt").__version__}


# --- build -------------------------------------------------------------------------------------------


def build(
    onnx: str | os.PathLike,
    engine: str | os.PathLike,
    *,
    precision: str = "float32",
    batch: tuple[int, int, int] = (1, 8, 8),
) -> Path:
    """Build an engine for this machine's GPU, and its sidecar; it takes from seconds to minutes.

    Args:
        onnx: A float32 file for "float32" and "float16" (which casts it first), one with Q/DQ pairs for "int8".
        engine: Where; written whole or not at all.
        precision: "float32" (TF32 off), "float16" or "int8".
        batch: Smallest, most frequent and largest batch, where the file leaves the batch size free.

    Returns:
        ``engine``; beside it ``<engine>.json``.

    Raises:
        I2IError: If an argument or the file does not fit, or TensorRT refuses the file; with its words.
        IntegrityError: If the file is not an ONNX network.
        UnavailableError: If there is no TensorRT or no GPU.
    """
    onnx, engine = Path(onnx), Path(engine)
    if precision not in PRECISIONS:
        raise I2IError("precision", expected=" or ".join(PRECISIONS), got=repr(precision))
    low, usual, high = batch
    if not 1 <= low <= usual <= high:
        raise I2IError("batch", expected="1 <= smallest <= most frequent <= largest", got=batch)
    _fits(onnx, precision)
    here, began = machine(), time.perf_counter()
    trt = require("tensorrt")
    with tempfile.TemporaryDirectory() as folder:
        source = to_half(onnx, Path(folder) / "half.onnx") if precision == "float16" else onnx
        compiled = compile_onnx(trt, source, batch=batch)
    if compiled.plan is None:
        raise I2IError(f"{onnx} as {precision}", expected="a network that TensorRT runs", got=compiled.reason)
    seconds = time.perf_counter() - began
    loaded = _load(trt, compiled.plan, engine)
    with atomic_path(engine) as temporary:
        temporary.write_bytes(compiled.plan)
    record = {
        **here,
        "precision": precision,
        "tensors": _tensors(loaded.engine),
        "convolutions": compiled.convolutions,
        "convolutions_in_int8": compiled.in_int8,
        "onnx": onnx.name,
        "onnx_sha256": sha256(onnx),
        "engine_sha256": sha256(engine),
        "plan_bytes": len(compiled.plan),
        "device_memory_bytes": loaded.engine.device_memory_size_v2,
        "build_s": round(seconds, 2),
        "warnings": compiled.warnings,
    }
    write_json(sidecar(engine), record)
    return engine


def _fits(onnx: Path, precision: str) -> None:
    """Refuse a file whose types are not the precision that is asked for."""
    pairs = pairs_in(read_onnx(onnx))
    if precision == "int8" and not pairs:
        raise I2IError(
            str(onnx), expected="explicit Q/DQ pairs", got="none", remedy="Quantise the network, then export it."
        )
    if precision != "int8" and pairs:
        raise I2IError(
            f"{onnx} as {precision}", expected="no Q/DQ pairs", got=pairs, remedy="Build it as int8: types are obeyed."
        )


# --- run ---------------------------------------------------------------------------------------------


def _load(trt, plan: bytes, name: Path) -> SimpleNamespace:
    """A deserialised engine, with the runtime that must outlive it."""
    log = log_of(trt)
    log.complaints.clear()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise IntegrityError(
            str(name),
            expected=f"an engine of TensorRT {trt.__version__}",
            got=str(log) or "nothing that it could read",
            remedy="Build it again with build().",
        )
    return SimpleNamespace(runtime=runtime, engine=engine)


def _tensors(engine) -> list[dict[str, object]]:
    """Name, mode and shapes of the engine's tensors; an input's are smallest, most frequent and largest."""
    found = []
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        mode = engine.get_tensor_mode(name).name.lower()
        shapes = engine.get_tensor_profile_shape(name, 0) if mode == "input" else [engine.get_tensor_shape(name)]
        kind = engine.get_tensor_dtype(name).name.lower()
        found.append({"name": name, "mode": mode, "dtype": kind, "shapes": [list(shape) for shape in shapes]})
    return found


class _Slot:
    """One batch in flight: a context of its own, a stream, and memory on both sides."""

    def __init__(self, engine, source: dict, target: dict):
        self.source, self.target = source["name"], target["name"]
        largest = source["shapes"][-1]
        self.stream = GPU.stream()
        with GPU.on(self.stream):  # the memory is the stream's: nothing else can have it in use
            self.context = engine.create_execution_context()
            self.shape = None
            self._shaped(tuple(largest))
            out = tuple(self.context.get_tensor_shape(self.target))
            self.host_in, self.host_out = GPU.host(tuple(largest)), GPU.host(out)
            self.device_in, self.device_out = GPU.device(tuple(largest)), GPU.device(out)
        self.context.set_tensor_address(self.source, self.device_in.data_ptr())
        self.context.set_tensor_address(self.target, self.device_out.data_ptr())

    def _shaped(self, shape: tuple[int, ...]) -> None:
        if shape != self.shape and not self.context.set_input_shape(self.source, shape):
            raise I2IError("batch", expected="a shape that the engine takes", got=shape)
        self.shape = shape

    def fill(self, batch: torch.Tensor, least: int) -> int:
        """Put a batch into page-locked memory, with zeros up to the engine's smallest; how many images to compute."""
        n = max(len(batch), least)
        self.host_in[: len(batch)].copy_(batch)
        self.host_in[len(batch) : n].zero_()
        self._shaped((n, *self.host_in.shape[1:]))
        return n

    def upload(self, n: int) -> None:
        self.device_in[:n].copy_(self.host_in[:n], non_blocking=True)

    def compute(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RuntimeError(f"TensorRT did not run the batch: {log_of(require('tensorrt'))}")

    def download(self, n: int) -> None:
        self.host_out[:n].copy_(self.device_out[:n], non_blocking=True)


class TensorRtRunner:
    """An engine on the first visible NVIDIA GPU.

    Args:
        engine: From :func:`build`; its sidecar must match this machine.
        in_flight: Batches under way at the same time, each with its own stream and memory, so that copies and
            computation overlap.

    Raises:
        I2IError: If there is no engine, or ``in_flight`` is less than 1.
        IntegrityError: If the sidecar is missing or does not match this GPU, compute capability, version of TensorRT
            or the engine's content, or TensorRT cannot read the engine.
        UnavailableError: If there is no TensorRT or no GPU.
    """

    def __init__(self, engine: str | os.PathLike, *, in_flight: int = 2):
        if in_flight < 1:
            raise I2IError("in_flight", expected="1 or more", got=in_flight)
        self.path, self.in_flight = Path(engine), in_flight
        self.record = check_engine(self.path, machine())
        self.lock = threading.RLock()
        self.workers = self.idle = self.loaded = None
        self._open()

    def _open(self) -> None:
        trt = require("tensorrt")
        plan = self.path.read_bytes()
        if (found := hashlib.sha256(plan).hexdigest()) != self.record["engine_sha256"]:  # since it was opened first
            want = f"engine_sha256 {self.record['engine_sha256']}"
            raise IntegrityError(str(self.path), expected=want, got=found, remedy="Open a new runner for it.")
        self.loaded = _load(trt, plan, self.path)
        tensors = _tensors(self.loaded.engine)
        ends = [[t for t in tensors if t["mode"] == mode] for mode in ("input", "output")]
        if [len(end) for end in ends] != [1, 1] or {t["dtype"] for t in tensors} != {"float"}:
            got = ", ".join(f"{t['mode']} {t['name']} {t['dtype']}" for t in tensors)
            raise IntegrityError(str(self.path), expected="one float32 input and one float32 output", got=got)
        (self.source,), (self.target,) = ends
        self.idle = SimpleQueue()
        for _ in range(self.in_flight):
            self.idle.put(_Slot(self.loaded.engine, self.source, self.target))
        self.workers = ThreadPoolExecutor(self.in_flight, thread_name_prefix="tensorrt")

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        self._takes(tuple(shape))
        self.run(torch.zeros(shape))

    def _takes(self, shape: tuple[int, ...]) -> None:
        """A batch may be smaller than the engine's smallest (zeros are added), never larger than its largest."""
        largest = tuple(self.source["shapes"][-1])
        if shape[1:] != largest[1:] or not 1 <= shape[0] <= largest[0]:
            raise I2IError(
                "batch",
                expected=f"1 to {largest[0]} images of shape {largest[1:]}",
                got=shape,
                remedy=f"Build an engine for it from {self.record['onnx']}.",
            )

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.submit(batch).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        check_batch(batch)
        with self.lock:
            if self.idle is None:
                self._open()
            self._takes(tuple(batch.shape))
            slot = self.idle.get()  # blocks while all are in flight
            return self.workers.submit(self._infer, slot, self.idle, batch)

    def _infer(self, slot: _Slot, idle: SimpleQueue, batch: torch.Tensor) -> torch.Tensor:
        try:
            n = slot.fill(batch, self.source["shapes"][0][0])
            with GPU.on(slot.stream):
                slot.upload(n)
                slot.compute()
                slot.download(n)
            slot.stream.synchronize()
            return slot.host_out[: len(batch)].clone()
        finally:
            idle.put(slot)

    def time_gpu(
        self,
        batch: torch.Tensor,
        *,
        warm_up_ms: float = WARM_UP_MS,
        seconds: float = SECONDS,
        iterations: int = ITERATIONS,
    ) -> dict[str, object]:
        """Time a batch on the GPU by CUDA events, the copies apart; one batch at a time, nothing else in flight.

        The defaults are those of ``trtexec``: it goes on until both limits are met.

        Args:
            batch: (N, C, H, W) float32, real images.
            warm_up_ms: Runs before the first that counts, ms.
            seconds: At least so long.
            iterations: At least so many.

        Returns:
            ``gpu_ms``, ``h2d_ms`` and ``d2h_ms`` (medians, ms per batch: the network, the copy to the GPU, the copy
            back), each with its ``_p99``; ``enqueue_ms``, the CPU's share: the GPU waits for the CPU where it is the
            larger one; ``n``, ``batch``, and the SM clock before and after, ``clock_mhz``.
        """
        check_batch(batch)
        with self.lock:
            self._finish()
            self._open()
            self._takes(tuple(batch.shape))
            slot = self.idle.get()
            try:
                n = slot.fill(batch, self.source["shapes"][0][0])
                return self._timed(slot, n, len(batch), warm_up_ms, seconds, iterations)
            finally:
                self.idle.put(slot)

    def _timed(self, slot: _Slot, n: int, count: int, warm_up_ms: float, seconds: float, iterations: int) -> dict:
        taken: dict[str, list[float]] = {name: [] for name in ("h2d_ms", "gpu_ms", "d2h_ms", "enqueue_ms")}
        before, began, counted = None, time.perf_counter(), None
        marks = [GPU.event() for _ in range(4)]
        while True:
            now = time.perf_counter()
            if counted is None and (now - began) * 1e3 >= warm_up_ms:
                counted, before = now, GPU.clock_mhz()
            if counted is not None and now - counted >= seconds and len(taken["gpu_ms"]) >= iterations:
                break
            with GPU.on(slot.stream):
                marks[0].record(slot.stream)
                slot.upload(n)
                marks[1].record(slot.stream)
                enqueued = time.perf_counter()
                slot.compute()
                enqueued = time.perf_counter() - enqueued
                marks[2].record(slot.stream)
                slot.download(n)
                marks[3].record(slot.stream)
            marks[3].synchronize()
            if counted is not None:
                for name, first, last in zip(taken, marks, marks[1:], strict=False):
                    taken[name].append(first.elapsed_time(last))
                taken["enqueue_ms"].append(enqueued * 1e3)
        result: dict[str, object] = {}
        for name, values in taken.items():
            result[name] = float(np.median(values))
            result[f"{name}_p99"] = float(np.percentile(values, 99))
        clocks = (before, GPU.clock_mhz())
        return {**result, "n": len(taken["gpu_ms"]), "batch": count, "clock_mhz": clocks, **self.describe()}

    def describe(self) -> dict[str, object]:
        return {
            "target": "TensorRT",
            "device": self.record["gpu"],
            "precision": self.record["precision"],
            "versions": {"tensorrt": self.record["tensorrt"], **versions("torch")},
            "origin": "measured",
        }

    def _finish(self) -> None:
        if self.workers is not None:
            self.workers.shutdown()
        self.workers = self.idle = self.loaded = None

    def __enter__(self) -> TensorRtRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self._finish()


def from_pytorch(
    model: nn.Module | Quantised,
    example: torch.Tensor,
    folder: str | os.PathLike,
    *,
    precision: str | None = None,
    batch: tuple[int, int, int] = (1, 8, 8),
    ties: str = "even",
) -> TensorRtRunner:
    """A runner for a network in memory: export, build, load.

    An engine that is in the folder already is taken again if it was built from the same ONNX file on this machine.

    Args:
        model: A float network, or a quantised one.
        example: (N, C, H, W) float32; its height and width are kept.
        folder: For ``<precision>.onnx``, ``<precision>.engine`` and the sidecar.
        precision: "float32" (if None) or "float16" of a float network; a quantised one is "int8".
        batch: As in :func:`build`.
        ties: Of a quantised network, as in :meth:`Quantised.to_onnx`: "even" leaves them to the GPU, "up" has it
            round as the DPU does, with an addition where no convolution's bias can do it.

    Raises:
        I2IError: If the precision is not one that the network has, or as :func:`build`.
        UnavailableError: If there is no TensorRT or no GPU.
    """
    quantised = isinstance(model, Quantised)
    allowed = ("int8",) if quantised else PRECISIONS[:2]
    precision = precision or allowed[0]
    if precision not in allowed:
        what = "a quantised network" if quantised else "a float network"
        raise I2IError("precision", expected=f"{' or '.join(allowed)} for {what}", got=repr(precision))
    here, folder = machine(), Path(folder)
    path, engine = folder / f"{precision}.onnx", folder / f"{precision}.engine"
    if quantised:
        model.to_onnx(path, ties=ties)
    else:
        to_onnx(evaluation_copy(model), torch.zeros(2, *example.shape[1:]), path)
    try:
        record = check_engine(engine, here, onnx=path)
        fresh = batches(record) == list(batch)
    except I2IError:
        fresh = False
    return TensorRtRunner(engine if fresh else build(path, engine, precision=precision, batch=batch))
