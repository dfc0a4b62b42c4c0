"""What a model computes, as a graph of plain ATen operators: the one that is inspected and that is quantised."""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from ..errors import I2IError
from ..runtime import quiet

A = torch.ops.aten

CONVOLUTIONS = (A.conv2d.default, A.conv_transpose2d.input)

_DROPOUT = (A.dropout.default, A.feature_dropout.default, A.alpha_dropout.default, A.feature_alpha_dropout.default)
_CASTS = tuple(getattr(A.to, overload) for overload in A.to.overloads())
_ITSELF = (*_DROPOUT, *_CASTS, A.alias.default, A.detach.default, A.contiguous.default)  # idle, they copy nothing


# --- copies of models --------------------------------------------------------------------------------


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy of a module on the CPU, float32, in evaluation mode, with the weights that it computes with.

    What PyTorch's norms of weights, pruning and parametrisations make of a weight takes its place. The model itself
    stays as it is.

    Raises:
        I2IError: If ``model`` is no module, or cannot be copied.
    """
    check_module(model)
    try:
        with quiet(), _Detaching(), torch.no_grad():
            copied = copy.deepcopy(model).cpu().float().eval()
            for module in list(copied.modules()):
                _settle_weights(module)
    except Exception as error:  # whatever a module holds that cannot be copied or moved
        remedy = "Leave out of it what is neither tensor nor setting, and give every parameter its values."
        want = "a module that can be copied"
        raise I2IError(type(model).__name__, expected=want, got=_told(error), remedy=remedy) from error
    return copied


def check_module(model: object) -> nn.Module:
    """The model itself.

    Raises:
        I2IError: If it is no module.
    """
    if not isinstance(model, nn.Module):
        raise I2IError("model", expected="a torch.nn.Module", got=type(model).__name__)
    return model


class _Detaching(TorchFunctionMode):
    """Copies computed tensors too, such as the weight that ``weight_norm`` leaves; PyTorch copies only leaves."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return function(*args, **(kwargs or {}))


def _settle_weights(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
    if parametrize.is_parametrized(module):
        weights = {name: getattr(module, name).detach() for name in module.parametrizations}
        module.__class__ = parametrize.type_before_parametrizations(module)  # PyTorch's removal would change its class,
        del module.parametrizations  # and with it the model that was copied
        for name, value in weights.items():
            module.register_parameter(name, nn.Parameter(value))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"


# --- graphs ------------------------------------------------------------------------------------------


def export(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """The operators of ``model`` in the order in which data flows through them, with a free batch size.

    Whoever reads a tensor that was written in place reads the writer's result. What depends on parameters alone is
    computed. Padding that is given by a word has its numbers, and it makes no difference where gradients are off.

    Args:
        model: Any module of one tensor in and one out; it is copied, not changed.
        example: (N, C, H, W) float32; height and width are fixed by it.

    Raises:
        I2IError: If the model cannot be copied, PyTorch cannot trace it (the module where it stopped is named), or it
            has several inputs or outputs.
    """
    model = evaluation_copy(model)  # an exported module shares its parameters
    example = torch.zeros(max(2, len(example)), *example.shape[1:])  # a batch of one would be taken for a constant
    batch = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    within: list[str] = []  # the modules whose forward has begun and not ended
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, _, name=name: within.append(name or type(module).__name__))
        module.register_forward_hook(lambda *_: within.pop() and None)
    try:
        with quiet("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"), torch.no_grad():
            graph = torch.export.export(model, (example,), dynamic_shapes=batch).module(check_guards=False)
    except I2IError:
        raise
    except Exception as error:  # whatever the tracer met: its own errors, or one of the model's
        where = within[-1] if within else type(model).__name__
        remedy = "Pass an example of a size that it takes; its forward must take any batch and not depend on values."
        raise I2IError(where, expected="a model that PyTorch can export", got=_told(error), remedy=remedy) from error
    _inline(graph)
    _resolve_writes(graph)
    for node in list(graph.graph.nodes):
        if node.op == "call_function":
            _plain(graph, node)
    _compute_constants(graph)
    graph.graph.eliminate_dead_code(lambda node: node.op != "call_function")  # parameters stay, read or not
    _refuse_ends(graph)
    return graph


def operators(graph: fx.GraphModule) -> list[fx.Node]:
    """The operators of a graph; sizes, and single ones of several results, are no operators of their own."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    return [node for node in calls if isinstance(node.meta.get("val"), torch.Tensor | list | tuple)]


def is_idle(node: fx.Node) -> bool:
    """Whether an operator gives what it is given: dropout in evaluation, a copy, a conversion to the same type."""
    if node.target in _DROPOUT:
        return not node.args[2]
    return node.target is A.clone.default or (node.target in _ITSELF and _type(node) == _type(node.args[0]))


def remove_idle(graph: fx.GraphModule) -> None:
    """Take out the operators that :func:`is_idle` names."""
    for node in list(graph.graph.nodes):
        if is_idle(node):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _type(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


def _inline(graph: fx.GraphModule) -> None:
    """Put what runs with gradients on, a graph in the graph, into the graph itself."""
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
            continue
        _, body, *inputs = node.args
        inner = getattr(graph, body.target)
        _inline(inner)
        places = [place for place in inner.graph.nodes if place.op == "placeholder"]
        with graph.graph.inserting_before(node):
            results = graph.graph.graph_copy(inner.graph, dict(zip(places, inputs, strict=True)))
        for item in list(node.users):
            item.replace_all_uses_with(results[item.args[1]])
            graph.graph.erase_node(item)
        graph.graph.erase_node(node)


def _resolve_writes(graph: fx.GraphModule) -> None:
    """Make operators that write in place ordinary ones; who reads that memory later, by any name, reads the result."""
    owner: dict[fx.Node, fx.Node] = {}  # the node that first gave a tensor's memory
    latest: dict[fx.Node, fx.Node] = {}  # who wrote there last, by owner
    for node in graph.graph.nodes:
        node.args = fx.map_arg(node.args, lambda read: latest.get(owner[read], read))
        plain = _without_writing(node)
        owner[node] = owner[node.args[0]] if plain or node.target in _ITSELF else node
        if plain:
            node.target, latest[owner[node]] = plain, node


def _without_writing(node: fx.Node) -> torch._ops.OpOverload | None:
    """Of an operator that writes into its first argument, the one that does not."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = operator_name(node.target)
    found = getattr(A, name[:-1], None) if name.endswith("_") and not name.startswith("_") else None
    return getattr(found, node.target._overloadname, None)


def _plain(graph: fx.GraphModule, node: fx.Node) -> None:
    """Bring what PyTorch can write in several ways to one form; assertions go."""
    if node.meta.get("val") is None and not node.users:
        graph.graph.erase_node(node)
    elif node.target is A.hardtanh.default and node.args[1:] == (0, 6):
        node.target, node.args = A.relu6.default, node.args[:1]
    elif node.target is A.pad.default and argument(node, 2, "constant") == "constant":
        node.target, node.args = A.constant_pad_nd.default, (*node.args[:2], argument(node, 3, None) or 0)
    elif node.target is A.add.Tensor and is_parameter(node.args[0]) and not node.kwargs:
        node.args = node.args[::-1]
    elif node.target is A.conv2d.padding:
        _number_padding(graph, node)


def _number_padding(graph: fx.GraphModule, node: fx.Node) -> None:
    """The numbers of padding="same" and "valid"; as in PyTorch, an odd line of "same" is a pad below or right."""
    defaults = [known.default_value for known in node.target._schema.arguments]
    x, weight, bias, stride, word, dilation, groups = (*node.args, *defaults[len(node.args) :])
    kernel, dilation = weight.meta["val"].shape[2:], list(dilation) * (2 // len(dilation))
    total = [d * (k - 1) if word == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    below, right = (n % 2 for n in total)
    if below or right:
        with graph.graph.inserting_before(node):
            padded = graph.graph.call_function(A.constant_pad_nd.default, (x, [0, right, 0, below], 0))
        n, channels, height, width = x.meta["val"].shape
        padded.meta["val"] = x.meta["val"].new_empty(n, channels, height + below, width + right)
        around = list((node.meta.get("nn_module_stack") or {}).items())[:-1]  # the convolution keeps its name
        padded.meta["nn_module_stack"] = dict(around)
        x = padded
    node.target = A.conv2d.default
    node.args = (x, weight, bias, stride, [n // 2 for n in total], dilation, groups)


@torch.no_grad()
def _compute_constants(graph: fx.GraphModule) -> None:
    """Replace what depends on parameters alone by a parameter, ``<operator>_weight`` where it is a convolution's."""
    for node in list(graph.graph.nodes):
        sources = node.all_input_nodes
        if node.op != "call_function" or not all(map(is_parameter, sources)):
            continue
        known = {source: parameter(graph, source) for source in sources}
        tensors = all(isinstance(value, torch.Tensor) for value in (*known.values(), node.meta.get("val")))
        if not tensors or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        is_weight = any(user.target in CONVOLUTIONS and user.args[1] is node for user in node.users)
        name = f"{node.name}_{'weight' if is_weight else 'value'}"
        graph.register_parameter(name, nn.Parameter(node.target(*args, **kwargs), requires_grad=False))
        with graph.graph.inserting_before(node):
            new = graph.graph.get_attr(name)
        new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)


def _refuse_ends(graph: fx.GraphModule) -> None:
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    results = graph.graph.output_node().args[0]
    tensors = [isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor) for node in results]
    if len(inputs) != 1 or tensors != [True]:
        got = f"{len(inputs)} in, {len(results)} out" if all(tensors) else "an output of another kind"
        raise I2IError("model", expected="one tensor in and one tensor out", got=got)
    if is_parameter(results[0]):
        raise I2IError("model", expected="an output that depends on the input", got="a constant")


# --- nodes -------------------------------------------------------------------------------------------


def operator_name(target: object) -> str:
    """The name of an ATen operator, without its overload: ``conv2d``."""
    return target.__name__.partition(".")[0] if isinstance(target, torch._ops.OpOverload) else str(target)


def argument(node: fx.Node, index: int, default: object) -> object:
    """A positional argument of an operator, or what stands for it where it was left out."""
    return node.args[index] if len(node.args) > index else default


def is_parameter(argument: object) -> bool:
    """Whether an argument of an operator is a parameter or another constant."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def parameter(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The parameter or buffer that a ``get_attr`` node stands for."""
    owner, _, name = node.target.rpartition(".")
    return getattr(graph.get_submodule(owner), name)


def set_parameter(graph: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replace the parameter that a ``get_attr`` node stands for."""
    owner, _, name = node.target.rpartition(".")
    setattr(graph.get_submodule(owner), name, nn.Parameter(value, requires_grad=False))
