"""How fast this machine could be, measured, and how near to it each convolution of a network comes.

The roofline model (Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009,
doi:10.1145/1498765.1498785): a computation of intensity I, multiply-accumulates (MAC) for each byte moved, attains at
most ``min(peak, I * bandwidth)``. Both roofs are measured here with libraries at their best, none is taken from a data
sheet, so that nothing in the picture depends on clocks, licences or virtual machines.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import I2IError, IntegrityError
from ..quant.integer import int8_pays
from ..runtime import cpu_name, require, this_machine
from .openvino import RAN, _core, _told

BYTES = {"int8": 1, "bf16": 2, "float32": 4}  # of one value
_HINT = {"int8": "f32", "bf16": "bf16", "float32": "f32"}
_SIZES = (*(2**i for i in (20, 22, 24, 26, 28)), 3 << 29)  # 1 to 256 MiB, and 1.5 GiB
_PASSES = 3
_SIDE = 1536  # of the matrices; of the convolution: 256 channels, 64 x 64, 3 x 3


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What libraries reach on this machine.

    Attributes:
        gmacs: Most multiply-accumulates per second, 10^9, by precision; of those that the processor has units for.
        by: What reached it, by precision.
        bandwidth: (bytes touched again and again, 10^9 bytes per second), from the caches out to memory.
        device: The CPU, as its vendor spells it.
    """

    gmacs: dict[str, float]
    by: dict[str, str]
    bandwidth: tuple[tuple[int, float], ...]
    device: str

    @property
    def memory_gbs(self) -> float:
        """10^9 bytes per second from memory: of the largest arrays."""
        return self.bandwidth[-1][1]

    @property
    def cache_gbs(self) -> float:
        """10^9 bytes per second from the caches: of the best size."""
        return max(rate for _, rate in self.bandwidth)

    def gbs(self, size: float) -> float:
        """10^9 bytes per second for a working set of ``size`` bytes, interpolated between the sizes measured."""
        sizes, rates = zip(*self.bandwidth, strict=True)
        return float(np.interp(np.log(size), np.log(sizes), rates))

    def roof(self, precision: str, intensity: float, *, gbs: float | None = None) -> float:
        """Attainable 10^9 MAC per second.

        Args:
            precision: "int8", "bf16" or "float32".
            intensity: MAC per byte.
            gbs: Bandwidth; that of memory by default.
        """
        return min(self.gmacs[precision], intensity * (gbs or self.memory_gbs))


@dataclasses.dataclass(frozen=True)
class Work:
    """What a convolution has to do, for the whole batch; values are counted once, however often they are used."""

    name: str
    macs: int
    weights: int  # values
    inputs: int
    outputs: int

    def bytes(self, precision: str) -> int:
        """Bytes moved if each weight and map value is, once; an engine may skip weights that meet only padding."""
        return BYTES[precision] * (self.weights + self.inputs + self.outputs)


@dataclasses.dataclass(frozen=True)
class Point:
    """A convolution that was timed inside its network, or all of them together."""

    name: str
    macs: int
    bytes: int
    precision: str
    ms: float  # for the whole batch

    @property
    def intensity(self) -> float:
        """MAC per byte."""
        return self.macs / self.bytes

    @property
    def gmacs(self) -> float:
        """Attained 10^9 MAC per second."""
        return self.macs / self.ms / 1e6


def peaks(*, seconds: float = 0.5, sizes: Sequence[int] = _SIZES) -> Peaks:
    """Measure the machine's roofs: the fastest of PyTorch's matrix product and OpenVINO's convolution, and a triad.

    Args:
        seconds: For each of the (at most) twelve things that are timed.
        sizes: Bytes of the arrays for the bandwidth, rising; the last must exceed every cache to count as memory.

    Raises:
        I2IError: If there is no size, or they do not rise.
        UnavailableError: If OpenVINO is not installed.
    """
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 12:
        raise I2IError("sizes", expected="rising numbers of bytes, 12 or more", got=list(sizes))
    best: dict[tuple[str, str], float] = {}
    rates = dict.fromkeys(sizes, 0.0)
    for _ in range(_PASSES):  # a busy moment hits all alike, and no figure three times
        for precision in BYTES:
            product = "torch._int_mm" if precision == "int8" else "torch.mm"
            for name, measured in ((product, _product), ("OpenVINO convolution", _convolution)):
                if found := measured(precision, seconds / _PASSES):
                    best[precision, name] = max(found, best.get((precision, name), 0.0))
        for size in sizes:
            rates[size] = max(rates[size], _triad(size, seconds / _PASSES))
    here = sorted({precision for precision, _ in best}, key=list(BYTES).index)
    winner = {precision: max((key for key in best if key[0] == precision), key=best.get) for precision in here}
    gmacs = {precision: best[key] for precision, key in winner.items()}
    return Peaks(gmacs, {precision: key[1] for precision, key in winner.items()}, tuple(rates.items()), cpu_name())


def _best(work: Callable[[], object], seconds: float) -> float:
    """Shortest of the times that fit into ``seconds``, three at least: a roof is the best, not the usual."""
    work()
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _product(precision: str, seconds: float) -> float:
    """By PyTorch's matrix product; 0 where this processor has no unit for the precision."""
    n = _SIDE
    if not {"int8": int8_pays(), "bf16": this_machine().bf16, "float32": True}[precision]:
        return 0.0
    if precision == "int8":
        a, b = (torch.randint(-128, 128, (n, n), dtype=torch.int8) for _ in range(2))
        return n**3 / _best(lambda: torch._int_mm(a, b), seconds) / 1e9
    kind = {"bf16": torch.bfloat16, "float32": torch.float32}[precision]
    a, b = (torch.randn(n, n).to(kind) for _ in range(2))
    return n**3 / _best(lambda: torch.mm(a, b), seconds) / 1e9


def _convolution(precision: str, seconds: float) -> float:
    """By OpenVINO's own time of a convolution that suits it; 0 where it does not run it in that precision."""
    require("openvino")
    import openvino.opset13 as ops
    from openvino import Model

    channels, side = 256, 64
    rng = np.random.default_rng(0)
    x = node = ops.parameter([1, channels, side, side], np.float32, name="x")
    weights = ops.constant(rng.uniform(-1, 1, (channels, channels, 3, 3)).astype(np.float32))
    if precision == "int8":
        node, weights = _on_grid(ops, node, 256), _on_grid(ops, weights, 255)
    node = ops.convolution(node, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    if precision == "int8":
        node = _on_grid(ops, node, 256)  # else the sums leave as float32, four times the bytes
    compiled = _compile(Model([ops.relu(node)], [x]), precision)
    if set(_precisions(compiled).values()) != {precision}:  # bf16 needs a processor that has it
        return 0.0
    request = compiled.create_infer_request()
    batch = rng.uniform(-1, 1, (1, channels, side, side)).astype(np.float32)
    times: list[float] = []

    def once() -> None:
        request.infer({0: batch}, share_inputs=True)
        times.extend(_times(request)[name] for name in _precisions(compiled))

    _best(once, seconds)
    return channels**2 * 9 * side**2 / min(times) / 1e9


def _on_grid(ops, node, levels: int):
    """Rounded to signed int8: what OpenVINO turns into integers."""
    low = -1.0 if levels == 255 else -128 / 127
    limits = [ops.constant(np.float32(x)) for x in (low, 1.0, low, 1.0)]
    return ops.fake_quantize(node, *limits, levels)


def _triad(size: int, seconds: float) -> float:
    """10^9 bytes per second of ``a = b + 2 c`` on three arrays of ``size`` bytes together."""
    n = size // 12
    a, b, c = torch.zeros(n), torch.ones(n), torch.ones(n)
    return 12 * n / _best(lambda: torch.add(b, c, alpha=2, out=a), seconds) / 1e9


# --- a network ---------------------------------------------------------------------------------------


def work(path: str | os.PathLike, shape: Sequence[int]) -> list[Work]:
    """What each convolution of an ONNX file has to do, transposed ones included.

    A transposed convolution counts every product of an input value and a weight, as usual, also those that its padding
    cuts off.

    Args:
        path: An ONNX file with one input.
        shape: (N, C, H, W) of the batch.
    """
    return _work(_read(path, shape))


def points(path: str | os.PathLike, batch: torch.Tensor, *, precision: str = "float32", n: int = 10) -> list[Point]:
    """Time each convolution inside its network, on OpenVINO with its performance counters on.

    Args:
        path: An ONNX file with one input.
        batch: (N, C, H, W) float32; real values, since zeros can be faster.
        precision: "float32" or "bf16", or "int8" for a file with QuantizeLinear/DequantizeLinear pairs.
        n: Runs; the median of each layer counts.

    Returns:
        A point for each convolution, in the precision in which it really ran, in the order of the network.

    Raises:
        I2IError: If the precision is unknown.
        IntegrityError: If the file is not an ONNX network, or its layers cannot be told from what OpenVINO ran.
    """
    if precision not in BYTES:
        raise I2IError("precision", expected=" or ".join(BYTES), got=repr(precision))
    network = _read(path, batch.shape)
    todo, compiled = _work(network), _compile(network, precision)
    ran = _precisions(compiled)
    if lost := [each.name for each in todo if each.name not in ran]:
        got = f"no time for {', '.join(lost)}"
        raise IntegrityError(str(path), expected="every convolution among what OpenVINO ran", got=got)
    request, times = compiled.create_infer_request(), []
    for i in range(n + 1):
        request.infer({0: batch.contiguous().numpy()}, share_inputs=True)
        if i:  # the first one warms up
            times.append(_times(request))
    return [
        Point(
            each.name,
            each.macs,
            each.bytes(ran[each.name]),
            ran[each.name],
            1e3 * statistics.median(row[each.name] for row in times),
        )
        for each in todo
    ]


def whole(found: Sequence[Point], precision: str, *, name: str = "network", ms: float | None = None) -> Point:
    """All convolutions as one point.

    Args:
        found: From :func:`points`.
        precision: To label it with.
        name: To label it with.
        ms: Of the whole network for the batch, everything between the convolutions included; their sum by default.
    """
    total = sum(point.ms for point in found) if ms is None else ms
    return Point(name, sum(p.macs for p in found), sum(p.bytes for p in found), precision, total)


def bound(todo: Sequence[Work], machine: Peaks, precision: str) -> float:
    """Least milliseconds for a batch: every convolution on its roof, everything between them for nothing.

    The bandwidth is that of a working set as large as the network's weights and maps, since layer after layer, batch
    after batch, they pass through the caches in a circle.

    Args:
        todo: From :func:`work`.
        machine: From :func:`peaks`.
        precision: "int8", "bf16" or "float32".
    """
    gbs = machine.gbs(sum(each.bytes(precision) for each in todo))
    each = (max(w.macs / machine.gmacs[precision], w.bytes(precision) / gbs) for w in todo)
    return sum(each) / 1e6


def _read(path: str | os.PathLike, shape: Sequence[int]):
    require("openvino")
    try:
        network = _core().read_model(str(path))
        network.reshape(list(shape))
    except RuntimeError as error:
        got = str(error).strip().splitlines()[-1].strip()
        raise IntegrityError(str(path), expected=f"an ONNX network for {tuple(shape)}", got=got) from None
    return network


def _work(network) -> list[Work]:
    found = []
    for op in network.get_ordered_ops():
        if (kind := op.get_type_name()) not in ("Convolution", "ConvolutionBackpropData"):
            continue
        inputs, weights = (list(op.input(i).get_partial_shape().to_shape()) for i in (0, 1))
        outputs = list(op.output(0).get_partial_shape().to_shape())
        transposed = kind == "ConvolutionBackpropData"  # weights (in, out, k, k) instead of (out, in, k, k)
        macs = int(np.prod(inputs if transposed else outputs)) * int(np.prod(weights[1:]))  # the first axis is theirs
        sizes = (int(np.prod(shape)) for shape in (weights, inputs, outputs))
        found.append(Work(op.get_friendly_name(), macs, *sizes))
    return found


def _compile(network, precision: str):
    options = {"INFERENCE_PRECISION_HINT": _HINT[precision], "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    return _core().compile_model(network, "CPU", options)


def _precisions(compiled) -> dict[str, str]:
    """Precision in which each convolution runs, by its name."""
    return {name: RAN[kind] for name, kind in _told(compiled, "runtimePrecision").items()}


def _times(request) -> dict[str, float]:
    """Seconds of each layer in the last run, by its name."""
    return {info.node_name: info.real_time.total_seconds() for info in request.get_profiling_info()}
