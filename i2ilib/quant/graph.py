"""A network as a graph of ATen operators, prepared for integers: captured, normalisation folded, tensors grouped.

The grouping rules are those observed on AMD's quantiser (pytorch_nndct 3.5.0): which tensors are rounded, and where.
One is ours: an *untied* bias, a parameter (C, H, W) or (1, C, H, W) added right behind a convolution, is that
convolution's bias. It is rounded as a bias and joins the sums before activation and rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Container

import torch
from torch import fx, nn

from ..errors import I2IError
from ..runtime import quiet
from .fixed_point import Kind
from .tracing import (
    CONVOLUTIONS,
    A,
    argument,
    export,
    is_parameter,
    operator_name,
    operators,
    parameter,
    remove_idle,
    set_parameter,
)

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
ACTIVATIONS = {A.relu.default: "relu", A.leaky_relu.default: "leaky", A.relu6.default: "relu6"}
FOLLOWING = (*ACTIVATIONS, A.pixel_shuffle.default)  # join the group of their producer
HOST = (A.tanh.default, A.clamp.default, A.sigmoid.default, A.upsample_bicubic2d.vec)  # float, on the host
OPERATORS = (*COMPUTING, *FOLLOWING, *HOST, A.batch_norm.default)  # all that can be quantised

SLOPE = 26 / 256  # of LeakyReLU, the DPU's only one


def capture(model: nn.Module, example: torch.Tensor, *, fold: bool = True) -> fx.GraphModule:
    """The evaluation-mode graph of ``model`` with a free batch size, on a copy of its parameters.

    It is that of :func:`i2ilib.quant.tracing.export` without idle operators. LeakyReLU gets the DPU's slope, with a
    warning where the model has another, as AMD's quantiser does it. A convolution with an untied bias keeps no other:
    its own is added to that one, and left as zeros for whoever reads the state dict.

    Args:
        model: Any module of one tensor in and one out.
        example: (N, C, H, W) float32; height and width are fixed by it.
        fold: Fold every BatchNorm into its convolution.

    Raises:
        I2IError: If the model cannot be exported, or an operator cannot be quantised; the module is named.
    """
    graph = export(model, example)
    remove_idle(graph)
    for node in operators(graph):
        if wanted := missing(node):
            unknown = node.target not in OPERATORS
            got = str(node.target).removeprefix("aten.") if unknown else operator_name(node.target) + str(node.args[1:])
            remedy = "Write the module with these, or leave it out of the quantised part." if unknown else None
            raise I2IError(tensor_name(node), expected=wanted, got=got, remedy=remedy)
    _set_slopes(graph)
    _fold_own_biases(graph)
    if fold:
        fold_batch_norm(graph)
    graph.recompile()
    return graph


def copy_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """A deep copy, without the deprecation notices of PyTorch's own copying."""
    with quiet():
        return copy.deepcopy(graph)


def _set_slopes(graph: fx.GraphModule) -> None:
    nodes = [node for node in graph.graph.nodes if node.target is A.leaky_relu.default]
    slopes = {argument(node, 1, 0.01) for node in nodes} - {SLOPE}
    for node in nodes:
        node.args = (node.args[0], SLOPE)
    if slopes:
        found = ", ".join(f"{slope:g}" for slope in sorted(slopes))
        warnings.warn(
            f"LeakyReLU of slope {found} becomes 26/256, the DPU's only one; the network was not trained with it",
            stacklevel=4,
        )


# --- what can be quantised: the one answer for the quantiser and for the inspector ---------------------


def missing(node: fx.Node) -> str | None:
    """What an operator would have to be to be quantised; None where it can be, as it is.

    Args:
        node: An operator of an exported graph without idle ones.
    """
    if node.target not in OPERATORS:
        return "an operator from " + ", ".join(map(operator_name, OPERATORS))
    if not all(isinstance(source.meta.get("val"), torch.Tensor) for source in node.all_input_nodes):
        return "arguments that do not depend on the size of the batch"
    if any(each.meta["val"].dtype != torch.float32 for each in (node, *node.all_input_nodes)):
        return "float32 values"
    fixed = node.all_input_nodes[1:] if node.target in (*CONVOLUTIONS, A.batch_norm.default) else ()
    if node.target is not A.add.Tensor and any(is_parameter(n) for n in node.all_input_nodes if n not in fixed):
        return "inputs that the network computes"
    return _MISSING.get(node.target, lambda node: None)(node)


def _power_of_two(value: float) -> bool:
    return value >= 1 and math.frexp(value)[0] == 0.5


def _fixed_weights(node: fx.Node) -> str | None:
    parameters = [each for each in (*node.args, None)[1:3] if each is not None]
    if not all(map(is_parameter, parameters)):
        return "a convolution whose weight and bias are parameters"
    if node.target is A.conv_transpose2d.input:
        plain = argument(node, 6, 1) == 1 and set(argument(node, 7, [1])) == {1}
        return None if plain else "a transposed convolution without groups and dilation"
    return None


def _no_fixed_norm(node: fx.Node) -> str | None:
    conv, scale, offset, mean, variance, training = node.args[:6]
    if None in (mean, variance) or training:
        return "running statistics (track_running_stats=True)"
    if not all(is_parameter(each) for each in (scale, offset, mean, variance) if each is not None):
        return "a BatchNorm whose parameters and statistics are fixed"
    alone = conv.target in CONVOLUTIONS and all(len(each.users) == 1 for each in (conv, *conv.all_input_nodes[1:]))
    return None if alone else "a convolution before BatchNorm, used by it alone and called once"


def _no_plain_sum(node: fx.Node) -> str | None:
    terms, shape = node.args[:2], node.meta["val"].shape[1:]
    same = all(isinstance(term, fx.Node) and term.meta["val"].shape[-3:] == shape for term in terms)
    behind = same and terms[0].target in CONVOLUTIONS and len(terms[0].users) == 1
    placed = behind or not any(map(is_parameter, terms))
    if not (same and placed and node.kwargs.get("alpha", 1) == 1):
        return "a sum of two tensors of one shape, or of a convolution that nothing else reads and a bias (C, H, W)"
    own = (*terms[0].args, None)[2] if adds_bias(node) else None
    if own is not None and len(own.users) + len(terms[1].users) > 2:
        return "one call of a convolution that has a bias and an untied one, or bias=False"
    return None


def _odd_mean(node: fx.Node) -> str | None:
    kernel = (list(node.args[1]) * 2)[:2]
    plain = not any(argument(node, 3, [0])) and not argument(node, 4, False) and argument(node, 6, None) is None
    return (
        None
        if plain and _power_of_two(math.prod(kernel))
        else "a mean over 2, 4, 8, ... pixels, without padding; the DPU approximates others"
    )


def _uneven_scale(node: fx.Node) -> str | None:
    (_, _, height, width), (_, _, before_h, before_w) = node.meta["val"].shape, node.args[0].meta["val"].shape
    bilinear = node.target is A.upsample_bilinear2d.vec
    fits = _power_of_two if bilinear else float.is_integer
    factors = [height / before_h, width / before_w]
    scales = argument(node, 3 if bilinear else 2, None) or factors  # PyTorch computes with these where they are given
    even = all(map(fits, factors)) and list(scales) == factors and not (bilinear and node.args[2])
    return None if even else "a whole factor" + (", 2, 4 or 8, with align_corners=False" if bilinear else "")


_MISSING = {
    **dict.fromkeys(CONVOLUTIONS, _fixed_weights),
    A.batch_norm.default: _no_fixed_norm,
    A.add.Tensor: _no_plain_sum,
    A.avg_pool2d.default: _odd_mean,
    A.upsample_nearest2d.vec: _uneven_scale,
    A.upsample_bilinear2d.vec: _uneven_scale,
    A.max_pool2d.default: lambda node: "a pool without dilation" if set(argument(node, 4, [1])) != {1} else None,
    A.cat.default: lambda node: None if argument(node, 1, 0) in (1, -3) else "a concat of channels (dim=1)",
    A.constant_pad_nd.default: lambda node: (
        "padding of height and width, with zeros" if argument(node, 2, 0) or len(node.args[1]) > 4 else None
    ),
}


def adds_bias(node: fx.Node) -> bool:
    """Whether a node of a captured graph adds an untied bias to the convolution before it."""
    return node.target is A.add.Tensor and is_parameter(node.args[1])


def bias_of(convolution: fx.Node) -> fx.Node | None:
    """The parameter that joins a convolution's sums: its own bias (C,), or an untied one, added behind it."""
    untied = (user.args[1] for user in convolution.users if adds_bias(user))
    return next(untied, (*convolution.args, None)[2])


def per_channel(values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """(C,) in the shape that meets the channels of a bias: (C,), or (C, 1, 1) for an untied one."""
    return values if bias.ndim == 1 else values.reshape(-1, 1, 1)


@torch.no_grad()
def _fold_own_biases(graph: fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        if not adds_bias(node) or (own := (*node.args[0].args, None)[2]) is None:
            continue
        conv, untied = node.args
        value, bias = parameter(graph, own), parameter(graph, untied)
        set_parameter(graph, untied, bias + per_channel(value, bias))
        set_parameter(graph, own, torch.zeros_like(value))
        conv.args = (*conv.args[:2], None, *conv.args[3:])


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
        mean, variance = (parameter(graph, arg).double() for arg in node.args[3:5])
        gamma, beta = (  # None with affine=False
            torch.full_like(mean, neutral) if arg is None else parameter(graph, arg).double()
            for arg, neutral in zip(node.args[1:3], (1.0, 0.0), strict=True)
        )
        scale = gamma / torch.sqrt(variance + node.args[7])
        weight_node, bias_node = (*conv.args, None)[1:3]
        weight = parameter(graph, weight_node)
        axis = 1 if conv.target is A.conv_transpose2d.input else 0
        shape = [-1 if i == axis else 1 for i in range(4)]
        bias = 0.0 if bias_node is None else parameter(graph, bias_node).double()
        set_parameter(graph, weight_node, (weight.double() * scale.reshape(shape)).to(weight.dtype))
        if bias_node is None:
            bias_node = add_bias(graph, conv)
        set_parameter(graph, bias_node, ((bias - mean) * scale + beta).to(weight.dtype))
        node.replace_all_uses_with(conv)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def add_bias(graph: fx.GraphModule, conv: fx.Node) -> fx.Node:
    """Give a convolution without bias an empty one, named ``<convolution>.bias``; the node that stands for it."""
    name = conv.args[1].target.removesuffix("weight") + "bias"
    owner, _, leaf = name.rpartition(".")
    graph.get_submodule(owner).register_parameter(leaf, nn.Parameter(torch.empty(0), requires_grad=False))
    with graph.graph.inserting_after(conv.args[1]):
        node = graph.graph.get_attr(name)
    conv.args = (*conv.args[:2], node, *conv.args[3:])
    return node


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
    leaf = path and str(kind).startswith("torch.nn.modules.")
    return path if leaf else f"{path}.{node.name}".lstrip(".")


def group_end(node: fx.Node) -> fx.Node:
    """The last node of ``node``'s group: an untied bias, activations and shuffles that alone consume it join it."""
    while len(node.users) == 1 and ((user := next(iter(node.users))).target in FOLLOWING or adds_bias(user)):
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

    def computed(node: fx.Node) -> bool:
        return node.target in (*COMPUTING, *FOLLOWING)

    def only_concatenated(node: fx.Node) -> bool:
        return len(node.users) == 1 and next(iter(node.users)).target is A.cat.default

    for node in graph.graph.nodes:
        if node.op == "placeholder":
            add(node, "input")
        if node.target in CONVOLUTIONS:
            for argument in (node.args[1], bias_of(node)):
                if argument is not None:
                    add(argument, "parameter")
        if node.target in COMPUTING:
            if node.target is A.cat.default:
                add(node)
            end = group_end(node)
            if end.target is A.cat.default or not only_concatenated(end):
                add(end)
        elif node.target in FOLLOWING and (len(node.args[0].users) > 1 or not computed(node.args[0])):
            end = group_end(node)
            if not only_concatenated(end):
                add(end)
        elif node.target in HOST and not only_concatenated(node) and any(u.target in COMPUTING for u in node.users):
            add(node)
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    return sorted(found.values(), key=lambda site: order[site.node])


def without_host(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``graph`` that ends before the host's operators at its end."""
    graph = copy_graph(graph)
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    node = output.args[0][0]
    while node.target in HOST:
        node = node.args[0]
    output.args = ((node,),)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def rounded_at(node: fx.Node, sites: Container[fx.Node]) -> fx.Node:
    """Where the group that ``node`` opens is rounded: at its end, or at the concat that alone consumes it."""
    end = group_end(node)
    return end if end in sites else next(iter(end.users))


def interpret(
    graph: fx.GraphModule,
    sites: list[Site],
    x: torch.Tensor,
    rounding: Callable[[Site, torch.Tensor], torch.Tensor],
    after_convolution: Callable[[fx.Node, tuple, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Run ``graph`` on ``x`` with the value of every site replaced by what ``rounding`` makes of it.

    ``after_convolution`` is shown every convolution: its node, the values of its arguments, its (rounded) result; of
    one with an untied bias, that bias as the third argument, and the result with it.
    """
    by_name = {site.node.name: site for site in sites}  # names outlive a copy of the graph, nodes do not
    waiting: dict[fx.Node, tuple] = {}  # arguments of convolutions whose untied bias is still to come

    class Rounding(fx.Interpreter):
        def run_node(self, node: fx.Node):
            value = super().run_node(node)
            site = by_name.get(node.name)
            value = value if site is None else rounding(site, value)
            if after_convolution is None or not (node.target in CONVOLUTIONS or adds_bias(node)):
                return value
            arguments = self.fetch_args_kwargs_from_env(node)[0]
            if any(map(adds_bias, node.users)):
                waiting[node] = arguments
            elif adds_bias(node):
                x, weight, *rest = waiting.pop(node.args[0])
                after_convolution(node.args[0], (x, weight, arguments[1], *rest[1:]), value)
            else:
                after_convolution(node, arguments, value)
            return value

    return Rounding(graph).run(x)
