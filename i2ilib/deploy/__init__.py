"""Targets: one file each, all behind the :class:`Runner` interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..errors import I2IError
from ..runtime import Availability, available
from .bench import bench
from .runner import Runner, verify

__all__ = ["BACKENDS", "Runner", "backends", "bench", "open_runner", "verify"]

# backend: (library or device it needs, where it is documented to the reader)
BACKENDS = {
    "torch": ("torch", "PyTorch eager, float32"),
    "torch-bf16": ("torch", "PyTorch eager, bfloat16 autocast"),
    "torch-cuda": ("cuda", "PyTorch eager on an NVIDIA GPU, float32"),
    "openvino": ("openvino", "OpenVINO on the CPU, float32"),
    "openvino-bf16": ("openvino", "OpenVINO on the CPU, bfloat16"),
    "openvino-int8": ("openvino", "OpenVINO on the CPU, INT8 in the DPU's scheme"),
}


def backends() -> dict[str, Availability]:
    """Every backend that a command takes, and whether it can run here."""
    return {name: available(needs) for name, (needs, _) in BACKENDS.items()}


def open_runner(
    backend: str,
    weights: str | os.PathLike,
    *,
    patch: int = 256,
    calibration: Callable[[dict], Iterable[torch.Tensor]] | None = None,
) -> tuple[Runner, dict]:
    """A runner for a weights file.

    Args:
        backend: A name in :data:`BACKENDS`.
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

    if backend not in BACKENDS:
        raise I2IError("backend", expected=" or ".join(BACKENDS), got=repr(backend))
    if not (there := backends()[backend]):
        raise I2IError(f"backend {backend}", expected="what it needs", got=there.reason)
    model, meta = models.load(Path(weights))
    target, _, precision = backend.partition("-")
    if target == "torch":
        from .pytorch import PytorchRunner

        device = "cuda" if precision == "cuda" else "cpu"
        return PytorchRunner(model, precision="bf16" if precision == "bf16" else "float32", device=device), meta
    from . import openvino

    example = torch.zeros(2, getattr(model.config, "in_channels", 3), patch, patch)  # enlargers take RGB
    if precision != "int8":
        return openvino.from_pytorch(model, example, precision=precision or "float32"), meta
    from ..quant import quantise, with_positions

    if kept := meta.get("fix_positions"):
        return openvino.from_pytorch(with_positions(model, kept, example), example), meta
    if calibration is None:
        raise I2IError(str(weights), expected="fix positions, or frames to calibrate on", got="neither")
    return openvino.from_pytorch(quantise(model, calibration(meta)), example), meta
