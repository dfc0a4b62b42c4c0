"""Two repairs of a folded network that need no training: cross-layer equalisation, and correction of the biases.

Both are from Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019
(arXiv:1906.04721), in the form observed on AMD's quantiser, pytorch_nndct 3.5.0, which applies both by default.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Literal

import torch
from torch import fx

from ..errors import I2IError
from . import graph as g

A = torch.ops.aten

THROUGH = (A.relu.default, A.max_pool2d.default, A.avg_pool2d.default)
HOMOGENEOUS = (*THROUGH, A.leaky_relu.default, A.upsample_nearest2d.vec, A.upsample_bilinear2d.vec)

SMALLEST = 0.5  # sum of a channel's two ranges below which AMD's quantiser leaves it alone
RATE = 0.05  # how far a bias moves against its mean error, per batch


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two convolutions that share their channels' ranges, and how it was done.

    Attributes:
        first: Module whose output channels were divided by ``scales``, e.g. ``e3``.
        second: Module whose input channels were multiplied by ``scales``.
        ranges: (2, C) float32, ``max |w|`` per channel before: of the first's outputs, of the second's inputs.
        scales: (C,) float32, positive; 1 where a channel was left alone.
    """

    first: str
    second: str
    ranges: torch.Tensor
    scales: torch.Tensor


@torch.no_grad()
def equalise(graph: fx.GraphModule, *, through: tuple = THROUGH) -> list[Pair]:
    """Share the range of every channel between the convolution that writes it and the one that reads it, in place.

    With one scale per tensor, a channel of small weights is left with few integers. ReLU and pooling obey
    ``f(x / s) = f(x) / s`` for ``s > 0``, so output channel ``i`` of the first convolution, with its bias, may be
    divided by ``s_i`` and input channel ``i`` of the second multiplied by it: the network computes the same function.
    With ``r_1, r_2`` the largest magnitudes of the channel's weights in the two,
    ``s = √(r_1 / r_2)`` leaves both at ``√(r_1 r_2)`` (Nagel et al., section 4.1).

    A pair is two convolutions with nothing but ``through`` between them, each tensor on the way with one consumer, and
    parameters that no other call uses. As AMD's quantiser does, a channel with ``r_1 + r_2 < 0.5`` is left alone; so is
    one without weights, which has no ratio. Pairs are treated once, in the order of computation, so in a chain of
    three the middle one is scaled on both sides.

    Observed, to the bit, on one pair with small biases. That observation does not decide three things, chosen here as
    the simplest: biases take no part in the ranges, a chain is walked once, and two convolutions may follow directly.

    Args:
        graph: A folded float graph from :func:`.graph.capture`; its parameters are replaced.
        through: Operators that may lie between. AMD's quantiser stops at LeakyReLU, though it is homogeneous as well:
            add ``aten.leaky_relu.default`` to go further than it does.

    Returns:
        The pairs in the order in which they were treated.

    Raises:
        I2IError: If BatchNorm is not folded, or an operator of ``through`` is not homogeneous channel by channel.
    """
    for operator in through:
        if operator not in HOMOGENEOUS:
            known = ", ".join(map(str, HOMOGENEOUS))
            raise I2IError("through", expected=f"operators with f(x / s) = f(x) / s: {known}", got=str(operator))
    if any(node.target is A.batch_norm.default for node in graph.graph.nodes):
        remedy = "Capture the model with its BatchNorm folded."
        raise I2IError("graph", expected="convolutions without BatchNorm", got="aten.batch_norm", remedy=remedy)
    convolutions = [node for node in graph.graph.nodes if node.target in g.CONVOLUTIONS]
    calls = Counter(part.target for node in convolutions for part in (node.args[1], g.bias_of(node)) if part)
    pairs = []
    for first in convolutions:
        second = _next_convolution(first, through)
        bias = g.bias_of(first)
        if second is None or any(calls[part.target] > 1 for part in (first.args[1], bias, second.args[1]) if part):
            continue
        ranges = torch.stack([_ranges(graph, first, "out"), _ranges(graph, second, "in")])
        alone = (ranges.sum(0) < SMALLEST) | (ranges == 0).any(0)
        # rounded from double: on some processors PyTorch's float32 root is not the nearest number
        scales = torch.where(alone, 1.0, (ranges[0] / ranges[1]).double().sqrt().float())
        _scale(graph, first, "out", torch.div, scales)
        _scale(graph, second, "in", torch.mul, scales)
        if bias is not None:
            value = g.parameter(graph, bias)
            g.set_parameter(graph, bias, value / g.per_channel(scales, value))
        names = (node.args[1].target.removesuffix(".weight") for node in (first, second))
        pairs.append(Pair(*names, ranges, scales))
    return pairs


@torch.no_grad()
def update_bias(
    folded: fx.GraphModule, biases: dict[str, torch.Tensor], node: fx.Node, inputs: tuple, output: torch.Tensor
) -> None:
    """Move the bias of one convolution against the error that it has just made; calibration calls it at each of them.

    The error is the convolution's output less what its float parameters give *on the same, rounded input*: what
    rounding this layer's own parameters has done, and nothing of the layers before it. Where the convolution's output
    is itself rounded, as no activation shares its position, that rounding counts too. Of its mean over batch and
    pixels, 0.05 is taken off the bias, so after ``n`` batches ``1 - 0.95^n`` of a steady error is gone. All pixels of
    an untied bias move together: a channel's mean is one of many values, a pixel's only of a batch's few.

    The batch under way goes on with ``output`` as it is; the next one meets the new bias.

    Args:
        folded: The float graph, BatchNorm folded, equalised where that is wanted.
        biases: The biases so far, by name, float32, in their shapes; changed in place. The first batch begins with the
            bias in ``inputs``, which is on its grid. A convolution without bias adds none.
        node: The convolution, a node of ``folded``.
        inputs: Values of its arguments: (N, C, H, W) float32, rounded; rounded weight, rounded or moved bias, untied or
            not; the rest.
        output: (N, C', H', W') float32 of those inputs, rounded if the convolution, or its untied bias, is a site.

    Raises:
        I2IError: If ``node`` is no convolution.
    """
    if node.target not in g.CONVOLUTIONS:
        raise I2IError("node", expected="a convolution", got=str(node.target))
    if (bias := g.bias_of(node)) is None:
        return
    weight, offset = (g.parameter(folded, argument) for argument in (node.args[1], bias))
    own, untied = (offset, 0.0) if offset.ndim == 1 else (None, offset)
    error = output - (node.target(inputs[0], weight, own, *inputs[3:]) + untied)
    step = g.per_channel(RATE * error.mean((0, 2, 3)), offset)
    biases[bias.target] = biases.get(bias.target, inputs[2]) - step


@torch.no_grad()
def correct_biases(folded: fx.GraphModule, biases: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put the biases that calibration ended with into ``folded``, in place, for rounding at the positions found before.

    One that moved by less than half a step from its grid falls back to the integer it began with, as most do.

    Args:
        folded: The float graph; its biases are replaced.
        biases: What :func:`update_bias` left.

    Returns:
        By the bias's name, in its shape, float32: what was subtracted from the folded bias.
    """
    nodes = {node.target: node for node in folded.graph.nodes if node.op == "get_attr" and node.target in biases}
    corrections = {name: g.parameter(folded, node).detach() - biases[name] for name, node in nodes.items()}
    for name, node in nodes.items():
        g.set_parameter(folded, node, g.parameter(folded, node) - corrections[name])
    return corrections


def _next_convolution(node: fx.Node, through: tuple) -> fx.Node | None:
    """The convolution that alone reads ``node``, over operators of ``through`` that each have one reader."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.target in g.CONVOLUTIONS:
            return node
        if node.target not in through and not g.adds_bias(node):
            break
    return None


def _grouped(graph: fx.GraphModule, convolution: fx.Node, side: Literal["out", "in"]) -> tuple[torch.Tensor, int]:
    """The weight as (groups, ., ., kh, kw), and the axis that with the groups counts the channels of ``side``.

    PyTorch keeps (out, in / groups, kh, kw) for a convolution, (in, out / groups, kh, kw) for a transposed one.
    """
    weight = g.parameter(graph, convolution.args[1]).detach()
    groups = convolution.args[6] if len(convolution.args) > 6 else 1
    transposed = convolution.target is A.conv_transpose2d.input
    return weight.reshape(groups, -1, *weight.shape[1:]), 1 if (side == "out") != transposed else 2


def _ranges(graph: fx.GraphModule, convolution: fx.Node, side: Literal["out", "in"]) -> torch.Tensor:
    """(C,) the largest magnitude of the weights of every channel."""
    weight, axis = _grouped(graph, convolution, side)
    return weight.abs().amax((3 - axis, 3, 4)).flatten()


def _scale(graph: fx.GraphModule, convolution: fx.Node, side: Literal["out", "in"], operation, scales: torch.Tensor):
    """Multiply or divide the weights of every channel by its scale."""
    weight, axis = _grouped(graph, convolution, side)
    shape = [len(weight), 1, 1, 1, 1]
    shape[axis] = -1
    value = operation(weight, scales.reshape(shape))
    node = convolution.args[1]
    g.set_parameter(graph, node, value.reshape(g.parameter(graph, node).shape))
