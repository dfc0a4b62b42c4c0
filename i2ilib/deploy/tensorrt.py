"""From an ONNX file to a TensorRT plan, and a gate for the files that TensorRT is to run.

TensorRT for RTX holds the same ONNX parser and builder interface and needs no GPU for either step. The gate judges
syntax, operators and types; of speed, size or results on a GPU it says nothing. Engines that run are made by
:mod:`i2ilib.deploy.tensorrt_engine`, with the same steps.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ..errors import I2IError
from ..runtime import require

_ONE = threading.Lock()  # TensorRT keeps a single log for the whole process
_SHOWN = 3  # complaints; the same one often comes from every node


class Verdict(NamedTuple):
    """What TensorRT says about a file; true or false by itself."""

    ok: bool
    reason: str  # what was built with which version, or the parser's own words
    convolutions: int = 0  # of the parsed network, transposed ones included
    in_int8: int = 0  # those whose input and weights both come from int8

    def __bool__(self) -> bool:
        return self.ok


class Compiled(NamedTuple):
    """What came of an ONNX file: a plan, or the reason why there is none."""

    plan: bytes | None
    reason: str  # why there is no plan; empty when there is one
    warnings: str  # of the parser, where it changed what it read; empty when it took the file as it is
    convolutions: int
    in_int8: int


def check_onnx(path: str | os.PathLike, *, batch: int = 8) -> Verdict:
    """Let TensorRT parse an ONNX file as a strongly typed network and build an engine from it, without a GPU.

    What the parser changes on its way in counts as refused: it reads uint8 as int8, for one, and only warns.

    Args:
        path: An ONNX file; height and width fixed, the batch size fixed or free.
        batch: The engine is built for 1 to so many where the batch size is free.

    Returns:
        The verdict. It is false, with the reason, for a file that is damaged or holds what TensorRT does not run.

    Raises:
        I2IError: If there is no file, or ``batch`` is less than 1.
        UnavailableError: If TensorRT for RTX is not installed.
    """
    if batch < 1:
        raise I2IError("batch", expected="1 or more", got=batch)
    if not Path(path).is_file():
        raise I2IError(str(path), expected="an ONNX file", got="no file")
    trt = require("tensorrt_rtx")
    result = compile_onnx(trt, path, batch=(1, batch, batch))
    found = result.convolutions, result.in_int8
    if refused := result.warnings or result.reason:
        return Verdict(False, refused, *found)
    built = f"TensorRT for RTX {trt.__version__} built an engine; {found[1]} of {found[0]} convolutions fed from int8"
    return Verdict(True, built, *found)


def compile_onnx(trt: ModuleType, path: str | os.PathLike, *, batch: tuple[int, int, int]) -> Compiled:
    """Parse an ONNX file as a strongly typed network and serialise an engine; the same steps from 10.12 to 11.x.

    Types live in the file alone: float32 stays float32 (TF32 is off), float16 casts and int8 Q/DQ pairs are obeyed.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        path: The file; height and width fixed.
        batch: Smallest, most frequent and largest batch, where the batch size is free.
    """
    with _ONE:
        log = log_of(trt)
        log.complaints.clear()
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(path)):
            told = [_told(parser.get_error(i)) for i in range(parser.num_errors)]
            return Compiled(None, _joined(told) or _joined(log.complaints), "", 0, 0)
        warnings, found = _joined(log.complaints), _convolutions(trt, network)
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.clear_flag(trt.BuilderFlag.TF32)  # else "float32" has ten bits of fraction
        for tensor in (network.get_input(i) for i in range(network.num_inputs)):
            shape = tuple(tensor.shape)
            if -1 in shape[1:]:
                return Compiled(None, f"{tensor.name}: only the batch size may be free, not {shape}", warnings, *found)
            sizes = batch if shape[0] == -1 else (shape[0],) * 3
            profile.set_shape(tensor.name, *((size, *shape[1:]) for size in sizes))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            return Compiled(None, _joined(log.complaints) or "the builder gave no reason", warnings, *found)
        return Compiled(bytes(plan), "", warnings, *found)


@functools.cache
def log_of(trt: ModuleType):
    """The process's log, which keeps the complaints of the work at hand; TensorRT takes no second one."""

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.complaints: deque[str] = deque(maxlen=64)  # a server may run for weeks

        def log(self, severity, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.complaints.append(message)

        def __str__(self) -> str:
            return _joined(self.complaints)

    return Log()


def _strongly_typed(trt: ModuleType) -> int:
    """The flag that 10.x needs; where it does not exist, every network is strongly typed."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _convolutions(trt: ModuleType, network) -> tuple[int, int]:
    """How many convolutions there are, and how many of them compute on int8."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kind = {layer.get_output(i).name: layer.type for layer in layers for i in range(layer.num_outputs)}
    found = [x for x in layers if x.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)]
    dequantised = [
        layer.num_inputs > 1  # else its weights are float constants
        and all(kind.get(layer.get_input(i).name) == trt.LayerType.DEQUANTIZE for i in (0, 1))
        for layer in found
    ]
    return len(found), sum(dequantised)


def _told(error) -> str:
    """One complaint of the parser, with the node that it is about."""
    node = f"{error.node_operator()} {error.node_name()}: ".lstrip() if error.node_name() else ""
    words = error.desc() if error.desc() != "false" else "no rule for this operator"
    return f"{node}{error.code().name}: {words}"


def _joined(complaints: Iterable[str]) -> str:
    """The first few complaints as one line; a missing driver is none, as no GPU is needed."""
    lines = (" ".join(line for line in text.splitlines() if "catchCudaError" not in line) for text in complaints)
    different = list(dict.fromkeys(filter(None, lines)))
    more = f" (and {len(different) - _SHOWN} more)" if len(different) > _SHOWN else ""
    return "; ".join(different[:_SHOWN]) + more
