"""Make engines that round ties to even round as the DPU does, ties up, to the bit.

Before a tensor is rounded it lies on a grid: a convolution's sums are whole multiples of ``2^-(fp_in + fp_w)``. A shift
by less than the finest step of that grid lifts every value on a tie above it, and none across it: so rounding to the
nearest gives ``floor(x + 0.5)``, whatever is done with ties. The shift goes into the bias, where it costs nothing.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx

from . import graph as g
from .graph import A

SLOPE_BITS = 7  # LeakyReLU's 13/128 makes a grid finer by so many bits
UNMOVED = (A.relu.default, A.max_pool2d.default, A.constant_pad_nd.default, A.upsample_nearest2d.vec)
UNMOVED = (*UNMOVED, A.pixel_shuffle.default, A.slice.Tensor, A.permute.default, A.reshape.default)


def break_ties(
    graph: fx.GraphModule, sites: list[g.Site], fix_positions: dict[str, int]
) -> tuple[fx.GraphModule, list[g.Site]]:
    """The network with every tie lifted, and its sites in the new graph; outputs are equal but for ties.

    A float tensor (the input, a result of the host) is rounded exactly, ``ceil(floor(2 x) / 2)``.

    Args:
        graph: Of any quantised network, parameters on their grids; it is copied.
        sites: Its sites.
        fix_positions: By tensor name, one for every site.
    """
    graph = g.copy_graph(graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    sites = [dataclasses.replace(site, node=nodes[site.node.name]) for site in sites]
    at = {site.node: fix_positions[site.name] for site in sites}
    finest = _grids(graph, at)
    moved: dict[fx.Node, fx.Node] = {}  # site to the node that is rounded in its place
    for node, fp in list(at.items()):
        if node.op == "get_attr":
            continue
        if node.target is A.cat.default:
            parts = {
                part: _lifted(graph, part, at.get(part, finest.get(part)), fp, part not in at)
                for part in node.all_input_nodes  # each once
            }
            node.args = ([parts[part] for part in node.args[0]], *node.args[1:])
            continue
        readers = list(node.users)
        moved[node] = new = _lifted(graph, node, finest[node], fp, True)
        at[new] = fp
        if new is not node:
            for reader in readers:
                reader.replace_input_with(node, new)
    graph.graph.lint()
    graph.recompile()
    return graph, [dataclasses.replace(site, node=moved.get(site.node, site.node)) for site in sites]


def _grids(graph: fx.GraphModule, at: dict[fx.Node, int]) -> dict[fx.Node, int | None]:
    """The fix position of the finest step that a node's value can take before it is rounded; None: it is float."""
    finest: dict[fx.Node, int | None] = {}

    def seen(node: fx.Node) -> int | None:
        return at.get(node, finest[node])

    for node in graph.graph.nodes:
        if node.op != "call_function":
            finest[node] = None
        elif node.target in g.CONVOLUTIONS:
            sums = seen(node.args[0]) + at[node.args[1]]
            finest[node] = max(sums, at.get(g.bias_of(node), sums))
        elif node.target in (A.cat.default, A.add.Tensor):
            parts = [seen(part) for part in node.all_input_nodes]
            finest[node] = None if None in parts else max(parts)
        elif node.target in g.HOST or seen(node.args[0]) is None:
            finest[node] = None
        elif node.target in UNMOVED:
            finest[node] = seen(node.args[0])
        elif node.target is A.leaky_relu.default:
            finest[node] = seen(node.args[0]) + SLOPE_BITS
        elif node.target is A.relu6.default:
            finest[node] = max(seen(node.args[0]), -1)  # 6 is whole on the grid of steps of 2
        elif node.target is A.avg_pool2d.default:
            kh, kw = (list(node.args[1]) * 2)[:2]
            finest[node] = seen(node.args[0]) + (kh * kw).bit_length() - 1
        else:  # bilinear: whole multiples of 1 / (2 factor) along each axis
            before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
            factors = [after[axis] // before[axis] for axis in (2, 3)]
            finest[node] = seen(node.args[0]) + sum((2 * factor).bit_length() - 1 for factor in factors)
    return finest


def _lifted(graph: fx.GraphModule, node: fx.Node, finest: int | None, fp: int, unrounded: bool) -> fx.Node:
    """A node with the value of ``node`` that rounds up on ties at ``fp``: itself, its bias moved, or a new one.

    Args:
        graph: Changed in place.
        node: What is rounded.
        finest: The grid that its value lies on; None: it is float.
        fp: Where it is rounded.
        unrounded: The value comes as its group computes it, not from a grid that it was rounded to before.
    """
    if finest is None:  # ceil(floor(2 q) / 2)
        steps = [(A.mul.Tensor, 2.0 ** (fp + 1)), (A.floor.default,), (A.mul.Tensor, 0.5), (A.ceil.default,)]
        return _behind(graph, node, [*steps, (A.mul.Tensor, 2.0**-fp)])
    if finest <= fp:  # nothing to round
        return node
    first, leaky = node, False
    while first.target in g.FOLLOWING and len(first.args[0].users) == 1:
        leaky |= first.target is A.leaky_relu.default
        first = first.args[0]
    # where the bias is: the third argument of a convolution, or the second of a sum that adds an untied one
    conv, place = (first.args[0], 1) if g.adds_bias(first) else (first, 2)
    if not unrounded or conv.target not in g.CONVOLUTIONS:
        return _behind(graph, node, [(A.add.Tensor, 2.0 ** -(finest + 1))])
    # behind LeakyReLU a shift counts 13/128: 1/16 of a step of the sums is 13/16 of a step there
    shift = 2.0 ** -max(finest - SLOPE_BITS + 4 if leaky else finest + 1, fp + 2)
    bias = g.bias_of(conv)
    channels = g.parameter(graph, conv.args[1]).shape[0 if conv.target is A.conv2d.default else 1]
    value = torch.zeros(channels) if bias is None else g.parameter(graph, bias).detach()
    # two shifts in turn: OpenVINO may drop one small number for all channels
    shifts = torch.tensor([shift, 0.75 * shift]).repeat(channels)[:channels]
    name = f"{first.name}_lifted"  # a bias of its own: a module that is called twice needs two shifts
    value = value + g.per_channel(shifts, value)
    graph.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    with graph.graph.inserting_before(first):
        first.args = (*first.args[:place], graph.graph.get_attr(name), *first.args[place + 1 :])
    return node


def _behind(graph: fx.GraphModule, node: fx.Node, steps: list[tuple]) -> fx.Node:
    """``steps``, each an operator and its further arguments, behind ``node``; the last one."""
    for operator, *arguments in steps:
        with graph.graph.inserting_after(node):
            new = graph.graph.call_function(operator, (node, *arguments))
        new.meta = dict(node.meta)
        node = new
    return node
