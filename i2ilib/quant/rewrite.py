"""The same sums in another order: forms of convolutions that suit the matrix units of CPUs better.

A matrix unit multiplies tiles of sixteen pixels (AMX). An engine fills a tile from one line of one image, so deep in a
U-Net, where a line has one to eight pixels, most of a tile is empty. And it computes a transposed convolution phase by
phase, each again with half of a line. Both are cured by moving pixels, which integers survive unchanged:

- *sub-pixel*: a transposed convolution (kernel 4, stride 2, padding 1) is a 2x2 convolution with four times the
  channels, a pixel shuffle and the loss of a border of one pixel;
- *side by side*: the images of a batch, zeros between them, are one image with long lines.

A convolution with an untied bias, a number for every pixel, stays as it is.

And an enlarger's bicubic branch, which is the host's and float, becomes two products with the matrices of its axes: a
fraction of the time that an engine's own interpolation takes on small patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode

from . import graph as g
from .graph import A

TILE = 16  # pixels that a matrix unit takes at once; output channels too
NARROW_READ = 8  # pixels of a line that a transposed convolution reads: they waste enough of a tile
NARROW_WRITTEN = 4  # of one that an ordinary convolution writes
LARGEST_PRODUCT = 1024  # pixels along an axis; the work of a product grows with its square
SHAPED = "shaped"  # key of a node's meta: an empty tensor of its shape, for two images


def for_cpu(graph: fx.GraphModule, sites: list[g.Site]) -> tuple[fx.GraphModule, list[g.Site]]:
    """A copy of ``graph`` with its narrow convolutions in the forms above, and its sites.

    What is rounded, and where, stays as it is: pixels are moved behind the rounding.

    Args:
        graph: ``Quantised.graph``: parameters on their grids.
        sites: Its sites.
    """
    graph = g.copy_graph(graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    sites = [dataclasses.replace(site, node=nodes[site.node.name]) for site in sites]
    fake = FakeTensorMode()
    for node in nodes.values():
        if node.op == "get_attr":
            node.meta[SHAPED] = fake.from_tensor(g.parameter(graph, node).detach())
        elif isinstance(value := node.meta.get("val"), torch.Tensor):
            with fake:
                node.meta[SHAPED] = torch.empty(2, *map(int, value.shape[1:]))
    for node in list(graph.graph.nodes):
        if node.target is A.conv_transpose2d.input and _suits_subpixel(graph, node):
            sites = _subpixel(graph, node, sites)
        if node.target is A.upsample_bicubic2d.vec and max(node.meta[SHAPED].shape[2:]) <= LARGEST_PRODUCT:
            sites = _products(graph, node, sites)
    for node in list(graph.graph.nodes):
        if node.target is A.conv2d.default and _suits_side_by_side(node):
            sites = _side_by_side(graph, node, sites)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    alive = set(graph.graph.nodes)
    return graph, [site for site in sites if site.node in alive]


def _suits_subpixel(graph: fx.GraphModule, node: fx.Node) -> bool:
    weight = g.parameter(graph, node.args[1])
    stride, padding, output_padding = (_pair(node, index, default) for index, default in ((3, 1), (4, 0), (5, 0)))
    geometry = (tuple(weight.shape[2:]), stride, padding, output_padding) == ((4, 4), (2, 2), (1, 1), (0, 0))
    return geometry and (_width(node.args[0]) <= NARROW_READ or 4 * weight.shape[1] <= TILE)


def _subpixel(graph: fx.GraphModule, node: fx.Node, sites: list[g.Site]) -> list[g.Site]:
    """Replace a transposed convolution; the sites with it."""
    found = _rounded(node, sites)
    if found is None:
        return sites
    end, where = found
    x, weight_node, bias_node = (*node.args, None)[:3]
    weight = g.parameter(graph, weight_node).detach()
    # output pixel 2 i + r meets x[i - 1], x[i] through taps 3, 1 (r = 0), and x[i], x[i + 1] through 2, 0 (r = 1);
    # phase 0 goes to the second place of its pair, so that both start at one window and a border of one is left over
    taps = torch.tensor([[2, 0], [3, 1]])
    phases = weight[:, :, taps][..., taps]  # (in, out, row phase, row tap, column phase, column tap)
    phases = phases.permute(1, 2, 4, 0, 3, 5).reshape(-1, weight.shape[0], 2, 2)
    parameters = {f"{node.name}_subpixel_weight": (weight_node, phases)}
    if bias_node is not None:
        bias = g.parameter(graph, bias_node).detach()
        parameters[f"{node.name}_subpixel_bias"] = (bias_node, bias.repeat_interleave(4))
    arguments: list[fx.Node | None] = []
    kept = {site.node: site for site in sites}
    for name, (old, value) in parameters.items():
        graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
        with graph.graph.inserting_before(node):
            arguments.append(graph.graph.get_attr(name))
        arguments[-1].meta[SHAPED] = node.meta[SHAPED].new_empty(value.shape)
        sites = [*sites, dataclasses.replace(kept[old], node=arguments[-1])]
    arguments += [None] * (2 - len(arguments))
    with graph.graph.inserting_before(node):
        new = _call(graph, A.conv2d.default, x, *arguments, [1, 1], [1, 1])
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    if end is node:
        end = new
    end.meta[SHAPED] = new.meta[SHAPED]  # an activation's, too
    steps = [(A.pixel_shuffle.default, 2), (A.slice.Tensor, 2, 1, -1), (A.slice.Tensor, 3, 1, -1)]
    _behind(graph, end, steps)
    return _placed(sites, node, end, where)


def _products(graph: fx.GraphModule, node: fx.Node, sites: list[g.Site]) -> list[g.Site]:
    """Replace a bicubic interpolation, which is linear: the matrix of an axis is what it makes of the unit matrix."""
    x, corners, scales = node.args[0], node.args[2], g.argument(node, 3, None)
    matrices = []
    for axis in (2, 3):
        before, after = x.meta[SHAPED].shape[axis], node.meta[SHAPED].shape[axis]
        unit, scale = torch.eye(before)[None, None], scales and [scales[axis - 2], 1.0]
        matrix = A.upsample_bicubic2d.vec(unit, None if scale else [after, before], corners, scale)[0, 0]
        name = f"{node.name}_axis{axis}"
        graph.register_parameter(name, nn.Parameter(matrix if axis == 2 else matrix.T, requires_grad=False))
        with graph.graph.inserting_before(node):
            matrices.append(graph.graph.get_attr(name))
        matrices[-1].meta[SHAPED] = x.meta[SHAPED].new_empty(matrix.shape if axis == 2 else matrix.T.shape)
    with graph.graph.inserting_before(node):
        new = _call(graph, A.matmul.default, _call(graph, A.matmul.default, matrices[0], x), matrices[1])
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    return [dataclasses.replace(site, node=new) if site.node is node else site for site in sites]


def _suits_side_by_side(node: fx.Node) -> bool:
    kernel = node.args[1].meta[SHAPED].shape[2:]
    stride, dilation, groups = _pair(node, 3, 1), _pair(node, 5, 1), g.argument(node, 6, 1)
    plain = dilation == (1, 1) and groups == 1 and kernel[1] > 1 and kernel[1] >= stride[1]
    return plain and _width(node) <= NARROW_WRITTEN + 1  # a sub-pixel form has one window more


def _side_by_side(graph: fx.GraphModule, node: fx.Node, sites: list[g.Site]) -> list[g.Site]:
    """Lay the batch of a convolution side by side; the sites with it."""
    found = _rounded(node, sites)
    if found is None:
        return sites
    end, where = found
    x, kernel = node.args[0], node.args[1].meta[SHAPED].shape[3]
    _, channels, height, width = x.meta[SHAPED].shape
    _, out_channels, out_height, out_width = node.meta[SHAPED].shape
    (down, along), (above, beside) = _pair(node, 3, 1), _pair(node, 4, 0)
    gap = max(beside, (out_width - 1) * along + kernel - beside - width)  # zeros that both neighbours share
    period = -(-(width + gap) // along) * along
    with graph.graph.inserting_before(node):
        for target, *arguments in (
            (A.constant_pad_nd.default, [beside, period - width - beside, above, above]),
            (A.permute.default, [2, 0, 3, 1]),  # rows, images, columns, channels: engines keep channels last
            (A.reshape.default, [1, height + 2 * above, -1, channels]),
            (A.permute.default, [0, 3, 1, 2]),
            (A.constant_pad_nd.default, [0, kernel - along]),  # the last image's windows that nobody reads
        ):
            x = _call(graph, target, x, *arguments)
    node.args = (x, *(*node.args, None)[1:3], [down, along], [0, 0])
    end.meta[SHAPED] = x.meta[SHAPED].new_empty(1, out_channels, out_height, 2 * period // along)
    steps = [
        (A.permute.default, [0, 2, 3, 1]),
        (A.reshape.default, [out_height, -1, period // along, out_channels]),
        (A.slice.Tensor, 2, 0, out_width),
        (A.permute.default, [1, 3, 0, 2]),
    ]
    _behind(graph, end, steps)
    return _placed(sites, node, end, where)


def _rounded(node: fx.Node, sites: Iterable[g.Site]) -> tuple[fx.Node, g.Site] | None:
    """Behind which node (its activation) a convolution is rounded, and the site: that node's, or its only concat's."""
    by_node = {site.node: site for site in sites}
    end = node
    while end not in by_node and len(end.users) == 1 and next(iter(end.users)).target in g.ACTIVATIONS:
        end = next(iter(end.users))
    if end in by_node:
        return end, by_node[end]
    reader = next(iter(end.users))
    return (end, by_node[reader]) if len(end.users) == 1 and reader.target is A.cat.default else None


def _placed(sites: list[g.Site], old: fx.Node, end: fx.Node, where: g.Site) -> list[g.Site]:
    """The sites with ``where`` at ``end``: moved there from the node that was replaced, or, a concat's, there too."""
    sites = [site for site in sites if site.node is not old and site.node is not end]
    return [*sites, dataclasses.replace(where, node=end)]


def _behind(graph: fx.GraphModule, node: fx.Node, steps: list[tuple]) -> None:
    """Let all readers of ``node`` read it through ``steps``, each an operator and its further arguments."""
    readers, new = list(node.users), node
    for target, *arguments in steps:
        with graph.graph.inserting_after(new):
            new = _call(graph, target, new, *arguments)
    for reader in readers:
        reader.replace_input_with(node, new)


def _call(graph: fx.GraphModule, target: torch._ops.OpOverload, *arguments: object) -> fx.Node:
    """A new node where the graph inserts, with its shape."""
    node = graph.graph.call_function(target, arguments)
    value = target(*(a.meta[SHAPED] if isinstance(a, fx.Node) else a for a in arguments))
    node.meta |= {SHAPED: value, "val": value}  # torchao rounds only what is known to be a tensor
    return node


def _width(node: fx.Node) -> int:
    return node.meta[SHAPED].shape[3]


def _pair(node: fx.Node, index: int, default: int) -> tuple[int, int]:
    value = g.argument(node, index, default)
    height, width = (list(value) * 2)[:2] if isinstance(value, list | tuple) else (value, value)
    return height, width
