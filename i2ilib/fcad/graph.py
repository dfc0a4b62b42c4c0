"""Analysis: the layers and branches of a network, traced on shapes alone from a PyTorch module or an ONNX file."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import I2IError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

Shape = tuple[int, int, int]

KINDS = ("conv", "deconv", "linear", "activation", "upsample", "pool", "concat", "add", "mul", "shuffle")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One operator. Shapes are (C, H, W) of one frame; a vector of C numbers is (C, 1, 1)."""

    name: str  # of the module, or of the operator where there is no module of its own
    kind: str  # one of KINDS; "deconv" is a transposed convolution
    inputs: tuple[str, ...]  # layers, or inputs of the network
    in_shape: Shape  # of the first input
    out_shape: Shape
    kernel: tuple[int, int] = (1, 1)  # of a linear layer behind a map: the whole map
    stride: int = 1  # of a pooling: along columns
    groups: int = 1
    dilation: int = 1
    scale: float = 1  # of an up-sampling, and of a shuffle
    nearest: bool = False  # an up-sampling that repeats pixels
    weights: int = 0  # elements
    bias: int = 0  # elements, with a batch norm folded in
    untied: bool = False  # a bias for each element of the output
    macs: int = 0  # of a transposed convolution: real products only, no inserted zeros
    parameter: str = ""  # name of the weight, by which layers that share one are counted once
    span: tuple[int, int] | None = None  # rows and columns that its kernels meet together, where more than each does
    wider: int = 0  # bits by which a weight is wider than the network's: sums of several weights

    @property
    def elements(self) -> int:
        """Elements of its output."""
        return math.prod(self.out_shape)

    @property
    def ops(self) -> int:
        """Operations as the paper's Eq. 3 counts them: 2 a MAC, 1 an output of activation, up-sampling or pooling.

        Adding a bias or two maps counts nothing; a product of two maps 1 an output.
        """
        return self.elements if self.kind in ("activation", "upsample", "pool", "mul") else 2 * self.macs


@dataclasses.dataclass(frozen=True)
class Branch:
    """What one output needs, layers that other outputs need too included."""

    name: str
    layers: tuple[Layer, ...]  # in running order

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a frame."""
        return sum(layer.macs for layer in self.layers)

    @property
    def ops(self) -> int:
        """Operations of a frame, as :attr:`Layer.ops` counts them."""
        return sum(layer.ops for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases; a weight that several layers use counts once."""
        return _parameters(self.layers)

    @property
    def largest(self) -> int:
        """Elements of its largest map."""
        return max((layer.elements for layer in self.layers), default=0)


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network as its layers."""

    inputs: dict[str, Shape]
    layers: tuple[Layer, ...]  # in running order
    outputs: tuple[str, ...]  # the layer, or the network's input, behind each output
    names: tuple[str, ...]  # of the outputs
    host: tuple[str, ...] = ()  # operators behind an output that were left to the host

    def layer(self, name: str) -> Layer:
        """The layer of that name.

        Raises:
            I2IError: If there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise I2IError("layer", expected="a name of the graph's", got=repr(name), remedy="See Graph.table().")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """One branch for each output."""
        found = {layer.name: layer for layer in self.layers}
        branches = []
        for name, output in zip(self.names, self.outputs, strict=True):
            needed, waiting = set(), [output]
            while waiting:
                if (one := waiting.pop()) in found and one not in needed:
                    needed.add(one)
                    waiting += found[one].inputs
            branches.append(Branch(name, tuple(layer for layer in self.layers if layer.name in needed)))
        return tuple(branches)

    @property
    def shared(self) -> tuple[Layer, ...]:
        """Layers that more than one branch needs."""
        owners = [{layer.name for layer in branch.layers} for branch in self.branches]
        return tuple(layer for layer in self.layers if sum(layer.name in owner for owner in owners) > 1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a frame, shared layers once."""
        return sum(layer.macs for layer in self.layers)

    @property
    def ops(self) -> int:
        """Operations of a frame, shared layers once."""
        return sum(layer.ops for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases, shared ones once."""
        return _parameters(self.layers)

    def table(self) -> pd.DataFrame:
        """One row a layer, with the branches that need it."""
        import pandas as pd

        owners = {branch.name: {layer.name for layer in branch.layers} for branch in self.branches}
        rows = [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "branches": ", ".join(name for name, own in owners.items() if layer.name in own),
                "in": "×".join(map(str, layer.in_shape)),
                "out": "×".join(map(str, layer.out_shape)),
                "kernel": "×".join(map(str, layer.kernel)) if layer.weights or layer.kind == "pool" else "",
                "MMAC": layer.macs / 1e6,
                "weights": layer.weights,
                "bias": layer.bias,
                "untied": layer.untied,
            }
            for layer in self.layers
        ]
        return pd.DataFrame(rows).set_index("layer")

    def branch_table(self) -> pd.DataFrame:
        """One row a branch, with what it shares, and one for the network, which counts shared layers once."""
        import pandas as pd

        shared = {layer.name for layer in self.shared}
        parts = [(branch.name, branch.layers) for branch in self.branches] + [("network", self.layers)]
        rows = [
            {
                "branch": name,
                "convolutions": sum(layer.macs > 0 for layer in layers),
                "GOP (2 a MAC)": 2 * sum(layer.macs for layer in layers) / 1e9,
                "GOP (Eq. 3)": sum(layer.ops for layer in layers) / 1e9,
                "of it shared": sum(layer.ops for layer in layers if layer.name in shared) / 1e9,
                "parameters (M)": _parameters(layers) / 1e6,
                "largest map": max((layer.elements for layer in layers), default=0),
            }
            for name, layers in parts
        ]
        return pd.DataFrame(rows).set_index("branch")


def _parameters(layers: Iterable[Layer]) -> int:
    own = {layer.parameter or layer.name: layer.weights + layer.bias for layer in layers}
    return sum(own.values())


def analyse(
    model: nn.Module | str | os.PathLike,
    example_inputs: Tensor | tuple | Mapping[str, Any] | None = None,
    *,
    leave_ends: bool = False,
) -> Graph:
    """The layers of any network made of convolutions and what goes with them, traced and not typed in.

    A module is exported by ``torch.export`` on shapes alone, in evaluation mode: nothing is computed. Batch norm and
    multiplication by constants fold into a neighbour; reshaping, slicing, padding, dropout and the like vanish. A
    parameter that is added behind a convolution is its bias, untied if it has a value for each position. Layers that
    compute the same thing twice appear once.

    Args:
        model: A module, or the path of an ONNX file (Q/DQ pairs are seen through).
        example_inputs: For a module: a tensor, a tuple of them, or a dict of keyword arguments; only shapes count. A
            frame without a batch axis counts as a batch of one.
        leave_ends: Leave an operator that no stage can be to the host where nothing but an output comes behind it (a
            softmax, say); ``Graph.host`` names it.

    Raises:
        I2IError: If an operator is none that an accelerator of this kind has (the message names it and its module), the
            model cannot be traced, example inputs are missing, or the file cannot be read.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Upsample(None, 2))
        >>> [(layer.name, layer.kind, layer.out_shape) for layer in analyse(net, torch.zeros(1, 3, 8, 8)).layers]
        [('0', 'conv', (8, 8, 8)), ('1', 'activation', (8, 8, 8)), ('2', 'upsample', (8, 16, 16))]
    """
    if isinstance(model, str | os.PathLike):
        from .onnx_graph import read

        return read(Path(model), leave_ends)
    from .torch_graph import trace

    return trace(model, example_inputs, leave_ends)


# --- what both front ends build with ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Operator:
    """A node of a traced graph, in the words of this file; operands are keys of tensors, constants among them."""

    key: str  # of the tensor that it makes
    kind: str  # one of KINDS, or "norm" (folds away), "bias" (a constant added), "shape" (vanishes)
    operands: tuple[str, ...]  # tensors that depend on the network's input
    name: str
    weight: str = ""  # key of the weight or bias constant
    bias: str = ""
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    nearest: bool = False
    same_as: object = None  # operators that compute the same have the same one


class Builder:
    """Collects operators into a :class:`Graph`.

    Args:
        shapes: Full shape of a tensor, batch first, by key.
    """

    def __init__(self, shapes: Callable[[str], tuple[int, ...]]):
        self.shapes = shapes
        self.inputs: dict[str, Shape] = {}
        self.layers: dict[str, Layer] = {}
        self.behind: dict[str, str] = {}  # tensor to the layer or input that it is
        self.known: dict[object, str] = {}  # what is computed to the tensor that holds it
        self.host: list[str] = []  # what is left to the host

    def input(self, key: str) -> None:
        """Declare an input of the network."""
        self.inputs[key] = frame(self.shapes(key))
        self.behind[key] = key

    def add(self, op: Operator) -> None:
        """Take the next operator, in running order."""
        if op.same_as is not None:
            if op.same_as in self.known:
                self.behind[op.key] = self.behind[self.known[op.same_as]]
                return
            self.known[op.same_as] = op.key
        inputs = tuple(self.behind[key] for key in op.operands)
        if op.kind in ("shape", "norm", "bias"):
            self.behind[op.key] = inputs[0]
            self._fold(op, inputs[0])
            return
        before, after = self.shapes(op.operands[0]), self.shapes(op.key)
        layer = Layer(op.name, op.kind, inputs, frame(before), frame(after))
        if op.kind in ("conv", "deconv", "linear"):
            layer = self._multiply(layer, op, before, after)
        elif op.kind in ("upsample", "shuffle"):
            layer = dataclasses.replace(layer, scale=_scale(layer), nearest=op.nearest)
        elif op.kind == "pool":
            layer = dataclasses.replace(layer, kernel=op.kernel, stride=op.stride[1])
        name = layer.name
        number = 2
        while layer.name in self.layers or layer.name in self.inputs:
            layer = dataclasses.replace(layer, name=f"{name}:{number}")
            number += 1
        self.layers[layer.name] = layer
        self.behind[op.key] = layer.name

    def _multiply(self, layer: Layer, op: Operator, before: tuple[int, ...], after: tuple[int, ...]) -> Layer:
        weights = math.prod(self.shapes(op.weight))
        kernel, in_shape, out_shape = op.kernel, layer.in_shape, layer.out_shape
        if op.kind == "linear":
            rows = math.prod(before[1:-1])  # a linear layer over sequences works at each position
            in_shape, out_shape = (before[-1], rows, 1), (after[-1], rows, 1)
            map_shape = self._shape(layer.inputs[0])
            if math.prod(map_shape) == before[-1]:
                in_shape, kernel = map_shape, map_shape[1:]
            macs = weights * rows
        else:  # each weight once a position: of the output, or of the input where the convolution is transposed
            macs = weights * math.prod((in_shape if op.kind == "deconv" else out_shape)[1:])
        return dataclasses.replace(
            layer, in_shape=in_shape, out_shape=out_shape, kernel=kernel, groups=op.groups, weights=weights,
            stride=_one(op.stride, op.name, "stride"), dilation=_one(op.dilation, op.name, "dilation"),
            bias=math.prod(self.shapes(op.bias)) if op.bias else 0, macs=macs, parameter=op.weight,
        )  # fmt: skip

    def _fold(self, op: Operator, name: str) -> None:
        layer = self.layers.get(name)
        convolves = layer is not None and layer.macs > 0
        if op.kind == "norm" and convolves and not layer.untied:
            self.layers[name] = dataclasses.replace(layer, bias=layer.out_shape[0])
        if op.kind == "bias" and op.weight:
            shape = tuple(self.shapes(op.weight))
            elements, spatial = math.prod(shape), len(shape) > 2 and math.prod(shape[-2:]) > 1
            if elements == 1:
                return
            if not convolves:
                got = f"{_words(shape)} added to what {name} gives"
                remedy = "Add it behind a convolution, before its activation: there it is a bias."
                raise I2IError(op.name, expected="a bias behind a convolution", got=got, remedy=remedy)
            self.layers[name] = dataclasses.replace(layer, bias=max(elements, layer.bias), untied=spatial)

    def _shape(self, name: str) -> Shape:
        return self.layers[name].out_shape if name in self.layers else self.inputs[name]

    def graph(self, outputs: Mapping[str, str]) -> Graph:
        """The finished graph, without layers that no output needs.

        Args:
            outputs: Name of an output to the key of its tensor.
        """
        names = tuple(outputs)
        behind = tuple(self.behind[key] for key in outputs.values())
        graph = Graph(self.inputs, tuple(self.layers.values()), behind, names, tuple(self.host))
        needed = {layer.name for branch in graph.branches for layer in branch.layers}
        return dataclasses.replace(graph, layers=tuple(layer for layer in graph.layers if layer.name in needed))


def frame(shape: tuple[int, ...]) -> Shape:
    """(C, H, W) of a tensor whose first axis is the batch."""
    rest = [int(n) for n in shape[1:]] or [1]
    if len(rest) > 3:
        rest = [rest[0], math.prod(rest[1:-1]), rest[-1]]
    channels, height, width = [*rest, 1, 1][:3]
    return channels, height, width


def reason(error: Exception) -> str:
    """The first line of what another library has to say."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


WHY_NOT = {
    "norm": "It needs mean and variance of the whole map before it can give its first number: a pipeline would stand"
    " still for a map, or keep one. Train with batch norm, whose numbers are constants, or leave it to the host.",
    "attention": "Two computed maps are multiplied as matrices, or a row needs all of itself: no convolution does that."
    " Leave it to the host.",
}
_REASONS = {
    "norm": ("group_norm", "layer_norm", "instance_norm", "native_group_norm", "native_layer_norm", "rms_norm",
             "GroupNormalization", "LayerNormalization", "InstanceNormalization", "LpNormalization"),
    "attention": ("softmax", "log_softmax", "matmul", "bmm", "scaled_dot_product_attention", "einsum", "Softmax"),
}  # fmt: skip


def gates(gate: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a factor is as large as a map, or has one number for each channel, or for each position."""
    kinds = (shape, (*shape[:2], *[1] * len(shape[2:])), (shape[0], 1, *shape[2:]))
    return len(gate) == len(shape) and tuple(gate) in kinds


def unknown(name: str, operator: str) -> I2IError:
    """The error for an operator that has no place on the accelerator."""
    why = next((WHY_NOT[kind] for kind, names in _REASONS.items() if operator in names), None)
    return I2IError(
        f"{name or 'the network'}, operator {operator}",
        expected="convolution, linear, activation, batch norm, up-sampling, pooling, shuffle, concatenation, sum or"
        " product",
        got="an operator that a pipeline of convolution stages does not have",
        remedy=why or "Leave this part to the host: analyse the module before it and the one behind it.",
    )


def _scale(layer: Layer) -> float:
    (_, h, w), (_, height, width) = layer.in_shape, layer.out_shape
    if height * w != width * h:
        got = f"{height / h:g} × {width / w:g}"
        raise I2IError(layer.name, expected="the same factor in height and width", got=got)
    return height // h if height % h == 0 else height / h


def _one(pair: tuple[int, int], name: str, what: str) -> int:
    if pair[0] != pair[1]:
        raise I2IError(f"{name}, {what}", expected="the same in height and width", got=_words(pair))
    return pair[0]


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
