"""Analysis of an ONNX file, by its shape inference."""

from __future__ import annotations

from pathlib import Path

from ..errors import I2IError, IntegrityError
from ..runtime import quiet, require
from .graph import Builder, Graph, Operator, gates, reason, unknown

ACTIVATIONS = {
    "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid",
    "HardSwish", "Swish", "Tanh", "Softplus", "Softsign", "Mish", "Clip",
}  # fmt: skip
SHAPES = {
    "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Pad", "Cast",
    "Expand", "Gather", "QuantizeLinear", "DequantizeLinear", "Floor", "Ceil", "Round",
}  # fmt: skip
SMALL = 64  # elements of a constant that is computed
REMEDY = "Export it with fixed height and width."


def read(path: Path, leave_ends: bool = False) -> Graph:
    """Read a file and build its graph; see :func:`i2ilib.fcad.graph.analyse`.

    A batch axis without a size counts as one frame. What the file computes from shapes alone is computed.
    """
    onnx, optimizer = require("onnx"), require("onnxscript.optimizer")
    if not path.exists():
        raise I2IError(str(path), expected="an ONNX file", got="none")
    try:
        model = onnx.load(path, load_external_data=False)
        for one in model.graph.input:
            if (dims := one.type.tensor_type.shape.dim) and not dims[0].dim_value:
                dims[0].dim_value = 1
        del model.graph.value_info[:]  # where they keep the batch's symbol, inference would keep it too
        _fold(optimizer, model)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # a foreign file can fail anywhere
        raise IntegrityError(str(path), expected="a readable ONNX file", got=reason(error)) from None
    return _Reader(onnx, graph, str(path), leave_ends).graph()


def _fold(optimizer, model) -> None:
    """Compute sizes and paddings that depend on shapes alone, which exporters leave to the engine."""
    with quiet("onnxscript"):
        optimizer.fold_constants(model, onnx_shape_inference=True, output_size_limit=SMALL, should_fold=_small)
        optimizer.remove_unused_nodes(model)


def _small(node) -> bool | None:
    """Whether to compute a node of constants: not of weights, whose values may be in another file, and names count."""
    if max((one.const_value.size for one in node.inputs if one is not None), default=0) > SMALL:
        return False
    return node.op_type == "ConstantOfShape" or None  # None leaves the choice to onnxscript, which keeps these


def _repeats(attributes: dict) -> bool:
    """Whether a Resize by a whole number repeats pixels, at either of the two places where pixels may lie."""
    if attributes.get("mode", b"nearest") != b"nearest":
        return False
    where = attributes.get("coordinate_transformation_mode", b"half_pixel")
    which = attributes.get("nearest_mode", b"round_prefer_floor")
    if where == b"asymmetric":
        return which == b"floor"
    return where in (b"half_pixel", b"pytorch_half_pixel") and which.startswith(b"round_")


class _Reader:
    def __init__(self, onnx, graph, path: str, leave_ends: bool):
        self.leave_ends, self.read = leave_ends, {key for node in graph.node for key in node.input}
        self.onnx, self.nodes, self.path = onnx, graph.node, path
        self.constants: dict[str, tuple[int, ...] | None] = {one.name: tuple(one.dims) for one in graph.initializer}
        self.values = {one.name: one for one in graph.initializer}
        self.sizes = {
            one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim)
            for one in (*graph.input, *graph.value_info, *graph.output)
            if one.type.tensor_type.HasField("shape")
        }
        self.builder = Builder(self.shape)
        self.origin: dict[str, str] = {}  # constant to the initialiser behind its casts and scales
        self.same: dict[str, str] = {}
        self.sigmoids: dict[str, str] = {}  # output of a sigmoid to its input
        for one in graph.input:
            if one.name not in self.constants:
                self.builder.input(one.name)
        self.outputs = [one.name for one in graph.output]

    def shape(self, key: str) -> tuple[int, ...]:
        size = self.constants.get(key, self.sizes.get(key))
        if size is None or 0 in size:
            raise I2IError(f"{self.path}, tensor {key}", expected="a known shape", got=size or "none", remedy=REMEDY)
        return size

    def graph(self) -> Graph:
        for node in self.nodes:
            if any(key in self.builder.behind for key in node.input):
                self._take(node)
            else:  # constants make constants
                for key in node.output:
                    self.constants[key] = self.sizes.get(key)
                    if node.op_type == "Constant" and node.attribute[0].name == "value":
                        self.values[key] = node.attribute[0].t
                        self.constants[key] = tuple(node.attribute[0].t.dims)
                    elif node.input:
                        self.origin[key] = self.origin.get(node.input[0], node.input[0])
        found = {name: name for name in self.outputs if name in self.builder.behind}
        if not found:
            raise I2IError(self.path, expected="an output that depends on an input", got="none")
        return self.builder.graph(found)

    def _take(self, node) -> None:
        alive = self.builder.behind
        operands = tuple(dict.fromkeys(key for key in node.input if key in alive))
        attributes = {one.name: self.onnx.helper.get_attribute_value(one) for one in node.attribute}
        name, op = node.name or node.output[0], node.op_type
        weight = next((key for key in node.input[1:2] if key and key not in alive), "")
        bias = node.input[2] if len(node.input) > 2 and node.input[2] not in alive else ""

        def add(kind: str, **fields: object) -> None:
            label = self._module(fields.get("weight", "")) if kind in ("conv", "deconv", "linear") else ""
            given = Operator(node.output[0], kind, operands, label or name, same_as=self._meaning(node), **fields)
            self.builder.add(given)
            for more in node.output[1:]:  # parts of a split
                alive[more] = alive[node.output[0]]

        if op in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.input[1] in self.builder.inputs:
            got, remedy = f"the input {node.input[1]}", "Export it with its parameters."
            raise I2IError(f"{self.path}, {name}", expected="a weight that the file holds", got=got, remedy=remedy)
        if op in ("Conv", "ConvTranspose") and weight and len(self.shape(weight)) == 4:
            add(
                "conv" if op == "Conv" else "deconv", weight=weight, bias=bias, kernel=self.shape(weight)[2:],
                stride=tuple(attributes.get("strides", (1, 1))), dilation=tuple(attributes.get("dilations", (1, 1))),
                groups=attributes.get("group", 1),
            )  # fmt: skip
        elif op in ("Gemm", "MatMul") and weight and len(self.shape(weight)) == 2:
            add("linear", weight=weight, bias=bias)
        elif op in ACTIVATIONS:
            add("activation")
            if op == "Sigmoid":
                self.sigmoids[node.output[0]] = node.input[0]
        elif op == "Mul" and any(self.sigmoids.get(key) in node.input for key in node.input):
            operands = tuple(key for key in operands if key in self.sigmoids)  # x · sigmoid(x): one activation
            add("shape")
        elif op == "Mul" and len(operands) == 2:
            shape = self.shape(node.output[0])
            operands = tuple(sorted(operands, key=lambda key: self.shape(key) != shape))  # the map, then its gate
            if self.shape(operands[0]) != shape or not gates(self.shape(operands[1]), shape):
                raise unknown(name, op)
            add("mul")
        elif op == "Mul" and sum(key in alive for key in node.input) == 2:
            add("activation")  # a map times itself
        elif op in ("Resize", "Upsample"):
            add("upsample", nearest=_repeats(attributes))
        elif op in ("MaxPool", "AveragePool"):
            kernel = tuple(attributes["kernel_shape"])
            add("shape" if kernel == (1, 1) else "pool", kernel=kernel, stride=tuple(attributes.get("strides", (1, 1))))
        elif op in ("GlobalAveragePool", "GlobalMaxPool") or (op == "ReduceMean" and self._spatial(node, attributes)):
            window = self.shape(operands[0])[2:]
            add("shape" if window == (1, 1) else "pool", kernel=window, stride=window)
        elif op in ("DepthToSpace", "SpaceToDepth"):
            add("shuffle")
        elif op == "Concat" and attributes["axis"] in (1, 1 - len(self.shape(node.output[0]))):
            add("concat" if len(operands) > 1 else "shape")
        elif op in ("BatchNormalization", "Neg") or (
            op in ("Mul", "Div") and sum(key in alive for key in node.input) == 1
        ):
            if op == "Div" and node.input[0] not in alive:
                raise unknown(name, op)
            add("norm")
        elif op in ("Add", "Sub", "Sum"):
            if len(operands) >= 2:
                add("add")
            else:  # also a constant less a map: by -1, and a bias
                add("bias", weight=next((key for key in node.input if key not in alive), ""))
        elif op in SHAPES:
            add("shape")
        elif self.leave_ends and not self.read & set(node.output):
            self.builder.host.append(f"{name} ({op})")
            add("shape")
        else:
            raise unknown(name, op)

    def _module(self, weight: str) -> str:
        """Path of the module that owned a weight, where its name tells."""
        name = self.origin.get(weight, weight)
        return name.removesuffix(".weight") if name.endswith(".weight") else ""

    def _meaning(self, node) -> str:
        inputs = [self.same.get(key, key) for key in node.input]
        meaning = f"{node.op_type}{inputs}{sorted(one.SerializeToString() for one in node.attribute)}"
        self.same[node.output[0]] = self.same.setdefault(meaning, node.output[0])
        return meaning

    def _spatial(self, node, attributes: dict) -> bool:
        axes = attributes.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in self.values:
            axes = self.onnx.numpy_helper.to_array(self.values[node.input[1]]).tolist()
        rank = len(self.shape(node.input[0]))
        return rank == 4 and sorted(axis % rank for axis in axes or []) == [2, 3]
