"""A network as a graph of ATen operators, prepared for integers: captured, normalisation folded, tensors grouped.

The grouping rules are those observed on AMD's quantiser (pytorch_nndct 3.5.0): which tensors are rounded, and where.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import fx, nn

from ..errors import I2IError
from ..runtime import quiet
from .fixed_point import Kind

A = torch.ops.aten

CONVOLUTIONS = (A.conv2d.default, A.conv_transpose2d.input)
COMPUTING = (
    *CONVOLUTIONS,
    A.add.Tensor,
    A.cat.default,
    A.max_pool2d.default,
    A.avg_pool2d.default,
    A.constant_pad_nd.default,
    A.upsample_nearest2d.vec,
    A.upsample_bilinear2d.vec,
)
FOLLOWING = (A.relu.default, A.leaky_relu.default, A.pixel_shuffle.default)  # join the group of their producer
HOST = (A.tanh.default, A.clamp.default, A.sigmoid.default, A.upsample_bicubic2d.vec)  # float, on the host


def capture(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The evaluation-mode graph of ``model`` with a free batch size, on a copy of its parameters.

    Args:
        model: Any module of one tensor in and one out.
        example: (N, C, H, W) float32; height and width are fixed by it.
    """
    model = copy.deepcopy(model).eval()  # an exported module shares its parameters
    if len(example) < 2:  # a batch of one would be taken for a constant
        example = torch.cat([example, example])
    batch = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    graph = torch.export.export(model, (example,), dynamic_shapes=batch).module(check_guards=False)
    for node in graph.graph.nodes:
        if node.target is A.dropout.default:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    fold_batch_norm(graph)
    _refuse_unknown(graph)
    return graph


def copy_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """A deep copy, without the deprecation notices of PyTorch's own copying."""
    with quiet():
        return copy.deepcopy(graph)


def _refuse_unknown(graph: fx.GraphModule) -> None:
    known = (*COMPUTING, *FOLLOWING, *HOST)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target not in known:
            raise I2IError(
                tensor_name(node),
                expected="an operator from " + ", ".join(str(op) for op in known),
                got=str(node.target),
                remedy="Write the module with these, or leave it out of the quantised part.",
            )


def parameter(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The parameter or buffer that a ``get_attr`` node stands for."""
    owner, _, name = node.target.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def set_parameter(graph: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replace the parameter that a ``get_attr`` node stands for."""
    owner, _, name = node.target.rpartition(".")
    setattr(graph.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))


@torch.no_grad()
def fold_batch_norm(graph: fx.GraphModule) -> None:
    """Fold every BatchNorm that alone follows a convolution into its weights and bias, in place.

    ``w' = w · γ / √(σ² + ε)`` along the output channels, ``b' = (b - μ) · γ / √(σ² + ε) + β``; a convolution without
    bias gains one, named ``<convolution>.bias``.
    """
    for node in list(graph.graph.nodes):
        if node.target is not A.batch_norm.default:
            continue
        conv = node.args[0]
        if conv.target not in CONVOLUTIONS or len(conv.users) > 1:
            want = "a convolution before BatchNorm, used by it alone"
            raise I2IError(tensor_name(node), expected=want, got=conv.name)
        gamma, beta, mean, variance = (parameter(graph, arg).double() for arg in node.args[1:5])
        scale = gamma / torch.sqrt(variance + node.args[7])
        weight_node, bias_node = (*conv.args, None)[1:3]
        weight = parameter(graph, weight_node)
        axis = 1 if conv.target is A.conv_transpose2d.input else 0
        shape = [-1 if i == axis else 1 for i in range(4)]
        bias = 0.0 if bias_node is None else parameter(graph, bias_node).double()
        set_parameter(graph, weight_node, (weight.double() * scale.reshape(shape)).to(weight.dtype))
        if bias_node is None:
            name = weight_node.target.removesuffix("weight") + "bias"
            owner, _, leaf = name.rpartition(".")
            graph.get_submodule(owner).register_parameter(leaf, nn.Parameter(torch.empty(0), requires_grad=False))
            with graph.graph.inserting_after(weight_node):
                bias_node = graph.graph.get_attr(name)
            conv.args = (*conv.args[:2], bias_node, *conv.args[3:])
        set_parameter(graph, bias_node, ((bias - mean) * scale + beta).to(weight.dtype))
        node.replace_all_uses_with(conv)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


# --- which tensors are rounded ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Site:
    """A tensor that gets a fix position: where it is in the graph, what it is called, how it rounds."""

    node: fx.Node
    name: str
    kind: Kind


def tensor_name(node: fx.Node) -> str:
    """A name that a reader finds in the model: the module's path, the parameter's, or the operator's."""
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return node.target
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    # a torch.nn leaf names its own result; in a composite module the operator's name tells them apart
    return path if str(kind).startswith("torch.nn.modules.") else f"{path}.{node.name}".lstrip(".")


def group_end(node: fx.Node) -> fx.Node:
    """The last node of the group that ``node`` opens: activations and shuffles that alone consume it join it."""
    while len(node.users) == 1 and (user := next(iter(node.users))).target in FOLLOWING:
        node = user
    return node


def sites(graph: fx.GraphModule) -> list[Site]:
    """The tensors that the DPU scheme rounds, in the order in which they are computed.

    The network input; weights and bias of every convolution; the end of every computing group, except where only a
    concat consumes it (then it is rounded there); every concat; every stand-alone activation; and any float tensor
    that feeds a computing node directly.
    """
    found: dict[fx.Node, Site] = {}

    def add(node: fx.Node, kind: Kind = "activation") -> None:
        if node not in found:
            name, used = tensor_name(node), {site.name for site in found.values()}
            found[node] = Site(node, f"{name}#{node.name}" if name in used else name, kind)  # a module called twice

    def only_concatenated(node: fx.Node) -> bool:
        return len(node.users) == 1 and next(iter(node.users)).target is A.cat.default

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            add(node, "input")
        if node.target in CONVOLUTIONS:
            for argument in node.args[1:3]:
                if argument is not None:
                    add(argument, "parameter")
        if node.target in COMPUTING:
            if node.target is A.cat.default:
                add(node)
            end = group_end(node)
            if end.target is A.cat.default or not only_concatenated(end):
                add(end)
        elif node.target in FOLLOWING and len(node.args[0].users) > 1:
            end = group_end(node)
            if not only_concatenated(end):
                add(end)
        elif node.target in HOST and any(user.target in COMPUTING for user in node.users):
            add(node)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    return sorted(found.values(), key=lambda site: order[site.node])
