"""OpenVINO on the CPU: the embedded default, with INT8 on AMX or VNNI where the machine has them."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from torch import nn

from ..errors import I2IError, IntegrityError
from ..quant import Quantised
from ..quant.export import to_onnx
from ..runtime import require, versions
from .runner import check_batch

PRECISIONS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}  # the hint is for what is not quantised
CONVOLUTIONS = ("Convolution", "Deconvolution")


@functools.cache
def _core():
    """One for the process, never destroyed.

    OpenVINO's CPU plugin gives the thread that made it a stack for signals. Destroyed in another thread it takes the
    memory away and leaves the pointer: the next signal, an interrupt from the keyboard, kills the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoRunner:
    """An ONNX file run by OpenVINO, compiled for one batch shape at a time.

    A batch smaller than the compiled shape is padded, since the last batch of a frame often is.

    Args:
        path: An ONNX file with one input and one output.
        precision: "float32", "bf16", or "int8" for a file with QuantizeLinear/DequantizeLinear pairs; the compiled
            network is checked to run its convolutions so.
        streams: Batches computed at the same time; twice as many may be in flight.

    Raises:
        I2IError: If the precision is unknown.
        IntegrityError: If the file is not an ONNX network.
        UnavailableError: If OpenVINO is not installed.
    """

    def __init__(self, path: str | os.PathLike, *, precision: str = "float32", streams: int = 1):
        if precision not in PRECISIONS:
            raise I2IError("precision", expected=" or ".join(PRECISIONS), got=repr(precision))
        require("openvino")
        self.core = _core()
        self.path, self.precision, self.streams = Path(path), precision, streams
        try:
            self.network = self.core.read_model(str(path))
        except RuntimeError as error:
            got = str(error).strip().splitlines()[-1].strip()
            raise IntegrityError(str(path), expected="an ONNX network", got=got) from None
        self.shape: tuple[int, ...] | None = None
        self.compiled = self.workers = self.idle = None
        self.lock = threading.RLock()  # preparing runs a batch

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        import openvino

        with self.lock:
            self._finish()
            network = self.network.clone()
            declared = network.input(0).get_partial_shape()
            if not declared.compatible(openvino.PartialShape(list(shape))):
                raise I2IError("batch", expected=f"shape {declared.to_string()}", got=tuple(shape))
            network.reshape(list(shape))
            options = {
                "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
                "NUM_STREAMS": str(self.streams),
                "PERFORMANCE_HINT": "THROUGHPUT" if self.streams > 1 else "LATENCY",
            }
            self.compiled = self.core.compile_model(network, "CPU", options)
            self._prove_precision()
            self.shape = tuple(shape)
            # a thread and a request each, not OpenVINO's own queue: that one can deadlock on the interpreter's lock
            # when it is destroyed
            self.idle = SimpleQueue()
            for _ in range(2 * self.streams):
                self.idle.put(self.compiled.create_infer_request())
            self.workers = ThreadPoolExecutor(2 * self.streams, thread_name_prefix="openvino")
            self.run(torch.zeros(shape))

    def _prove_precision(self) -> None:
        ran = self.precisions()
        if self.precision == "int8" and (not ran or set(ran.values()) - {"i8", "u8"}):
            raise IntegrityError(
                str(self.path),
                expected="every convolution in INT8",
                got=", ".join(f"{name} in {kind}" for name, kind in ran.items() if kind not in ("i8", "u8")) or "none",
                remedy="Quantise the network first, or run it as float32.",
            )

    def precisions(self) -> dict[str, str]:
        """The precision in which OpenVINO runs each convolution, by its name: "i8", "bf16", "f32"."""
        found = {}
        for op in self.compiled.get_runtime_model().get_ops():
            info = op.get_rt_info()
            if info["layerType"].astype(str) in CONVOLUTIONS:
                found[op.get_friendly_name()] = info["runtimePrecision"].astype(str)
        return found

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.submit(batch).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        check_batch(batch)
        with self.lock:
            if self.shape is None or batch.shape[1:] != self.shape[1:] or len(batch) > self.shape[0]:
                self.prepare(tuple(batch.shape))
            request = self.idle.get()  # blocks while all are in flight
            return self.workers.submit(self._infer, request, self.idle, batch)

    def _infer(self, request, idle: SimpleQueue, batch: torch.Tensor) -> torch.Tensor:
        try:
            array = batch.contiguous().numpy()
            if len(batch) < self.shape[0]:
                array = np.concatenate([array, np.zeros((self.shape[0] - len(batch), *array.shape[1:]), np.float32)])
            request.infer({0: array}, share_inputs=True)
            return torch.from_numpy(request.get_output_tensor(0).data[: len(batch)].copy())
        finally:
            idle.put(request)

    def _finish(self) -> None:
        if self.workers is not None:
            self.workers.shutdown()
        self.workers = self.idle = None

    def describe(self) -> dict[str, object]:
        return {
            "target": "OpenVINO",
            "device": self.core.get_property("CPU", "FULL_DEVICE_NAME"),
            "precision": self.precision,
            "versions": versions("openvino"),
            "origin": "measured",
        }

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._finish()
        self.compiled = self.shape = None


def from_pytorch(
    model: nn.Module | Quantised, example: torch.Tensor, *, precision: str = "float32", streams: int = 1
) -> OpenVinoRunner:
    """A runner for a network in memory, by way of a temporary ONNX file.

    Args:
        model: A float network, or a quantised one (which runs as "int8").
        example: (N, C, H, W) float32; its height and width are kept.
        precision: Of a float network: "float32" or "bf16".
        streams: As in :class:`OpenVinoRunner`.
    """
    with tempfile.TemporaryDirectory() as folder:  # OpenVINO has read the file whole when its runner is made
        path = Path(folder) / "model.onnx"
        if isinstance(model, Quantised):
            return OpenVinoRunner(model.to_onnx(path), precision="int8", streams=streams)
        to_onnx(model.eval(), torch.zeros(2, *example.shape[1:]), path)
        return OpenVinoRunner(path, precision=precision, streams=streams)
