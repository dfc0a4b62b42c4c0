"""OpenVINO on the CPU: the embedded default, in INT8 where this processor's int8 sums are exact, else in float32."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from torch import nn

from ..errors import I2IError, IntegrityError
from ..quant import Quantised
from ..quant.export import to_onnx
from ..quant.tracing import evaluation_copy
from ..runtime import require, versions
from .probe import SATURATES, is_exact, network
from .runner import check_batch

# with the hint for what is not quantised
PRECISIONS = {"float32": "f32", "bf16": "bf16", "int8": "f32", "int8-float": "f32"}
CONVOLUTIONS = ("Convolution", "Deconvolution")
RAN = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f32": "float32"}  # OpenVINO's word: ours


@functools.cache
def _core():
    """One for the process, never destroyed.

    OpenVINO's CPU plugin gives the thread that made it a stack for signals. Destroyed in another thread it takes the
    memory away and leaves the pointer: the next signal, an interrupt from the keyboard, kills the process.
    """
    import openvino

    return openvino.Core()


UNSIGNED = "OpenVINO stores int8 maps as unsigned numbers on this processor, and rounds some next to a tie wrongly"


def _told(compiled, key: str) -> dict[str, str]:
    """What OpenVINO says of each convolution that it compiled, by its name."""
    found = {}
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if info["layerType"].astype(str) in CONVOLUTIONS:
            found[op.get_friendly_name()] = info[key].astype(str)
    return found


def abilities() -> list[str]:
    """What OpenVINO says that it can do on this CPU: "FP32", "INT8", "BF16" and so on.

    Raises:
        UnavailableError: If OpenVINO is not installed.
    """
    require("openvino")
    return _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRunner:
    """A network run by OpenVINO, compiled for one batch shape at a time.

    A batch is shared out over the streams, each of which computes its part on its own threads: no thread waits for
    another at the end of every layer. Results are written into the tensor that is returned. A batch smaller than the
    compiled shape is padded, since the last batch of a frame often is.

    Args:
        path: A file with one input and one output: ONNX, or OpenVINO's own format.
        precision: "float32", "bf16", "int8" for a file with QuantizeLinear/DequantizeLinear pairs, or "int8-float" for
            one that holds its integers as float32. The compiled network is checked: of the last two it must run every
            convolution so. Of bf16 at least one, since OpenVINO keeps float32 where that is faster;
            :meth:`describe` says how many ran in which.
        streams: Parts computed at the same time; None: as many as there are threads, four and the batch at most. More
            than the batch are of use to a caller that submits several.

    Raises:
        I2IError: If the precision is unknown or ``streams`` is less than 1.
        IntegrityError: If the file is not a network.
        UnavailableError: If OpenVINO is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        precision: str = "float32",
        streams: int | None = None,
    ):
        if precision not in PRECISIONS:
            raise I2IError("precision", expected=" or ".join(PRECISIONS), got=repr(precision))
        if streams is not None and streams < 1:
            raise I2IError("streams", expected="1 or more, or None", got=streams)
        require("openvino")
        self.core = _core()
        self.path, self.precision = Path(path), precision
        self.streams = streams
        try:
            self.network = self.core.read_model(str(path))
        except RuntimeError as error:
            got = str(error).strip().splitlines()[-1].strip()
            raise IntegrityError(str(path), expected="an ONNX network", got=got) from None
        self.shape: tuple[int, ...] | None = None
        self.compiled = self.workers = self.idle = None
        self.part = 0  # images that one stream takes at once
        self.lock = threading.RLock()  # preparing runs a batch

    def prepare(self, shape: tuple[int, int, int, int]) -> None:
        import openvino

        with self.lock:
            self._finish()
            network = self.network.clone()
            declared = network.input(0).get_partial_shape()
            if not declared.compatible(openvino.PartialShape(list(shape))):
                raise I2IError("batch", expected=f"shape {declared.to_string()}", got=tuple(shape))
            streams = self.streams or min(4, torch.get_num_threads(), shape[0])
            self.part = -(-shape[0] // streams)
            network.reshape([self.part, *shape[1:]])
            options = {
                "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
                "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
                "NUM_STREAMS": str(streams),
                "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
            }
            self.compiled = self.core.compile_model(network, "CPU", options)
            self._prove_precision()
            self.shape = tuple(shape)
            # a thread and a request each, not OpenVINO's own queue: that one can deadlock on the interpreter's lock
            # when it is destroyed
            self.idle = SimpleQueue()
            for _ in range(2 * streams):
                self.idle.put(self.compiled.create_infer_request())
            self.workers = ThreadPoolExecutor(2 * streams, thread_name_prefix="openvino")
            self.run(torch.zeros(shape))

    def _prove_precision(self) -> None:
        """Refuse a network of integers that would not be computed as such, and bf16 of which nothing is left."""
        wanted = {"int8": ("i8", "u8"), "int8-float": ("f32",)}.get(self.precision)
        ran = self.precisions()
        if self.precision == "bf16" and "bf16" not in ran.values():
            raise IntegrityError(
                str(self.path),
                expected="at least one convolution in bf16",
                got=f"{len(ran)}, all in {' and '.join(sorted(set(ran.values()))) or 'nothing'}",
                remedy="Run it as float32: this processor has no unit for bf16, or float32 is faster.",
            )
        if wanted and (not ran or not set(ran.values()) <= set(wanted)):
            raise IntegrityError(
                str(self.path),
                expected=f"every convolution in {'INT8' if self.precision == 'int8' else 'float32'}",
                got=", ".join(f"{name} in {kind}" for name, kind in ran.items() if kind not in wanted) or "none",
                remedy="Quantise the network first, or run it as float32.",
            )
        kernels = _told(self.compiled, "primitiveType")
        if self.precision == "int8-float" and (
            odd := [name for name, kind in kernels.items() if "wino" in kind.lower()]
        ):
            raise IntegrityError(
                str(self.path),
                expected="convolutions that sum products, which float32 holds",
                got=f"Winograd's form of {', '.join(odd)}, whose sums it does not",
                remedy="Run it by the exact integers, backend 'exact'.",
            )

    def precisions(self) -> dict[str, str]:
        """The precision in which OpenVINO runs each convolution, by its name: "i8", "bf16", "f32"."""
        return _told(self.compiled, "runtimePrecision")

    def ran(self) -> dict[str, int]:
        """How many convolutions of the compiled network run in each precision; empty before one is compiled."""
        found = Counter(RAN[kind] for kind in self.precisions().values()) if self.compiled else {}
        return {name: found[name] for name in dict.fromkeys(RAN.values()) if name in found}

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.submit(batch).result()

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        check_batch(batch)
        with self.lock:
            if self.shape is None or batch.shape[1:] != self.shape[1:] or len(batch) > self.shape[0]:
                self.prepare(tuple(batch.shape))
            out = torch.empty(len(batch), *self.compiled.output(0).shape[1:])
            parts = list(zip(batch.contiguous().split(self.part), out.split(self.part), strict=True))
            whole = _Whole(out, len(parts))
            for x, y in parts:
                request = self.idle.get()  # blocks while all are in flight
                whole.follow(self.workers.submit(self._infer, request, self.idle, x, y))
            return whole.future

    def _infer(self, request, idle: SimpleQueue, x: torch.Tensor, y: torch.Tensor) -> None:
        import openvino

        try:
            if len(x) == self.part:
                request.set_output_tensor(openvino.Tensor(y.numpy(), shared_memory=True))
                request.infer({0: x.numpy()}, share_inputs=True)
            else:
                padded = np.concatenate([x.numpy(), np.zeros((self.part - len(x), *x.shape[1:]), np.float32)])
                result = np.empty((self.part, *y.shape[1:]), np.float32)
                request.set_output_tensor(openvino.Tensor(result, shared_memory=True))
                request.infer({0: padded}, share_inputs=True)
                y.numpy()[:] = result[: len(x)]
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
            "precision": self.precision,  # asked for
            "ran": self.ran(),
            "streams": self.streams or "automatic",
            "versions": versions("openvino"),
            "origin": "measured",
        }

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._finish()
        self.compiled = self.shape = None


class _Whole:
    """A future of a batch whose parts are computed apart."""

    def __init__(self, out: torch.Tensor, parts: int):
        self.future: Future[torch.Tensor] = Future()
        self.future.set_running_or_notify_cancel()
        self.out, self.left, self.lock = out, parts, threading.Lock()

    def follow(self, part: Future[None]) -> None:
        part.add_done_callback(self._done)

    def _done(self, part: Future[None]) -> None:
        with self.lock:
            self.left -= 1
            problem = CancelledError() if part.cancelled() else part.exception()
            if self.future.done():
                return
            if problem is not None:
                self.future.set_exception(problem)
            elif self.left == 0:
                self.future.set_result(self.out)


@functools.cache
def inexact_int8() -> str:
    """Why OpenVINO's INT8 would not give the exact integers here, asked by a small network; "" where it does.

    Without AMX OpenVINO stores feature maps as unsigned numbers, moved by 128: one bit more before the point and one
    fewer behind it, and a value next to a tie of LeakyReLU's fine grid can be rounded to the other side.

    Raises:
        UnavailableError: If OpenVINO is not installed.
    """
    require("openvino")
    file, x, _ = network()
    compiled = _core().compile_model(_core().read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    if not is_exact(compiled(x)[0]):
        return SATURATES
    return "" if set(_told(compiled, "runtimePrecision").values()) == {"i8"} else UNSIGNED


def exact_int8() -> bool:
    """Whether OpenVINO's INT8 gives the exact integers on this machine."""
    return not inexact_int8()


def from_pytorch(
    model: nn.Module | Quantised,
    example: torch.Tensor,
    *,
    precision: str | None = None,
    streams: int | None = None,
) -> OpenVinoRunner:
    """A runner for a network in memory, by way of a temporary ONNX file.

    Args:
        model: A float network, or a quantised one.
        example: (N, C, H, W) float32; its height and width are kept.
        precision: Of a float network: "float32" (the default) or "bf16". Of a quantised one: "int8", or "int8-float",
            the same integers computed in float32; by default the first where it is exact on this machine.
        streams: As in :class:`OpenVinoRunner`.

    Raises:
        I2IError: If the precision does not belong to the network, or "int8" is asked for where its integers would be
            wrong.
    """
    integers = isinstance(model, Quantised)
    if precision is None:
        precision = ("int8" if exact_int8() else "int8-float") if integers else "float32"
    known = ("int8", "int8-float") if integers else ("float32", "bf16")
    if precision not in known:
        raise I2IError("precision", expected=" or ".join(map(repr, known)), got=repr(precision))
    if precision == "int8" and not exact_int8():
        raise I2IError("precision 'int8'", expected="exact integers", got=inexact_int8(), remedy="Use 'int8-float'.")
    with tempfile.TemporaryDirectory() as folder:  # OpenVINO has read the file whole when its runner is made
        path = Path(folder) / "model.onnx"
        if integers:
            model.to_onnx(path, form="cpu" if precision == "int8" else "float")
        else:
            to_onnx(evaluation_copy(model), torch.zeros(2, *example.shape[1:]), path)
        return OpenVinoRunner(path, precision=precision, streams=streams)
