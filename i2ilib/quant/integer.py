"""A quantised network in integers alone: int8 in, int32 sums, shifts, int8 out. Every engine is held against it.

A feature map is an int8 tensor (N, H, W, C) with a fix position. A convolution is an integer matrix product over
unfolded windows; its sums lie at fix position ``fp_in + fp_w``, take bias and activation, and are rounded once, by
``(sum + 2^(s-1)) >> s``: ties go up. Nothing is float but the host's operators (tanh, clamp, bicubic), which are float
on every target.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..errors import I2IError
from ..runtime import this_machine
from . import graph as g
from .fixed_point import to_integers
from .graph import A

if TYPE_CHECKING:
    from .ptq import Quantised

NUMERATOR, SLOPE_BITS = 13, 7  # LeakyReLU's 26/256 as 13/2^7
LARGEST = 2**31  # what a 32-bit sum stays below
FLOAT32 = 2**24  # up to here float32 holds every integer
FEW = 256  # windows up to which a matrix product is faster: a convolution brings its weights into blocks first


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Integers (N, H, W, C) that mean ``q · 2^-fp``: int8 where the scheme rounds, exact wide sums before that.

    Sums have one reader, which may overwrite them. ``activation`` is still to be applied, together with the rounding.
    ``bound`` is the largest magnitude that can occur.
    """

    q: Tensor
    fp: int
    bound: int
    activation: str = ""  # or "relu", "leaky", "relu6"

    def wide(self, factor: int = 1) -> Tensor:
        """The integers in a type that holds ``factor`` times the largest of them."""
        return self.q.to(torch.int32 if self.bound * factor < LARGEST else torch.int64)

    def exact(self) -> Fixed:
        """The same with the activation applied and nothing rounded."""
        if self.activation == "relu":
            return Fixed(self.q.clamp(min=0), self.fp, self.bound)
        if self.activation == "leaky":
            unit = 2**SLOPE_BITS
            q = self.wide(unit)
            return Fixed(torch.maximum(q * unit, q * NUMERATOR), self.fp + SLOPE_BITS, self.bound * unit)
        if self.activation == "relu6":
            finer = max(0, -1 - self.fp)  # 6 is whole on the grid of steps of 2
            fp, bound = self.fp + finer, self.bound << finer
            return Fixed((self.wide(2**finer) << finer).clamp(0, min(six(fp), bound)), fp, bound)
        return self

    def round(self, fp: int, half: int) -> Fixed:
        """On the grid of ``fp``, ties up, saturated to [-half, half - 1]: int8."""
        shift = self.fp - fp
        if self.q.dtype == torch.int8 and shift == 0 and not self.activation:
            return self
        factor = LARGEST if shift > 23 else 2 ** max(1, 1 - shift)  # 23: half a unit would not fit beside the sums
        if self.activation == "leaky":
            q = self.wide(factor * NUMERATOR)
            # rounding keeps the order, so the larger of the two, rounded, is the larger of the two rounded
            q = torch.maximum(_shift(q * NUMERATOR, shift + SLOPE_BITS), _shift(q, shift))
        else:
            q = _shift(self.wide(factor), shift)
        low = 0 if self.activation in ("relu", "relu6") else -half
        high = min(half - 1, six(fp)) if self.activation == "relu6" else half - 1  # rounding keeps the order
        return Fixed(q.clamp_(low, high).to(torch.int8), fp, half)

    def float(self) -> Tensor:
        """The values, float32 (N, C, H, W)."""
        value = self.exact()
        return value.q.permute(0, 3, 1, 2).contiguous().float() * 2.0**-value.fp


def six(fp: int) -> int:
    """ReLU6's 6 on the grid of ``fp``, ties up."""
    return math.floor(6 * 2.0**fp + 0.5)


def _shift(q: Tensor, by: int) -> Tensor:
    """``q / 2^by`` rounded, ties up, in place."""
    if by <= 0:
        return q.bitwise_left_shift_(-by)
    by = min(by, 62)  # nothing is left of any value that there is
    return q.add_(1 << (by - 1)).bitwise_right_shift_(by)


class Executor:
    """Runs a :class:`~i2ilib.quant.Quantised` network in integers.

    Args:
        quantised: The network; its parameters and fix positions are read once.

    Raises:
        I2IError: If a convolution could overflow its 32-bit sums.
    """

    def __init__(self, quantised: Quantised):
        self.bits, self.half = quantised.bits, 2 ** (quantised.bits - 1)
        self.nodes = [node for node in quantised.graph.graph.nodes if node.op != "get_attr"]
        by_name = {node.name: node for node in quantised.graph.graph.nodes}
        self.sites = {by_name[site.node.name]: site for site in quantised.sites}
        self.positions = {node: quantised.fix_positions[site.name] for node, site in self.sites.items()}
        self.convolutions = {
            node: _Convolution(quantised.graph, node, self.positions, self.half)
            for node in self.nodes
            if node.target in g.CONVOLUTIONS
        }
        self.last_reader = {source: node for node in self.nodes for source in node.all_input_nodes}

    @torch.inference_mode()
    def __call__(self, x: Tensor, *, keep: dict[str, Tensor] | None = None, last: int | None = None) -> Tensor:
        """Run a batch.

        Args:
            x: (N, C, H, W) float32.
            keep: When given, filled with every int8 feature map (N, C, H, W) by tensor name.
            last: The last rounded tensor, which no convolution reads, is rounded at this position instead of its own.

        Returns:
            (N, C', H', W') float32.
        """
        values: dict[fx.Node, Fixed | Tensor] = {}
        positions = self.positions if last is None else self.positions | {next(reversed(self.sites)): last}
        for node in self.nodes:
            if node.op == "output":
                break
            value = x if node.op == "placeholder" else self._compute(node, values, positions)
            if site := self.sites.get(node):
                value = self._rounded(value, positions[node], site)
                if keep is not None:
                    keep[site.name] = value.q.permute(0, 3, 1, 2)
            values[node] = value
            for source in node.all_input_nodes:
                if self.last_reader[source] is node:
                    values.pop(source, None)
        result = values[node.args[0][0]]
        return result.float() if isinstance(result, Fixed) else result

    def _rounded(self, value: Fixed | Tensor, fp: int, site: g.Site) -> Fixed:
        if isinstance(value, Fixed):
            return value.round(fp, self.half)
        q = to_integers(value, fp, kind=site.kind, bits=self.bits).to(torch.int8)
        return Fixed(q.permute(0, 2, 3, 1).contiguous(), fp, self.half)

    def _compute(
        self, node: fx.Node, values: dict[fx.Node, Fixed | Tensor], positions: dict[fx.Node, int]
    ) -> Fixed | Tensor:
        """The value of a node before it is rounded: exact and wide, or float on the host."""
        if node.target is A.cat.default:
            # each once: rounding overwrites the sums of a tensor that is there twice
            fp, site = positions[node], self.sites[node]
            parts = {part: self._rounded(values[part], fp, site) for part in node.all_input_nodes}
            return Fixed(torch.cat([parts[part].q for part in node.args[0]], -1), fp, self.half)
        source = values[node.args[0]]
        if g.adds_bias(node):  # in the sums already
            return source
        if node.target in g.HOST or isinstance(source, Tensor):  # an activation of the host's result is float as well
            return node.target(source.float() if isinstance(source, Fixed) else source, *node.args[1:])
        if node.target in g.CONVOLUTIONS:
            return self.convolutions[node](source.q)
        if node.target is A.add.Tensor:
            return _add(source, values[node.args[1]])
        if kind := g.ACTIVATIONS.get(node.target):
            return dataclasses.replace(source.exact(), activation=kind)
        return _OPERATORS[node.target](source.exact(), node)


# --- convolutions --------------------------------------------------------------------------------


@functools.cache
def int8_pays() -> bool:
    """Whether PyTorch's int8 product is fast on this machine, by its units, and exact, as tried.

    PyTorch has kernels for the units of x86; without one it computes value by value. A race of both products would be
    decided by whatever else the machine is doing.
    """
    here = this_machine()
    return here.architecture == "x86_64" and bool(here.int8) and int8_exact()


def int8_exact() -> bool:
    """Whether PyTorch's int8 product is exact here: some vector units saturate the sum of two products at 16 bits."""
    low, high = torch.full((64, 256), -128, dtype=torch.int8), torch.full((64, 256), 127, dtype=torch.int8)
    pairs = itertools.product((low, high), repeat=2)
    return all(bool((torch._int_mm(a, b.T.contiguous()) == int(a[0, 0]) * int(b[0, 0]) * 256).all()) for a, b in pairs)


def chunks(most: Tensor) -> list[slice] | None:
    """Input channels in parts whose sums float32 holds exactly, whatever the order of summation; None: too large.

    Args:
        most: (outputs, input channels) int64: the most that a channel adds to an output.
    """
    channels = most.shape[1]
    for count in range(max(1, -(-int(most.sum(1).max()) // FLOAT32)), channels + 1):
        step = -(-channels // count)
        parts = [slice(start, min(start + step, channels)) for start in range(0, channels, step)]
        if all(int(most[:, part].sum(1).max()) <= FLOAT32 for part in parts):
            return parts
    return None


class _Product:
    """A convolution of int8 windows with fixed int8 weights, by the fastest exact arithmetic of this machine.

    Where int8 products pay, that is PyTorch's int8 product on unfolded windows. Elsewhere it is float32, which is exact
    as long as no partial sum exceeds 2^24: the weights tell, and where they do not promise it the input channels are
    taken in parts that do. Double precision, exact below 2^53, is left for kernels so large that one channel does not.

    Args:
        weight: (out, in, kh, kw) int8.
        half: The largest magnitude of an input.
    """

    def __init__(self, weight: Tensor, half: int):
        self.channels, self.kernel = weight.shape[0], tuple(weight.shape[2:])
        matrix = weight.permute(2, 3, 1, 0)  # the order of _windows
        if int8_pays():
            self.matrix = _row_major(matrix.reshape(-1, self.channels))
            self.parts = None
            return
        parts = chunks(half * weight.to(torch.int64).abs().sum((2, 3)))
        kind = torch.float64 if parts is None else torch.float32
        self.parts = [
            (
                part,
                weight[:, part].to(kind, memory_format=torch.channels_last),
                matrix[:, :, part].to(kind).contiguous(),
            )
            for part in parts or [slice(None)]
        ]

    def __call__(self, x: Tensor, size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        """(N, H, W, C) int8 to sums (N, h, w, out) int32, for ``size`` (h, w) windows from the top left corner."""
        n = x.shape[0]
        if self.parts is None:
            return torch._int_mm(_windows(x, size, self.kernel, stride, dilation), self.matrix).view(n, *size, -1)
        # just what the windows cover: a convolution would answer for the rest as well
        ends = [
            (count - 1) * s + d * (k - 1) + 1
            for count, s, d, k in zip(size, stride, dilation, self.kernel, strict=True)
        ]
        x = x[:, : ends[0], : ends[1]]
        few = n * math.prod(size) <= FEW
        total = None
        for part, filters, matrix in self.parts:
            value = x[..., part].to(filters.dtype)
            if few:
                matrix = matrix.view(-1, self.channels)
                sums = (_windows(value, size, self.kernel, stride, dilation) @ matrix).view(n, *size, -1)
            else:
                sums = F.conv2d(value.permute(0, 3, 1, 2), filters, None, stride, 0, dilation).permute(0, 2, 3, 1)
            sums = sums.to(torch.int32)
            total = sums if total is None else total.add_(sums)
        return total.contiguous()


def _row_major(a: Tensor) -> Tensor:
    """With the strides of its shape: a view may have any along an axis of length 1, and the product uses them."""
    a = a.contiguous()
    return a.as_strided(a.shape, (a.shape[1], 1))


def _windows(x: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation) -> Tensor:
    """(N, H, W, C) unfolded to (N · h · w, kh · kw · C), row after row: ``size`` (h, w) windows from the top left."""
    (n, _, _, c), (sn, sh, sw, sc) = x.shape, x.stride()
    shape = (n, *size, *kernel, c)
    steps = (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc)
    return _row_major(x.as_strided(shape, steps).reshape(n * math.prod(size), -1))


class _Convolution:
    """One convolution, or transposed convolution, with its integer weights laid out for the matrix product."""

    def __init__(self, graph: fx.GraphModule, node: fx.Node, positions: dict[fx.Node, int], half: int):
        self.transposed = node.target is A.conv_transpose2d.input
        defaults = [None, None, None, [1, 1], [0, 0], *([[0, 0]] if self.transposed else [[1, 1], 1])]
        arguments = [*node.args, *defaults[len(node.args) :]]
        weight_node, bias_node = arguments[1], g.bias_of(node)
        self.stride, self.padding = tuple(arguments[3]), tuple(arguments[4])
        fp_w = positions[weight_node]
        weight = (g.parameter(graph, weight_node).detach() * 2.0**fp_w).to(torch.int8)
        self.fp = positions[node.args[0]] + fp_w
        self.lift, self.bias = 0, None  # how far the sums move up so that the bias is whole
        if self.transposed:
            weight = weight.transpose(0, 1)  # out first
            self.output_padding = tuple(arguments[5])
        else:
            self.dilation, self.groups = tuple(arguments[5]), arguments[6]
        largest = half * int(weight.flatten(1).abs().sum(1, dtype=torch.int64).max())
        if largest >= LARGEST:
            raise I2IError(g.tensor_name(node), expected="sums below 2^31", got=f"up to {largest}")
        self.bound = largest
        if isinstance(bias_node, fx.Node):
            fp_b = positions[bias_node]
            self.lift = max(0, fp_b - self.fp)
            self.fp += self.lift
            bias = (g.parameter(graph, bias_node).detach().double() * 2.0**fp_b).long() << (self.fp - fp_b)
            self.bound = (largest << self.lift) + int(bias.abs().max())
            bias = bias if bias.ndim == 1 else bias.reshape(bias.shape[-3:]).permute(1, 2, 0)  # channels last
            self.bias = bias.to(torch.int32 if self.bound < LARGEST else torch.int64)
        self.channels, self.kernel, self.half = weight.shape[0], tuple(weight.shape[2:]), half
        self.weight = weight
        if self.transposed:
            self._phase = functools.cache(self._phase)  # its own, so that it goes with the convolution
        else:
            self.products = [_Product(part, half) for part in weight.chunk(self.groups)]

    def __call__(self, x: Tensor) -> Fixed:
        """(N, H, W, C) int8 to sums (N, h, w, C'), with the bias, before activation and rounding."""
        sums = self._phases(x) if self.transposed else self._direct(x)
        if self.lift:
            sums = sums.to(torch.int64 if self.bound >= LARGEST else torch.int32) << self.lift
        if self.bias is not None:
            sums = sums.add_(self.bias) if self.bias.dtype == sums.dtype else sums + self.bias
        return Fixed(sums, self.fp, self.bound)

    def _direct(self, x: Tensor) -> Tensor:
        (height, width), (kh, kw), (ph, pw) = x.shape[1:3], self.kernel, self.padding
        (sh, sw), (dh, dw) = self.stride, self.dilation
        size = ((height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1)
        x = F.pad(x, (0, 0, pw, pw, ph, ph))
        parts = [
            product(part, size, self.stride, self.dilation)
            for part, product in zip(x.chunk(self.groups, -1), self.products, strict=True)
        ]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def _phases(self, x: Tensor) -> Tensor:
        """A transposed convolution as ``stride²`` ordinary ones, each giving every ``stride``-th pixel."""
        n, height, width, _ = x.shape
        size = [
            (length - 1) * s - 2 * p + k + o
            for length, s, p, k, o in zip(
                (height, width), self.stride, self.padding, self.kernel, self.output_padding, strict=True
            )
        ]
        axes = [self._axis(axis, (height, width)[axis], size[axis]) for axis in (0, 1)]
        before = [max(0, -min(phase.start for phase in axis)) for axis in axes]
        after = [
            max(0, max(phase.start + phase.count + len(phase.taps) - 1 for phase in axis) - length)
            for axis, length in zip(axes, (height, width), strict=True)
        ]
        x = F.pad(x, (0, 0, before[1], after[1], before[0], after[0]))
        sums = torch.empty(n, *size, self.channels, dtype=torch.int32)
        for rows, columns in itertools.product(*axes):
            target = sums[:, rows.first :: self.stride[0], columns.first :: self.stride[1]]
            if not (rows.taps and columns.taps):
                target.zero_()
                continue
            view = x[:, rows.start + before[0] :, columns.start + before[1] :]
            product = self._phase(rows.taps, columns.taps)
            target.copy_(product(view, (rows.count, columns.count), (1, 1), (1, 1)))
        return sums

    def _phase(self, rows: tuple[int, ...], columns: tuple[int, ...]) -> _Product:
        return _Product(self.weight[:, :, list(rows)][..., list(columns)], self.half)

    def _axis(self, axis: int, length: int, size: int) -> list[_Phase]:
        """The phases along one axis: output ``stride · j + first`` reads inputs ``j + start`` onwards."""
        stride, padding, kernel = self.stride[axis], self.padding[axis], self.kernel[axis]
        phases = []
        for first in range(min(stride, size)):
            taps = range((first + padding) % stride, kernel, stride)
            start = (first + padding) // stride - (len(taps) - 1)
            phases.append(_Phase(first, start, len(range(first, size, stride)), tuple(reversed(taps))))
        return phases


@dataclasses.dataclass(frozen=True)
class _Phase:
    first: int  # first output
    start: int  # first input that it reads
    count: int  # outputs
    taps: tuple[int, ...]  # of the kernel, in the order of the inputs


# --- everything else -----------------------------------------------------------------------------


def _add(a: Fixed, b: Fixed) -> Fixed:
    a, b = a.exact(), b.exact()
    fp = max(a.fp, b.fp)
    bound = (a.bound << (fp - a.fp)) + (b.bound << (fp - b.fp))
    kind = torch.int32 if bound < LARGEST else torch.int64
    return Fixed((a.q.to(kind) << (fp - a.fp)) + (b.q.to(kind) << (fp - b.fp)), fp, bound)


def _pairs(*arguments: object) -> list[tuple[int, int]]:
    return [tuple(value) * (2 // len(value)) if value else () for value in arguments]


def _pool_windows(x: Fixed, node: fx.Node, fill: int) -> Tensor:
    """(kh · kw, N, h, w, C): the pixels under every window of a pool."""
    stride = node.args[2] if len(node.args) > 2 and node.args[2] else node.args[1]
    (kh, kw), (sh, sw), (ph, pw) = _pairs(node.args[1], stride, node.args[3] if len(node.args) > 3 else [0, 0])
    image = x.q.permute(0, 3, 1, 2).to("meta", torch.float32)  # PyTorch's own rule for the size, without computing
    height, width = node.target(image, *node.args[1:]).shape[2:]
    down, right = (height - 1) * sh + kh, (width - 1) * sw + kw
    padded = F.pad(x.q, (0, 0, pw, max(0, right - x.q.shape[2] - pw), ph, max(0, down - x.q.shape[1] - ph)), value=fill)
    return torch.stack(
        [
            padded[:, i : i + (height - 1) * sh + 1 : sh, j : j + (width - 1) * sw + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
    )


def _max_pool(x: Fixed, node: fx.Node) -> Fixed:
    return dataclasses.replace(x, q=_pool_windows(x, node, torch.iinfo(x.q.dtype).min).amax(0))


def _mean_pool(x: Fixed, node: fx.Node) -> Fixed:
    windows = _pool_windows(x, node, 0)
    bits = len(windows).bit_length() - 1
    return Fixed(windows.sum(0, dtype=torch.int32), x.fp + bits, x.bound << bits)


def _pad(x: Fixed, node: fx.Node) -> Fixed:
    return dataclasses.replace(x, q=F.pad(x.q, (0, 0, *node.args[1])))


def _shuffle(x: Fixed, node: fx.Node) -> Fixed:
    r = node.args[1]
    n, height, width, channels = x.q.shape
    q = x.q.view(n, height, width, channels // r**2, r, r).permute(0, 1, 4, 2, 5, 3)
    return dataclasses.replace(x, q=q.reshape(n, height * r, width * r, channels // r**2))


def _factors(node: fx.Node) -> list[int]:
    before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
    return [out // length for out, length in zip(after, before, strict=True)]


def _nearest(x: Fixed, node: fx.Node) -> Fixed:
    rows, columns = _factors(node)
    return dataclasses.replace(x, q=x.q.repeat_interleave(rows, 1).repeat_interleave(columns, 2))


def _bilinear(x: Fixed, node: fx.Node) -> Fixed:
    """Enlarging by 2^k, align_corners off: the weights are whole multiples of 2^-(k+1) along each axis."""
    q, fp, bound = x.wide(math.prod(2 * f for f in _factors(node))), x.fp, x.bound
    for axis, factor in enumerate(_factors(node), 1):
        length = q.shape[axis]
        place = (2 * torch.arange(length * factor) + 1 - factor).clamp(min=0)  # in units of 1 / (2 factor)
        low, share = place // (2 * factor), place % (2 * factor)
        share = share.view([-1 if i == axis else 1 for i in range(4)]).to(q.dtype)
        high = (low + 1).clamp(max=length - 1)
        q = q.index_select(axis, low) * (2 * factor - share) + q.index_select(axis, high) * share
        fp, bound = fp + (2 * factor).bit_length() - 1, bound * 2 * factor
    return Fixed(q, fp, bound)


_OPERATORS = {
    A.max_pool2d.default: _max_pool,
    A.avg_pool2d.default: _mean_pool,
    A.constant_pad_nd.default: _pad,
    A.pixel_shuffle.default: _shuffle,
    A.upsample_nearest2d.vec: _nearest,
    A.upsample_bilinear2d.vec: _bilinear,
}
