"""ONNX Runtime on the CPU: the independent checker of exported files, and a peer of the other engines."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from ..errors import I2IError, IntegrityError
from ..quant import Quantised
from ..quant.export import to_onnx
from ..quant.tracing import evaluation_copy
from ..runtime import cpu_name, require, versions
from .probe import is_exact, network
from .runner import Serial


class OnnxRuntimeRunner(Serial):
    """An ONNX file run by ONNX Runtime's CPU provider.

    Args:
        path: An ONNX file with one input and one output; with Q/DQ pairs it runs in INT8 as far as the provider has
            kernels for it (transposed convolutions have none).
        precision: What the file holds, for :meth:`describe`.
        optimise: Let it fuse operators. Off, every operator computes as the file says, which is exact for Q/DQ files
            whose ties are lifted; on, biases are put on another grid and ties go to even again.

    Raises:
        IntegrityError: If the file is not a network.
        UnavailableError: If ONNX Runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike, *, precision: str = "float32", optimise: bool = True):
        ort = require("onnxruntime")
        super().__init__()
        self.precision, self.optimise = precision, optimise
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no class of their own
            got = str(error).strip().splitlines()[-1]
            raise IntegrityError(str(path), expected="an ONNX network", got=got) from None
        self.input = self.session.get_inputs()[0]

    def _run(self, batch: torch.Tensor) -> torch.Tensor:
        shape = tuple(self.input.shape)  # a word, or None, where a size is free
        if len(shape) != 4 or any(isinstance(n, int) and n != m for n, m in zip(shape, batch.shape, strict=True)):
            raise I2IError("batch", expected=f"shape {shape}", got=tuple(batch.shape))
        return torch.from_numpy(self.session.run(None, {self.input.name: batch.contiguous().numpy()})[0])

    def describe(self) -> dict[str, object]:
        return {
            "target": "ONNX Runtime" if self.optimise else "ONNX Runtime, as written",
            "device": cpu_name(),
            "precision": self.precision,
            "versions": versions("onnxruntime"),
            "origin": "measured",
        }


@functools.cache
def exact_int8() -> bool:
    """Whether ONNX Runtime's optimised INT8 sums without saturating on this machine, asked by a small network.

    Raises:
        UnavailableError: If ONNX Runtime is not installed.
    """
    ort = require("onnxruntime")
    file, x, _ = network()
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return is_exact(session.run(None, {"x": x})[0])


def from_pytorch(model: nn.Module | Quantised, example: torch.Tensor, *, optimise: bool = True) -> OnnxRuntimeRunner:
    """A runner for a network in memory, by way of a temporary ONNX file.

    Args:
        model: A float network, or a quantised one.
        example: (N, C, H, W) float32; its height and width are kept.
        optimise: As in :class:`OnnxRuntimeRunner`.
    """
    with tempfile.TemporaryDirectory() as folder:  # read whole when the session is made
        path = Path(folder) / "model.onnx"
        if isinstance(model, Quantised):
            return OnnxRuntimeRunner(model.to_onnx(path), precision="int8", optimise=optimise)
        to_onnx(evaluation_copy(model), torch.zeros(2, *example.shape[1:]), path)
        return OnnxRuntimeRunner(path, optimise=optimise)
