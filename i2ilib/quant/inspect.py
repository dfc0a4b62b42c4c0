"""Which operators of a network the DPU would run, which fall to the CPU, why, and what would move them.

The rules look at the exported graph, before any quantisation. They state the public description of the DPUCAHX8H, as
AMD's operator filter applies it (Vitis AI 3.5) and its product guide prints it (PG367, table 1; for padding, UG1414),
and one thing more that the filter leaves out: no engine computes an activation by itself, it is fused into the
operator before it. AMD's compiler, which is closed, has the last word.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import operator
from collections.abc import Iterator
from types import SimpleNamespace

import pandas as pd
import torch
from torch import fx, nn

from ..errors import I2IError
from . import calibration
from .graph import HOST, OPERATORS, SLOPE, missing, tensor_name
from .tracing import check_module, export, is_idle, operator_name, operators, remove_idle


@dataclasses.dataclass(frozen=True)
class Target:
    """What a DPU can do: the limits that the rules compare with. Largest values, the smallest being 1."""

    name: str
    fingerprint: str  # the card and the compiled network must agree on it
    depthwise: bool = False  # has the engine for depthwise convolutions, which also enlarges bilinearly
    kernel: int = 16  # side of a convolution's window
    stride: int = 4
    transposed_stride: int = 16
    pool: int = 8  # side and stride of a pooling window
    channels: int = 4096  # into and out of a convolution; also dilation times channels in
    weight_bank: int = 2048  # kernel width × height × ceil(channels in / lanes)
    lanes: int = 16  # channels in that the engine takes at once
    activations: tuple[str, ...] = ("relu", "leaky_relu", "relu6")  # fused behind a convolution
    slope: float = SLOPE  # of LeakyReLU


_ISA2 = Target("DPUCAHX8H_ISA2", "0x20200000010002a")
TARGETS = {
    "DPUCAHX8H_ISA2": _ISA2,
    "DPUCAHX8H_ISA2_DWC": Target("DPUCAHX8H_ISA2_DWC", "0x20200000010002b", depthwise=True),
    "DPUCAHX8H_ISA2_ELP2": Target("DPUCAHX8H_ISA2_ELP2", "0x20200000000002e"),
    "U50": _ISA2,  # which one a card holds differs by release: compare the fingerprint
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One operator and where it would run."""

    operator: str
    tensor: str  # its result, by the name that quantisation uses: the module's path
    shape: tuple[int, ...]  # of the result, (N, C, H, W)
    device: str  # "DPU", "CPU", or "none" for what evaluation removes
    reason: str
    remedy: str  # the change that would move it to the DPU; empty on the DPU, and on the host by design
    quantisable: bool = True  # whether i2ilib.quant.quantise takes it as it is; all on the DPU is


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The findings of a network in the order in which its operators run; prints as a table."""

    target: Target
    rows: tuple[Finding, ...]
    splits: int  # how many times a frame enters the DPU: its subgraphs, at least

    @property
    def cpu(self) -> list[Finding]:
        """The operators on the CPU, those that belong there (without a remedy) included."""
        return [row for row in self.rows if row.device == "CPU"]

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        host = ", ".join(row.operator for row in self.cpu if not row.remedy)
        count = collections.Counter(row.operator for row in self.cpu if row.remedy)
        moved = ", ".join(f"{n} {name}" for name, n in count.items())
        share = "its part" if moved else "the network"
        runs = f"{share} in {self.splits} pieces" if self.splits > 1 else f"{share} in one piece"
        parts = [f"{self.target.name} would run " + (runs if self.splits else "nothing of this network")]
        parts += [f"on the CPU {moved}"] if moved else []
        parts += [f"at the end, on the host by design, {host}"] if host else []
        return "; ".join(parts) + "."

    @property
    def refused(self) -> list[Finding]:
        """The operators that :func:`i2ilib.quant.quantise` refuses; it takes the network exactly if there are none."""
        return [row for row in self.rows if not row.quantisable]

    def frame(self) -> pd.DataFrame:
        """One row an operator, one column a field of :class:`Finding` up to ``remedy``."""
        names = [field.name for field in dataclasses.fields(Finding)]
        return pd.DataFrame(self.rows, columns=names).drop(columns="quantisable")

    def __str__(self) -> str:
        cells = [("device", "operator", "tensor", "shape", "reason")]
        cells += [(r.device, r.operator, r.tensor, "×".join(map(str, r.shape)), r.reason) for r in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        remedies = collections.Counter((row.operator, row.remedy) for row in self.cpu if row.remedy)
        lines += [f"{n} {name}: {remedy}" for (name, remedy), n in remedies.items()]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        frame = self.frame()
        colour = frame["remedy"].ne("").map({True: "background-color: #f6d5c8; color: black", False: ""})
        table = frame.style.hide(axis="index").apply(lambda column: colour).set_caption(self.verdict)
        return table.set_uuid("inspection").to_html()  # no random identifiers in notebooks


def inspect(
    model: nn.Module, target: str | Target = "DPUCAHX8H_ISA2", example: torch.Tensor | None = None
) -> Inspection:
    """Say for every operator whether the DPU or the CPU would run it, why, and which change would move it.

    The operators are those that :func:`i2ilib.quant.quantise` sees, and one answer serves both: it takes the network
    exactly if no finding is ``refused``, and what would run on the DPU never is.

    Args:
        model: Any module of one tensor in and one out that PyTorch can export, quantisable or not; stays as it is.
        target: A name in :data:`TARGETS`, or a target of your own.
        example: (N, C, H, W) of floating point, of the size that will run; by default (1, C, 256, 256), C being that of
            the model's first convolution.

    Returns:
        The findings. ``print`` them, or show them in a notebook.

    Raises:
        I2IError: If the target is not known, there is no convolution to take the channels from, or the model cannot be
            copied or exported; the module where it stopped is named.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
        >>> [(row.operator, row.device) for row in inspect(block).rows]
        [('conv2d', 'DPU'), ('batch_norm', 'DPU'), ('leaky_relu', 'CPU')]
        >>> inspect(block).cpu[0].remedy
        'train with slope 26/256 (the quantiser would overwrite any other)'

    Source: DPUCAHX8H for Convolutional Neural Networks, PG367 1.0, table 1; Vitis AI User Guide, UG1414.
    """
    if not isinstance(target, Target):
        if target not in TARGETS:
            raise I2IError("target", expected=" or ".join(TARGETS), got=repr(target))
        target = TARGETS[target]
    traced = export(model, _example(model) if example is None else calibration.one(example, "example"))
    graph, rows = traced.graph, {}
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in filter(is_idle, graph.nodes):
        rows[node] = Finding(_operator(node), tensor_name(node), _sizes(node), "none", "evaluation removes it", "")
    remove_idle(traced)
    wanted = {node: missing(node) for node in operators(traced)}
    device: dict[fx.Node, str] = {}  # of all that depends on the input
    level: dict[fx.Node, int] = {}  # how many times the data has entered the DPU until then
    for node in list(graph.nodes):
        inputs = [n for n in node.all_input_nodes if n in device]
        where = device[inputs[0]] if inputs else "CPU"
        joins = False
        if node in wanted:
            row, joins = _finding(node, target, wanted[node], where)
            rows[node], where = row, row.device
        if inputs or node.op == "placeholder":
            device[node] = where
            level[node] = max((level[n] + (where == "DPU" and device[n] == "CPU") for n in inputs), default=0)
        if joins and rows[node].operator == "batch_norm":  # gone, as far as its readers can tell
            node.replace_all_uses_with(inputs[0])
            graph.erase_node(node)
    return Inspection(target, tuple(rows[node] for node in sorted(rows, key=order.get)), max(level.values()))


def _finding(node: fx.Node, target: Target, wanted: str | None, before: str) -> tuple[Finding, bool]:
    """The finding of an operator, and whether it joins the one before it, which is on the device ``before``."""
    name, troubles, reason, joins = _operator(node), [], "", False
    if name in _HOST and not wanted and _at_the_end(node):
        where, reason = "CPU", "on the host by design, after the last fix"
    else:
        rule, engine = _RULES.get(name, (_unlisted, ""))
        troubles = list(rule(node, target))
        if wanted and (node.target in OPERATORS or rule is not _unlisted):
            troubles.append((f"quantise takes only {wanted}", wanted))
        joins = not troubles and name in (*_ACTIVATIONS, "batch_norm")
        owner = tensor_name(node.all_input_nodes[0]) if node.all_input_nodes else ""
        if joins and before == "CPU":
            troubles = [(f"part of {owner}, which is on the CPU", f"move {owner}")]
        where = "CPU" if troubles else "DPU"
        reason = "; ".join(trouble[0] for trouble in troubles) or engine.format(owner)
    remedy = "; ".join(trouble[1] for trouble in troubles)
    return Finding(name, tensor_name(node), _sizes(node), where, reason, remedy, not wanted), joins


# --- the graph -------------------------------------------------------------------------------------


def _example(model: nn.Module) -> torch.Tensor:
    """A batch of the default size with the channels of the model's first convolution."""
    owners = (getattr(model, "config", None), *check_module(model).modules())
    channels = next((owner.in_channels for owner in owners if hasattr(owner, "in_channels")), None)
    if channels is None:
        raise I2IError("example", expected="a tensor (N, C, H, W)", got="None, and a model without convolution")
    return torch.zeros(2, channels, 256, 256)


def _operator(node: fx.Node) -> str:
    if node.target is operator.getitem:  # one of several results
        return _operator(node.args[0])
    name = operator_name(node.target)
    return {"cat": "concat", "constant_pad_nd": "pad"}.get(name, name)


def _arguments(node: fx.Node) -> SimpleNamespace:
    """What an operator was called with, by name, defaults filled in."""
    schema = node.target._schema.arguments
    values = {argument.name: argument.default_value for argument in schema}
    values |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return SimpleNamespace(**values | node.kwargs)


def _shape(node: fx.Node) -> torch.Size:
    value = node.meta["val"]
    return getattr(value[0] if isinstance(value, list | tuple) else value, "shape", torch.Size())


def _sizes(node: fx.Node) -> tuple[int, ...]:
    """The shape for one image; the graph is that of any number of them."""
    return tuple(size if isinstance(size, int) else max(1, size.node.hint // 2) for size in _shape(node))


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _at_the_end(node: fx.Node) -> bool:
    return node.op == "output" or (_operator(node) in _HOST and all(map(_at_the_end, node.users)))


# --- the rules: each yields what keeps an operator off the DPU, and the remedy ------------------------

Troubles = Iterator[tuple[str, str]]


def _above(what: str, found: tuple[int, int], limit: int) -> Troubles:
    if max(found) > limit:
        yield f"{what} {found[0]}×{found[1]} exceeds {limit}", f"a {what} of at most {limit}"


def _convolution(node: fx.Node, target: Target) -> Troubles:
    a, transposed = _arguments(node), _operator(node) == "conv_transpose2d"
    (_, ci, *_), (_, co, *_), kernel = _shape(a.input), _shape(node), _shape(a.weight)[2:]
    yield from _above("kernel", kernel, target.kernel)
    yield from _above("stride", _pair(a.stride), target.transposed_stride if transposed else target.stride)
    if max(ci, co) > target.channels:
        yield f"{ci} channels in, {co} out exceed {target.channels}", f"at most {target.channels} channels"
    if a.groups not in (1, ci):
        yield f"{a.groups} groups: only one, or as many as channels", "groups=1"
    elif a.groups != 1 and not target.depthwise:
        yield "needs a depthwise engine", "groups=1, or the target DPUCAHX8H_ISA2_DWC"
    rows = math.prod(kernel) * math.ceil(ci / target.lanes)
    if a.groups == 1 and rows > target.weight_bank:
        size = f"{kernel[1]}·{kernel[0]}·ceil({ci}/{target.lanes}) = {rows}"
        yield f"weights exceed their bank: {size} > {target.weight_bank}", "a smaller kernel or fewer channels in"
    dilation = max(_pair(a.dilation))
    if dilation > 1 and (transposed or dilation * ci > target.channels):
        reason = "in a transposed convolution" if transposed else f"times {ci} channels in exceeds {target.channels}"
        yield f"dilation {dilation} {reason}", "dilation=1"
    if transposed and max(_pair(a.output_padding)):
        yield "output_padding is not 0", "output_padding=0, for example kernel 4, stride 2, padding 1"


def _activation(node: fx.Node, target: Target) -> Troubles:
    name, before = _operator(node), node.args[0]
    follows = _operator(before) if before.op == "call_function" else "the input"
    if name == "leaky_relu" and (slope := _arguments(node).negative_slope) != target.slope:
        yield f"slope {slope:g} is not 26/256", "train with slope 26/256 (the quantiser would overwrite any other)"
    if name not in target.activations:
        yield f"{name} is not among the fused activations", "ReLU, or LeakyReLU of slope 26/256"
    elif follows == "add":
        if name != "relu" and not _adds_constant(before):
            yield "behind a sum only ReLU is fused", "ReLU there, or activate before the sum"
    elif follows not in _CONVOLUTIONS:
        remedy = "put it directly behind a convolution"
        if follows == "concat":
            remedy = "activate before the concat: convolution, norm, activation, concat (Generator: order='dpu')"
        elif follows in ("max_pool2d", "pixel_shuffle", "upsample_nearest2d"):
            remedy = f"put it before {follows}: the result is the same"
        yield f"no engine for an activation by itself: it follows {follows}", remedy
    if follows in (*_CONVOLUTIONS, "add") and len(before.users) > 1:
        reason = f"cannot be fused: {tensor_name(before)} is also read without activation"
        yield reason, "let skips carry the activated tensor (Generator: order='dpu')"


def _batch_norm(node: fx.Node, target: Target) -> Troubles:
    before = node.args[0]
    if before.op != "call_function" or _operator(before) not in _CONVOLUTIONS or len(before.users) > 1:
        reason = "no convolution before it that it could be folded into"
        yield reason, "put it directly behind a convolution that nothing else reads"
    if _arguments(node).training:
        yield "normalises by the statistics of each batch", "track_running_stats=True"


def _adds_constant(node: fx.Node) -> bool:
    """Whether a sum adds a constant map, a number for every pixel: an untied bias."""
    constants = (tensor for tensor in node.args[:2] if isinstance(tensor, fx.Node) and tensor.op == "get_attr")
    return any(_shape(tensor)[-3:] == _shape(node)[1:] for tensor in constants)


def _sum(node: fx.Node, target: Target) -> Troubles:
    a = _arguments(node)
    if _adds_constant(node):
        reason = "an untied bias: a convolution takes one number a channel, the elementwise engine two feature maps"
        yield reason, "tie it: one number a channel, the convolution's own bias (another network: train it again)"
    elif (
        not all(isinstance(n, fx.Node) and _shape(n)[1:] == _shape(node)[1:] for n in (a.self, a.other)) or a.alpha != 1
    ):
        yield "not a plain sum of two tensors of one shape", "put constants into the bias of a convolution beside it"


def _concat(node: fx.Node, target: Target) -> Troubles:
    if _arguments(node).dim not in (1, -3):
        yield "joins along another axis than channels", "torch.cat(..., dim=1)"


def _pool(node: fx.Node, target: Target) -> Troubles:
    a = _arguments(node)
    kernel, stride = _pair(a.kernel_size), _pair(a.stride or a.kernel_size)
    yield from _above("pooling window", kernel, target.pool)
    yield from _above("stride", stride, target.pool)
    if _operator(node) == "avg_pool2d" and kernel[0] != kernel[1]:
        yield f"averages over {kernel[0]}×{kernel[1]}, not a square", "a square window"
    if max(_pair(getattr(a, "dilation", 1))) > 1:
        yield "pools with dilation", "dilation=1"


def _resize(node: fx.Node, target: Target) -> Troubles:
    bilinear, a = _operator(node) == "upsample_bilinear2d", _arguments(node)
    if bilinear and not target.depthwise:
        remedy = "ConvTranspose2d, PixelShuffle or nearest, or the target DPUCAHX8H_ISA2_DWC"
        yield "needs a depthwise engine", remedy
    if bilinear and a.align_corners:
        yield "align_corners=True", "align_corners=False"
    if any(after % before for after, before in zip(_shape(node)[2:], _shape(a.input)[2:], strict=True)):
        yield "does not enlarge by a whole factor", "an integer scale_factor"


def _pad(node: fx.Node, target: Target) -> Troubles:
    a = _arguments(node)
    zeros = getattr(a, "mode", "constant") == "constant" and not a.value and len(a.pad) <= 4 and min(a.pad) >= 0
    users = {_operator(user) if user.op == "call_function" else "output" for user in node.users}
    if not zeros or not users <= {*_CONVOLUTIONS, *_POOLS}:
        yield "only zeros around a convolution or pool are fused into it", "padding=... of the convolution"


def _unlisted(node: fx.Node, target: Target) -> Troubles:
    found = (text for names, text in _INSTEAD.items() if _operator(node) in names.split())
    remedy = next(found, "write it with listed operators, or move it before or behind the network")
    yield "not in the operator list of this target", remedy


_CONVOLUTIONS = ("conv2d", "conv_transpose2d")
_ACTIVATIONS = ("relu", "leaky_relu", "relu6")
_POOLS = ("max_pool2d", "avg_pool2d")
_HOST = tuple(map(operator_name, HOST))

_RULES = {
    **dict.fromkeys(_CONVOLUTIONS, (_convolution, "convolution engine")),
    **dict.fromkeys(_ACTIVATIONS, (_activation, "fused into {}")),
    "batch_norm": (_batch_norm, "folded into {}"),
    "add": (_sum, "elementwise engine"),
    **dict.fromkeys(_POOLS, (_pool, "pooling engine")),
    "concat": (_concat, "in the operator list"),
    "pixel_shuffle": (lambda node, target: (), "in the operator list"),
    "upsample_nearest2d": (_resize, "in the operator list"),
    "upsample_bilinear2d": (_resize, "depthwise engine, as a transposed convolution"),
    "pad": (_pad, "fused into the operator behind it"),
}

_INSTEAD = {
    "gelu silu hardswish hardsigmoid mish elu selu celu softplus prelu": (
        "ReLU, or LeakyReLU of slope 26/256, directly behind a convolution"
    ),
    "tanh sigmoid clamp hardtanh softmax": "keep it for the end, on the host; inside, use ReLU or LeakyReLU",
    "group_norm layer_norm instance_norm": "BatchNorm2d behind a convolution, which is folded into it",
    "upsample_bicubic2d": "ConvTranspose2d or PixelShuffle, or its sum on the host (SRUNet, UNet: residual=False)",
    "linear matmul addmm": "Conv2d with a 1×1 kernel",
    "mean adaptive_avg_pool2d": "AvgPool2d",
    "mul div sub": "put constants into the weights and bias of a convolution beside it",
}
