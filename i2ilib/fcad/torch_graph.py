"""Analysis of a PyTorch module, by ``torch.export``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import I2IError
from ..runtime import quiet
from .arguments import kind_of
from .graph import Builder, Graph, Operator, gates, reason, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "log_sigmoid",
    "tanh", "softplus", "softsign", "hardtanh", "hardsigmoid", "hardswish", "clamp", "clamp_min", "clamp_max",
}  # fmt: skip
SHAPES = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as",
    "contiguous", "clone", "detach", "alias", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
    "slice", "select", "split", "split_with_sizes", "chunk", "getitem", "to", "_to_copy", "type_as", "permute",
    "transpose", "t", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "lift_fresh_copy", "narrow",
    "unbind",
}  # fmt: skip
UPSAMPLES = {"upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d"}
UPSAMPLES |= {"_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"}
POOLS = {"max_pool2d", "avg_pool2d", "max_pool2d_with_indices"}
MAPS = {"conv2d", "conv_transpose2d", *POOLS, "adaptive_avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle"}
ADAPTIVE = {"adaptive_avg_pool2d", "adaptive_max_pool2d"}


def trace(model: nn.Module, example_inputs: Any, leave_ends: bool = False) -> Graph:
    """Export a module and build its graph; see :func:`i2ilib.fcad.graph.analyse`."""
    import torch
    from torch import nn
    from torch.utils import _pytree

    if not isinstance(model, nn.Module):
        raise I2IError("model", expected="a PyTorch module or the path of an ONNX file", got=kind_of(model))
    if not isinstance(example_inputs, torch.Tensor | tuple | list | Mapping):
        expected = "a tensor, a tuple of them, or a dict of keyword arguments"
        raise I2IError("example_inputs", expected=expected, got=kind_of(example_inputs), remedy="Only shapes count.")
    device = next((parameter.device for parameter in model.parameters()), None)  # the meta device, too
    example_inputs = _pytree.tree_map_only(
        torch.Tensor, lambda tensor: torch.zeros_like(tensor, device=device), example_inputs
    )
    keywords = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    positional = () if keywords else example_inputs
    positional = (positional,) if isinstance(positional, torch.Tensor) else tuple(positional)
    program = _export(model, positional, keywords)
    if _unbatched(program):  # PyTorch takes a single frame for what it is; here the first axis is the batch
        positional, keywords = _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor[None], (positional, keywords))
        program = _export(model, positional, keywords, "Give example inputs a batch axis: (1, C, H, W).")
    nodes = {node.name: node for node in program.graph.nodes}

    def shapes(key: str) -> tuple[int, ...]:
        value = nodes[key].meta["val"]
        return tuple((value if isinstance(value, torch.Tensor) else value[0]).shape)

    builder = Builder(shapes)
    signature = program.graph_signature
    given = set(signature.user_inputs)
    alive: set[str] = set()  # tensors that depend on the network's input
    same: dict[object, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in given and isinstance(node.meta.get("val"), torch.Tensor):
                builder.input(node.name)
                alive.add(node.name)
        elif any(one.name in alive for one in node.all_input_nodes) and isinstance(
            node.meta.get("val"), torch.Tensor | list | tuple
        ):
            alive.add(node.name)
            ends = leave_ends and all(user.op == "output" for user in node.users)
            _take(node, builder, alive, same, ends)
    tree = program.call_spec.out_spec
    named = _pytree.tree_unflatten(list(range(tree.num_leaves)), tree)
    outputs = {}
    for name, index in _leaves(named):
        key = signature.user_outputs[index]
        if isinstance(key, str) and key in alive:
            outputs[name] = key
    if not outputs:
        raise I2IError(type(model).__name__, expected="an output that depends on an input", got="none")
    return builder.graph(outputs)


def _export(model: nn.Module, positional: tuple, keywords: dict, remedy: str | None = None):
    import torch

    with _evaluating(model), quiet("torch", "torch.export"):
        try:
            with torch.no_grad():  # else each part with gradients off becomes one operator
                return torch.export.export(model, positional, keywords, strict=False)
        except I2IError:
            raise
        except Exception as error:  # whatever PyTorch meets
            got = f"{type(error).__name__}: {reason(error)}"
            remedy = remedy or (
                "Python that depends on values cannot be traced; the shapes must be ones that the model takes."
            )
            expected = "a module that PyTorch exports"
            raise I2IError(type(model).__name__, expected=expected, got=got, remedy=remedy) from None


def _unbatched(program: Any) -> bool:
    """Whether an operator of maps meets three axes, or a linear layer one."""
    for node in program.graph.nodes:
        operator = getattr(node.target, "_opname", "")
        axes = {"linear": 1}.get(operator, 3 if operator in MAPS else 0)
        first = node.args[0] if node.args else None
        value = first.meta.get("val") if hasattr(first, "meta") else None
        if axes and getattr(value, "ndim", None) == axes:
            return True
    return False


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in was.items():
            module.training = training


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Names of a module's outputs: keys of a dict, fields of a named tuple or dataclass, else numbers."""
    prefix = f"{name}." if name else ""
    if isinstance(tree, int):
        yield name or "output", tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}{key}")
    elif hasattr(tree, "_fields"):
        for key in tree._fields:
            yield from _leaves(getattr(tree, key), f"{prefix}{key}")
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from _leaves(getattr(tree, field.name), f"{prefix}{field.name}")
    elif isinstance(tree, list | tuple):
        if len(tree) == 1:
            yield from _leaves(tree[0], name)
        else:
            for number, value in enumerate(tree, start=1):
                yield from _leaves(value, f"{prefix or 'branch '}{number}")


def _take(node: torch.fx.Node, builder: Builder, alive: set[str], same: dict[str, str], ends: bool) -> None:
    """Hand one exported node to the builder; one that ends the network may be left to the host."""
    operator = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    plain = operator.removesuffix("_")  # in place or not
    name = _name(node)
    values = _arguments(node)
    moving = [value for value in node.args if getattr(value, "name", None) in alive]  # a tensor twice counts twice
    operands = tuple(one.name for one in node.all_input_nodes if one.name in alive)

    def add(kind: str, **fields: object) -> None:
        builder.add(Operator(node.name, kind, operands, name, same_as=_meaning(node, same), **fields))

    def constant(argument: str) -> str:
        return getattr(values.get(argument), "name", "")

    if plain in ("conv2d", "conv_transpose2d") and constant("weight") not in alive:
        kernel = tuple(builder.shapes(constant("weight"))[2:])
        add(
            "conv" if plain == "conv2d" else "deconv", weight=constant("weight"), bias=constant("bias"), kernel=kernel,
            stride=_pair(values.get("stride", 1)), dilation=_pair(values.get("dilation", 1)),
            groups=values.get("groups", 1),
        )  # fmt: skip
    elif plain == "linear" and constant("weight") not in alive:
        add("linear", weight=constant("weight"), bias=constant("bias"))
    elif plain in ACTIVATIONS:
        add("activation")
    elif plain in UPSAMPLES:
        add("upsample", nearest="nearest" in plain)
    elif plain in POOLS:
        kernel = _pair(values["kernel_size"])
        add("pool", kernel=kernel, stride=_pair(values.get("stride") or kernel))
    elif plain in ADAPTIVE or (plain == "mean" and _spatial(node, values)):
        before, after = builder.shapes(operands[0])[2:], (*node.meta["val"].shape[2:], 1, 1)
        window = tuple(-(-a // b) for a, b in zip(before, after, strict=False))
        add("shape" if window == (1, 1) else "pool", kernel=window, stride=window)
    elif plain in ("pixel_shuffle", "pixel_unshuffle"):
        add("shuffle")
    elif plain in ("cat", "concat") and values.get("dim", 0) in (1, 1 - node.meta["val"].ndim):
        add("concat" if len(operands) > 1 else "shape")  # with constants alone nothing is joined
    elif plain == "batch_norm" and not values["training"]:
        add("norm")
    elif plain == "neg" or (
        plain in ("mul", "div") and len(moving) == 1 and (plain == "mul" or node.args[0] in moving)
    ):
        add("norm")  # by a constant
    elif plain == "mul" and (gate := _gate(node)):  # x · sigmoid(x), one activation
        operands = (gate,)
        add("shape")
    elif plain == "mul" and len(operands) == 2:
        shape = tuple(node.meta["val"].shape)  # the map first, then its gate, whose one number serves a whole channel
        operands = tuple(sorted(operands, key=lambda key: builder.shapes(key) != shape))
        if builder.shapes(operands[0]) != shape or not gates(builder.shapes(operands[1]), shape):
            raise unknown(name, operator)
        add("mul")
    elif plain == "mul":
        add("activation")  # a map times itself
    elif plain in ("add", "sub") and len(operands) == 2:
        add("add")
    elif (plain == "rsub" or (plain == "sub" and node.args[0] not in moving)) and len(moving) == 1:
        # a constant less a map: by -1, and a bias
        other = [one for one in node.all_input_nodes if one.name not in alive]
        add("bias", weight=other[0].name if other else "")
    elif plain in ("add", "sub") and node.args[0] in moving:
        add("bias", weight=next((one.name for one in node.all_input_nodes if one.name not in alive), ""))
    elif plain == "add":
        add("bias", weight=node.args[0].name)
    elif plain in SHAPES or operator in SHAPES:
        add("shape")
    elif ends:
        builder.host.append(f"{name} ({operator})")
        add("shape")
    else:
        raise unknown(name, operator)


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments of an operator by name, without those left to their defaults."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _name(node: torch.fx.Node) -> str:
    """Path of the module, with the operator behind it where the module has several."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    if path and kind.startswith("torch.nn.modules.") and ".container." not in kind:
        return path
    return f"{path}.{node.name}" if path else node.name


def _meaning(node: torch.fx.Node, same: dict[str, str]) -> str:
    """What a node computes, in terms of the first nodes that computed the same."""
    import torch

    arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: f"%{same.get(one.name, one.name)}")
    meaning = f"{node.target}{arguments}"
    same[node.name] = same.setdefault(meaning, node.name)
    return meaning


def _gate(node: torch.fx.Node) -> str:
    """Name of the sigmoid where a product is ``x · sigmoid(x)``."""
    pairs = (node.args, node.args[::-1])
    found = [a for a, b in pairs if "sigmoid" in str(getattr(a, "target", "")) and a.args and a.args[0] is b]
    return found[0].name if found else ""


def _spatial(node: torch.fx.Node, values: dict[str, Any]) -> bool:
    """Whether a mean runs over height and width."""
    axes = values.get("dim") or []
    before = node.args[0].meta["val"].ndim
    return before == 4 and sorted(axis % before for axis in axes) == [2, 3]


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
