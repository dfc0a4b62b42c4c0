"""NNCF's ordinary INT8, the peer of the DPU's scheme: scales of any size, one for each channel, the same engine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from ..quant import calibration
from ..quant.export import to_onnx
from ..quant.tracing import evaluation_copy
from ..runtime import quiet, require
from .openvino import OpenVinoRunner, _core


def from_pytorch(
    model: nn.Module, calibration_batches: calibration.Batches, *, streams: int | None = None
) -> OpenVinoRunner:
    """Quantise a float network by NNCF's defaults and run it in OpenVINO.

    Args:
        model: A float network.
        calibration_batches: As for :func:`i2ilib.quant.quantise`.
        streams: As in :class:`OpenVinoRunner`.

    Raises:
        I2IError: If there is no batch, or a wrong one.
        UnavailableError: If NNCF or OpenVINO is not installed.
        IntegrityError: When it is prepared, if NNCF left a convolution in float.
    """
    batches = list(calibration.read(calibration_batches))
    nncf, openvino = require("nncf"), require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        path = to_onnx(evaluation_copy(model), torch.zeros(2, *batches[0].shape[1:]), Path(folder) / "float.onnx")
        with quiet("nncf"):
            network = nncf.quantize(_core().read_model(str(path)), nncf.Dataset([b.numpy() for b in batches]))
        file = Path(folder) / "nncf.xml"
        openvino.save_model(network, file, compress_to_fp16=False)
        return OpenVinoRunner(file, precision="int8", streams=streams)
