"""A gate for the ONNX files that TensorRT is to run: does its parser take them, can an engine be built?

TensorRT for RTX holds the same ONNX parser and needs no GPU for either step. The gate judges syntax, operators and
types; of speed, size or results on a GPU it says nothing.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
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
    with _ONE:
        log = _log()
        log.complaints.clear()
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(path)):
            return Verdict(False, _joined([_told(parser.get_error(i)) for i in range(parser.num_errors)]))
        found = _convolutions(trt, network)
        if log.complaints:
            return Verdict(False, _joined(log.complaints), *found)

        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for tensor in (network.get_input(i) for i in range(network.num_inputs)):
            shape = tuple(tensor.shape)
            if -1 in shape[1:]:
                return Verdict(False, f"{tensor.name}: only the batch size may be free, not {shape}", *found)
            if -1 in shape:
                profile.set_shape(tensor.name, (1, *shape[1:]), (batch, *shape[1:]), (batch, *shape[1:]))
        config.add_optimization_profile(profile)
        if builder.build_serialized_network(network, config) is None:
            return Verdict(False, _joined(log.complaints), *found)
    total, quantised = found
    built = f"TensorRT for RTX {trt.__version__} built an engine; {quantised} of {total} convolutions fed from int8"
    return Verdict(True, built, *found)


@functools.cache
def _log():
    """The process's log, which keeps the complaints of the check at hand; TensorRT takes no second one."""
    trt = require("tensorrt_rtx")

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.complaints: list[str] = []

        def log(self, severity, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.complaints.append(message)

    return Log()


def _convolutions(trt, network) -> tuple[int, int]:
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


def _joined(complaints: list[str]) -> str:
    """The first few complaints as one line; a missing driver is none, as no GPU is needed."""
    lines = (" ".join(line for line in text.splitlines() if "catchCudaError" not in line) for text in complaints)
    different = list(dict.fromkeys(filter(None, lines)))
    more = f" (and {len(different) - _SHOWN} more)" if len(different) > _SHOWN else ""
    return "; ".join(different[:_SHOWN]) + more
