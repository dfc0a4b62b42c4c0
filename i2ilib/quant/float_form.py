"""The same integers in float32 arithmetic, for processors whose int8 arithmetic is slow or saturates.

float32 holds every integer up to 2^24, and a power of two only moves its exponent. So a convolution of grid values is
exact in float32, in whatever order an engine sums, as long as no partial sum can exceed 2^24 steps of its grid. The
weights tell whether it can: where it can, the input channels are taken in parts that cannot. Rounding,
``floor(x + 1/2)``, and saturation are operators of their own, so that no engine takes the network for one to be run in
int8.

A sum beyond 2^24 steps is rounded when parts are added, but it is then so large that it saturates: shifts of at most 16
bits leave 128 steps of the output's grid within 2^23 of the sum's. LeakyReLU multiplies by 13/128, which asks for four
more bits; behind large sums that are shifted far, the sum is split into multiples of 128 and a rest.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import fx, nn

from ..errors import I2IError
from . import graph as g
from .graph import A
from .integer import FLOAT32, NUMERATOR, SLOPE_BITS, chunks, six

UNIT = 2**SLOPE_BITS
MOST = 16  # shift up to which a sum that float32 cannot hold saturates
MOST_LEAKY = 10  # the same behind LeakyReLU


def to_float(graph: fx.GraphModule, sites: list[g.Site], fix_positions: dict[str, int]) -> fx.GraphModule:
    """The quantised network with rounding and saturation written out, equal to the exact integers in every value.

    Args:
        graph: Of a quantised network of 8 bits, parameters on their grids; it is copied.
        sites: Its sites.
        fix_positions: By tensor name, one for every site.

    Raises:
        I2IError: If float32 cannot hold the sums of a tensor; it is named.
    """
    return _Rewriting(graph, sites, fix_positions).run()


@dataclasses.dataclass(frozen=True)
class _Value:
    """What a node of the old graph has become: the sum of ``terms``, whole multiples of ``2^-fp``, up to an activation.

    Each term is at most 2^24 of these steps, their sum at most ``bound``. Float values have no ``fp``.
    """

    terms: tuple[fx.Node, ...]
    fp: int | None = None
    bound: int = 0
    activation: str = ""  # still to be applied, with the rounding: "relu", "leaky" or "relu6"
    rounded: bool = False  # within the limits of int8


class _Rewriting:
    """Copies a graph node by node; ``values`` holds what each has become."""

    HALF = 128

    def __init__(self, graph: fx.GraphModule, sites: list[g.Site], fix_positions: dict[str, int]):
        self.root = g.copy_graph(graph)
        self.positions = {site.node.name: fix_positions[site.name] for site in sites}
        self.kinds = {site.node.name: site.kind for site in sites}
        self.graph = fx.Graph()
        self.values: dict[fx.Node, _Value] = {}

    def run(self) -> fx.GraphModule:
        for node in self.root.graph.nodes:
            if node.op == "output":
                self.graph.output(self._single(self.values[node.args[0][0]]))
            else:
                self.values[node] = self._placed(node, self._compute(node))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    def _placed(self, node: fx.Node, value: _Value) -> _Value:
        """The value, rounded where the scheme rounds it; parameters lie on their grids already."""
        if node.name not in self.positions or node.op == "get_attr":
            return value
        return self._rounded(value, self.positions[node.name], node)

    def _compute(self, node: fx.Node) -> _Value:
        if node.op in ("placeholder", "get_attr"):
            return _Value((self.graph.node_copy(node),))
        if node.target in g.CONVOLUTIONS:
            return self._convolution(node)
        if node.target is A.cat.default:  # rounded part by part, where an engine can do it behind a convolution
            fp = self.positions[node.name]
            parts = {part: self._single(self._rounded(self.values[part], fp, part)) for part in node.all_input_nodes}
            joined = self.call(node.target, [parts[part] for part in node.args[0]], *node.args[1:])
            return _Value((joined,), fp, self.HALF, rounded=True)
        source = self.values[node.args[0]]
        if g.adds_bias(node):
            return self._with_bias(source, node.args[1])
        if node.target is A.add.Tensor and source.fp is not None:
            return _sum(*(self._settled(self.values[term]) for term in node.args[:2]))
        if source.fp is not None and (kind := g.ACTIVATIONS.get(node.target)):
            return dataclasses.replace(self._settled(source) if source.activation else source, activation=kind)
        if source.fp is not None and node.target is A.pixel_shuffle.default and not source.rounded:
            source = self._rounded(source, self._position_behind(node), node)  # moving pixels changes no rounding
        source = self._settled(source)
        copied = self.graph.node_copy(node, lambda old: self._single(self.values[old]))
        copied.args = (self._single(source), *copied.args[1:])
        if node.target in (*g.HOST, A.matmul.default) or source.fp is None:
            return _Value((copied,))
        bits = _finer(node)
        return _Value((copied,), source.fp + bits, source.bound << bits, rounded=source.rounded and not bits)

    # --- sums ---------------------------------------------------------------------------------------

    def _convolution(self, node: fx.Node) -> _Value:
        x, weight_node = self.values[node.args[0]], node.args[1]
        fp_w = self.positions[weight_node.name]
        weight = g.parameter(self.root, weight_node).detach()
        most = self.HALF * _phases(node, (weight * 2.0**fp_w).abs().to(torch.int64))
        value = _Value((), x.fp + fp_w, int(most.sum(1).max()))
        bias = node.args[2] if len(node.args) > 2 else None
        if value.bound <= FLOAT32:
            whole = None if bias is None else self._bias(value, bias)
            if whole is None or whole.bound <= FLOAT32:  # the bias may join the sums at any place
                made = self.graph.node_copy(node, lambda old: self._single(self.values[old]))
                return dataclasses.replace(value if whole is None else whole, terms=(made,))
        parts = chunks(most)
        if parts is None or (len(parts) > 1 and g.argument(node, 6, 1) != 1):
            raise I2IError(
                g.tensor_name(node),
                expected="sums that float32 holds, below 2^24, for each input channel",
                got=f"up to {value.bound}",
                remedy="Run it by the exact integers, backend 'exact'.",
            )
        (source,) = x.terms
        axis = 0 if node.target is A.conv_transpose2d.input else 1
        for i, part in enumerate(parts):
            share, channels = self.values[weight_node].terms[0], source
            if len(parts) > 1:
                index = [part if a == axis else slice(None) for a in range(4)]
                share = self._parameter(f"{node.name}_part{i}", weight[tuple(index)].clone())
                channels = self.call(A.slice.Tensor, source, 1, part.start, part.stop)
            term = self.call(node.target, channels, share, None, *node.args[3:])
            value = dataclasses.replace(value, terms=(*value.terms, term))
        return value if bias is None else self._with_bias(value, bias)

    def _bias(self, value: _Value, bias: fx.Node) -> _Value:
        """The value with its grid and bound as the bias makes them."""
        fp = max(value.fp, self.positions[bias.name])
        largest = int((g.parameter(self.root, bias).detach().double().abs().max() * 2.0**fp).item())
        return dataclasses.replace(value, fp=fp, bound=(value.bound << (fp - value.fp)) + largest)

    def _with_bias(self, value: _Value, bias: fx.Node) -> _Value:
        term = self.values[bias].terms[0]
        numbers = g.parameter(self.root, bias).detach()
        if numbers.ndim == 1:
            term = self._parameter(f"{bias.name}_behind", g.per_channel(numbers, numbers[:, None, None]))
        with_it = self._bias(value, bias)
        return dataclasses.replace(with_it, terms=(*value.terms, term))

    def _settled(self, value: _Value) -> _Value:
        """The same as one exact term with its activation applied."""
        if value.fp is None:
            return value
        leaky = value.activation == "leaky"
        if value.bound * (NUMERATOR if leaky else 1) > FLOAT32:
            raise I2IError(
                value.terms[0].name,
                expected="sums below 2^24 where they are used before they are rounded",
                got=f"up to {value.bound}",
                remedy="Run it by the exact integers, backend 'exact'.",
            )
        fp, bound = (value.fp + SLOPE_BITS, value.bound * UNIT) if leaky else (value.fp, value.bound)
        if value.activation == "relu6" and fp < -1:  # 6 is whole on the grid of steps of 2
            fp, bound = -1, bound << (-1 - fp)
        return _Value((self._activated(value, self._total(value)),), fp, bound, rounded=value.rounded)

    def _total(self, value: _Value) -> fx.Node:
        """The sum of the terms, rounded once at most."""
        if len(value.terms) <= 2:
            return self._add(value.terms)
        return self._add(self._split(value))

    def _split(self, value: _Value) -> tuple[fx.Node, fx.Node]:
        """The sum as a multiple of 128 steps, and a rest of 0 to 127 steps; both exact."""
        unit = 2.0 ** (SLOPE_BITS - value.fp)

        def multiple(node: fx.Node) -> fx.Node:
            return self.steps(node, (A.mul.Tensor, 1 / unit), (A.floor.default,), (A.mul.Tensor, unit))

        multiples = [multiple(term) for term in value.terms]
        pairs = zip(value.terms, multiples, strict=True)
        rest = self._add([self.call(A.sub.Tensor, term, whole) for term, whole in pairs])
        if len(value.terms) == 1:
            return multiples[0], rest
        carry = multiple(rest)
        return self._add([*multiples, carry]), self.call(A.sub.Tensor, rest, carry)

    def _add(self, terms) -> fx.Node:
        return functools.reduce(functools.partial(self.call, A.add.Tensor), terms)

    # --- rounding -----------------------------------------------------------------------------------

    def _rounded(self, value: _Value, fp: int, node: fx.Node) -> _Value:
        """On the grid of ``fp``, ties up, saturated."""
        if value.rounded and value.fp == fp and not value.activation:
            return value
        low = 0.0 if value.activation in ("relu", "relu6") else float(-self.HALF)
        high = float(min(self.HALF - 1, six(fp)) if value.activation == "relu6" else self.HALF - 1)
        if value.fp is None:  # x + 1/2 might itself be rounded; doubling and halving are exact
            up = [(A.mul.Tensor, 2.0 ** (fp + 1)), (A.floor.default,), (A.mul.Tensor, 0.5), (A.ceil.default,)]
            q = self.steps(self._activated(value, value.terms[0]), *up)
        elif _holds(value, value.fp - fp):
            total = self._total(value)
            q = self.call(
                A.mul.Tensor, self._activated(value, total) if value.activation == "leaky" else total, 2.0**fp
            )
            if value.fp > fp or value.activation == "leaky":  # else it is whole
                q = self.steps(q, (A.add.Tensor, 0.5), (A.floor.default,))
        elif value.activation == "leaky" and value.fp - fp <= MOST:
            q = self._leaky_of_large_sums(value, fp)
        else:
            raise I2IError(
                g.tensor_name(node),
                expected=f"sums below 2^24, or a shift of at most {MOST} bits",
                got=f"sums up to {value.bound} shifted by {value.fp - fp}",
                remedy="Run it by the exact integers, backend 'exact'.",
            )
        q = self.steps(q, (A.clamp.default, low, high), (A.mul.Tensor, 2.0**-fp))
        return _Value((q,), fp, self.HALF, rounded=True)

    def _leaky_of_large_sums(self, value: _Value, fp: int) -> fx.Node:
        """LeakyReLU, rounded: of the sum 128 a + r it is the larger of both branches, each rounded by itself."""
        shift = value.fp - fp
        a, r = self._split(value)
        a, r = self.call(A.mul.Tensor, a, 2.0 ** (value.fp - SLOPE_BITS)), self.call(A.mul.Tensor, r, 2.0**value.fp)
        rest = self.steps(r, (A.mul.Tensor, NUMERATOR / UNIT), (A.floor.default,))
        fallen = self.call(A.add.Tensor, self.call(A.mul.Tensor, a, float(NUMERATOR)), rest)  # 13/128 of the sum

        def half_up(node: fx.Node, by: int) -> fx.Node:
            return self.steps(node, (A.mul.Tensor, 2.0**-by), (A.add.Tensor, 0.5), (A.floor.default,))

        return self.call(A.maximum.default, half_up(a, shift - SLOPE_BITS), half_up(fallen, shift))

    def _activated(self, value: _Value, node: fx.Node) -> fx.Node:
        if value.activation in ("relu", "relu6"):
            return self.call(A.relu.default if value.activation == "relu" else A.relu6.default, node)
        return self.call(A.leaky_relu.default, node, g.SLOPE) if value.activation == "leaky" else node

    def _position_behind(self, node: fx.Node) -> int:
        """Where the group of ``node`` is rounded."""
        while node.name not in self.positions:
            node = next(iter(node.users))
        return self.positions[node.name]

    # --- nodes --------------------------------------------------------------------------------------

    def call(self, target: torch._ops.OpOverload, *arguments: object) -> fx.Node:
        return self.graph.call_function(target, arguments)

    def steps(self, node: fx.Node, *steps: tuple) -> fx.Node:
        """``steps``, each an operator and its further arguments, behind ``node``."""
        for target, *arguments in steps:
            node = self.call(target, node, *arguments)
        return node

    def _single(self, value: _Value) -> fx.Node:
        (node,) = self._settled(value).terms
        return node

    def _parameter(self, name: str, value: torch.Tensor) -> fx.Node:
        if not hasattr(self.root, name):
            self.root.register_parameter(name, nn.Parameter(value, requires_grad=False))
        return self.graph.get_attr(name)


def _holds(value: _Value, shift: int) -> bool:
    """Whether the value, shifted and rounded in float32, gives the right int8."""
    leaky = value.activation == "leaky"
    factor, unit = (NUMERATOR, UNIT) if leaky else (1, 1)  # the grid behind LeakyReLU is so much finer
    exact = value.bound * factor + (unit << max(shift - 1, 0)) <= FLOAT32
    return exact or shift <= (MOST_LEAKY if leaky else MOST)


def _sum(a: _Value, b: _Value) -> _Value:
    fp = max(a.fp, b.fp)
    return _Value((*a.terms, *b.terms), fp, (a.bound << (fp - a.fp)) + (b.bound << (fp - b.fp)))


def _phases(node: fx.Node, weight: torch.Tensor) -> torch.Tensor:
    """(rows, input channels): what each input channel adds to each output channel at most, by phase of the stride."""
    if node.target is A.conv2d.default:
        return weight.sum((2, 3))
    rows, columns = (list(g.argument(node, 3, [1])) * 2)[:2]
    phases = [weight[:, :, i::rows, j::columns].sum((2, 3)).T for i in range(rows) for j in range(columns)]
    return torch.cat(phases)


def _finer(node: fx.Node) -> int:
    """By how many bits an operator's results are finer than its inputs."""
    if node.target is A.avg_pool2d.default:
        return math.prod((list(node.args[1]) * 2)[:2]).bit_length() - 1
    if node.target is A.upsample_bilinear2d.vec:
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
        return sum((2 * int(after[axis]) // int(before[axis])).bit_length() - 1 for axis in (2, 3))
    return 0
