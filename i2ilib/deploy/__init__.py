"""Targets: one file each, all behind the :class:`Runner` interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from ..errors import I2IError
from ..quant import Quantised
from ..runtime import CACHE, Availability, available, this_machine
from .bench import bench
from .probe import SATURATES
from .runner import Runner, verify

__all__ = [
    "BACKENDS",
    "Runner",
    "backends",
    "bench",
    "check_backend",
    "fastest_exact",
    "make_runner",
    "open_runner",
    "status",
    "verify",
]

# backend: (libraries, devices and abilities that it needs, what it is)
BACKENDS = {
    "torch": (("torch",), "PyTorch eager, float32"),
    "torch-bf16": (("torch", "bf16"), "PyTorch eager, bfloat16 autocast"),
    "torch-compiled": (("compiler",), "torch.compile, float32 (some 15 s to open)"),
    "torch-compiled-bf16": (("compiler", "bf16"), "torch.compile, bfloat16 (some 15 s to open)"),
    "torch-cuda": (("cuda",), "PyTorch eager on an NVIDIA GPU, float32"),
    "torch-cuda-bf16": (("cuda",), "PyTorch on an NVIDIA GPU as a CUDA graph, bfloat16"),
    "torch-cuda-float16": (("cuda",), "PyTorch on an NVIDIA GPU as a CUDA graph, float16"),
    "onnxruntime": (("onnxruntime",), "ONNX Runtime on the CPU, float32"),
    "onnxruntime-int8": (("onnxruntime", "ONNX Runtime's INT8"), "ONNX Runtime on the CPU, INT8 in the DPU's scheme"),
    "openvino": (("openvino",), "OpenVINO on the CPU, float32"),
    "openvino-bf16": (("openvino", "bf16", "OpenVINO's bf16"), "OpenVINO on the CPU, bfloat16"),
    "openvino-int8": (("openvino", "OpenVINO's INT8"), "OpenVINO on the CPU, INT8 in the DPU's scheme"),
    "openvino-int8-float": (("openvino",), "OpenVINO on the CPU, the DPU's integers as float32 values"),
    "exact": (("torch",), "the DPU's integers, computed by PyTorch on the CPU"),
    "tensorrt": (("tensorrt",), "TensorRT on an NVIDIA GPU, float32"),
    "tensorrt-float16": (("tensorrt",), "TensorRT on an NVIDIA GPU, float16"),
    "tensorrt-int8": (("tensorrt",), "TensorRT on an NVIDIA GPU, INT8 in the DPU's scheme"),
    "u50": (("vart",), "AMD Alveo U50 through VART, from an xmodel beside the weights"),
}
INTEGER = ("onnxruntime-int8", "openvino-int8", "openvino-int8-float", "exact", "tensorrt-int8", "u50")
EXACT = {  # of those on the CPU, each equal to the exact integers where it is available; the fastest first
    "openvino-int8": "OpenVINO's INT8 gives the exact integers on this processor",
    "openvino-int8-float": "OpenVINO's INT8 would not be exact on this processor; float32 holds every integer",
    "exact": "OpenVINO is not here",
}


def _tensorrt() -> Availability:
    from . import tensorrt_engine

    return tensorrt_engine.status()


def _vart() -> Availability:
    from . import vart

    return vart.status()


def _bf16() -> Availability:
    if units := this_machine().bf16:
        return Availability(True, units[-1])
    return Availability(False, f"{this_machine()}: no unit for bfloat16, which would be emulated, slower than float32")


def _openvino_bf16() -> Availability:
    from . import openvino

    if "BF16" in openvino.abilities():
        return Availability(True, "bfloat16")
    return Availability(False, f"{this_machine()}: OpenVINO would run float32 in its place")


def _openvino_int8() -> Availability:
    from . import openvino

    return _exact(openvino.inexact_int8())


def _onnxruntime_int8() -> Availability:
    from . import onnxruntime

    return _exact("" if onnxruntime.exact_int8() else SATURATES)


def _exact(trouble: str) -> Availability:
    if not trouble:
        return Availability(True, "int8 sums that are exact")
    return Availability(False, f"{this_machine()}: {trouble}; openvino-int8-float gives the exact integers")


_ASKED = {
    "tensorrt": _tensorrt,
    "vart": _vart,
    "bf16": _bf16,
    "OpenVINO's bf16": _openvino_bf16,
    "OpenVINO's INT8": _openvino_int8,
    "ONNX Runtime's INT8": _onnxruntime_int8,
}


def status(backend: str) -> Availability:
    """Whether a backend can run here and will do what its name says, and why not.

    Raises:
        I2IError: If the backend is unknown.
    """
    if backend not in BACKENDS:
        raise I2IError("backend", expected=" or ".join(BACKENDS), got=repr(backend))
    first = None  # tells what and which version
    for needed in BACKENDS[backend][0]:
        answer = _ASKED[needed]() if needed in _ASKED else available(needed)
        if not answer:
            return answer
        first = first or answer
    return first


def backends() -> dict[str, Availability]:
    """Every backend that a command takes, and whether it can run here."""
    return {name: status(name) for name in BACKENDS}


def fastest_exact() -> tuple[str, str]:
    """The backend that commands and notebooks take when none is named, and the reason in a few words.

    It is the fastest on the CPU that gives the exact integers on this machine.
    """
    return next((name, why) for name, why in EXACT.items() if status(name))


def check_backend(backend: str) -> None:
    """Refuse a backend that is unknown or cannot run here, with the reason.

    Raises:
        I2IError: If it is one.
    """
    if not (there := status(backend)):
        raise I2IError(f"backend {backend}", expected="what it needs", got=there.reason)


def make_runner(
    backend: str,
    model: nn.Module,
    example: torch.Tensor,
    *,
    quantised: Quantised | None = None,
    xmodel: str | os.PathLike | None = None,
) -> Runner:
    """A runner for a network in memory.

    Args:
        backend: A name in :data:`BACKENDS`.
        model: The float network.
        example: (N, C, H, W) float32; its channels, height and width are kept.
        quantised: The same network in integers; the backends in :data:`INTEGER` need it.
        xmodel: Compiled for the card; "u50" needs it.

    Raises:
        I2IError: If the backend is unknown or cannot run here, or what it needs is not given.
    """
    check_backend(backend)
    if backend in INTEGER and quantised is None:
        raise I2IError(f"backend {backend}", expected="a quantised network", got="none")
    target, _, precision = backend.partition("-")
    if target == "torch":
        from .pytorch import PytorchRunner

        words = precision.split("-")
        device = "cuda" if "cuda" in words else "cpu"
        kind = next((word for word in words if word in ("bf16", "float16")), "float32")
        compiled = "compiled" in words or (device == "cuda" and kind != "float32")
        return PytorchRunner(model, precision=kind, device=device, compiled=compiled)
    if backend == "exact":
        from .exact import ExactRunner

        return ExactRunner(quantised)
    if backend == "u50":
        from .vart import VartRunner

        if xmodel is None:
            remedy = "Export it by AMD's quantiser and compile it: i2ilib.deploy.vart.from_pytorch, or deploy.xmodel."
            raise I2IError("backend u50", expected="an xmodel compiled for the card", got="none", remedy=remedy)
        return VartRunner(xmodel, quantised=quantised)
    network = quantised if backend in INTEGER else model
    if target == "onnxruntime":
        from . import onnxruntime

        return onnxruntime.from_pytorch(network, example)
    if target == "openvino":
        from . import openvino

        return openvino.from_pytorch(network, example, precision=precision or "float32")
    from . import tensorrt_engine

    return tensorrt_engine.from_pytorch(
        network, example, CACHE / "tensorrt", precision=precision or "float32", batch=(1, 8, max(8, len(example)))
    )


def open_runner(
    backend: str,
    weights: str | os.PathLike,
    *,
    patch: int = 256,
    calibration: Callable[[dict], Iterable[torch.Tensor]] | None = None,
) -> tuple[Runner, dict]:
    """A runner for a weights file.

    Args:
        backend: A name in :data:`BACKENDS`; "u50" takes the ``.xmodel`` of the same name beside the weights.
        weights: A ``.safetensors`` file from :func:`i2ilib.models.save`.
        patch: Height and width of the patches to come.
        calibration: Gives batches for INT8 when the file keeps no fix positions of its own; called with the file's
            meta.

    Returns:
        The runner, and the meta kept with the weights.

    Raises:
        I2IError: If the backend is unknown or cannot run here, or INT8 has neither fix positions nor calibration.
        IntegrityError: If the weights are damaged or foreign.
    """
    from .. import models
    from ..quant import quantise, with_positions

    if backend not in BACKENDS:
        raise I2IError("backend", expected=" or ".join(BACKENDS), got=repr(backend))
    weights = Path(weights)
    model, meta = models.load(weights)
    example = torch.zeros(2, getattr(model.config, "in_channels", 3), patch, patch)  # enlargers take RGB
    quantised = None
    if backend in INTEGER:
        if kept := meta.get("fix_positions"):
            quantised = with_positions(model, kept, example)
        elif calibration is not None:
            quantised = quantise(model, calibration(meta))
        else:
            raise I2IError(str(weights), expected="fix positions, or frames to calibrate on", got="neither")
    xmodel = weights.with_suffix(".xmodel")
    found = xmodel if backend == "u50" and xmodel.exists() else None
    return make_runner(backend, model, example, quantised=quantised, xmodel=found), meta
