"""A quantised network as data: a documented JSON, one file of network and integers, comparison with AMD's result.

The document (:func:`describe`) is one JSON object. All shapes are without the batch; all pairs are (height, width).

===================== =================================================================================================
field                 meaning
===================== =================================================================================================
``format``            always "i2ilib.quantised"
``version``           of this format: 1
``scheme``            ``bits`` of every integer; ``signed``; ``value``, what an integer q at fix position p means;
                      ``saturation``, [lowest, highest] integer; ``rounding`` of ``input``, ``activation`` and
                      ``parameter``: "half up" is floor(x + 0.5), "half away from zero" sends -2.5 to -3
``input``, ``output`` ``name`` of a node, ``shape`` (C, H, W)
``nodes``             the operators in execution order, the input first
===================== =================================================================================================

A node:

===================== =================================================================================================
``name``              unique; the tensor name of ``Quantised.fix_positions`` wherever the result is rounded
``operator``          "input" or a key of :data:`OPERATORS`
``inputs``            names of earlier nodes, in the operator's order (of a concat: the order of the channels)
``attributes``        see below
``parameters``        of convolutions: ``weight`` and, where there is one, ``bias``; each with ``name``,
                      ``fix_position`` and ``shape``: (out, in / groups, h, w), or (in, out / groups, h, w) of a
                      transposed convolution. Of untied_bias: ``bias``, (C, H, W) or (1, C, H, W), which is that of the
                      convolution before it, and joins its sums
``fix_position``      of the result; null: not rounded here, but at the end of its group (activation, pixel shuffle),
                      at the concat that alone reads it, or not at all (float, on the host)
``shape``             of the result, (C, H, W)
``shift_cut``         convolutions: fp_in + fp_weight - fp_out, bits that the sum loses when its group is rounded
``shift_bias``        convolutions: fp_in + fp_weight - fp_bias, bits by which the bias goes up to meet the sum, or null
===================== =================================================================================================

Attributes, all always there: ``stride``, ``padding``, ``output_padding``, ``dilation``, ``kernel`` (pairs), ``groups``;
``slope`` of leaky_relu; ``axis`` of concat (1: channels); ``ceil_mode``, ``count_include_pad``, ``divisor`` of pools as
in PyTorch; ``padding`` of pad: (left, right, top, bottom), with ``value``; ``size`` or ``scales`` (the other is null)
and ``align_corners`` of resizes; ``factor`` of pixel_shuffle; ``min`` and ``max`` of clamp (null: open).

:func:`save` writes a ``.safetensors`` file: one int8 tensor a parameter, under its name, in PyTorch's layout and with
the shape above (value = integer · 2^-fix_position), and the document in the header, under "i2ilib.quantised".
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import fx, nn

from ..errors import I2IError, IntegrityError
from ..runtime import quiet, read_tensors, write_json, write_tensors
from . import graph as g
from .fixed_point import to_integers
from .graph import A
from .ptq import Quantised

FORMAT, VERSION = "i2ilib.quantised", 1


class Operator(NamedTuple):
    """How an operator of the document is called in PyTorch: tensors first, then parameters, then attributes."""

    target: torch._ops.OpOverload
    attributes: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


_RESIZE = ("size", "align_corners", "scales")
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
OPERATORS = {
    "conv2d": Operator(A.conv2d.default, ("stride", "padding", "dilation", "groups"), ("weight", "bias")),
    "conv_transpose2d": Operator(
        A.conv_transpose2d.input, ("stride", "padding", "output_padding", "groups", "dilation"), ("weight", "bias")
    ),
    "relu": Operator(A.relu.default),
    "leaky_relu": Operator(A.leaky_relu.default, ("slope",)),
    "relu6": Operator(A.relu6.default),
    "pixel_shuffle": Operator(A.pixel_shuffle.default, ("factor",)),
    "concat": Operator(A.cat.default, ("axis",)),
    "untied_bias": Operator(A.add.Tensor, (), ("bias",)),  # before add, whose target it shares
    "add": Operator(A.add.Tensor),
    "max_pool2d": Operator(A.max_pool2d.default, ("kernel", "stride", "padding", "dilation", "ceil_mode")),
    "avg_pool2d": Operator(
        A.avg_pool2d.default, ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor")
    ),
    "pad": Operator(A.constant_pad_nd.default, ("padding", "value")),
    "nearest": Operator(A.upsample_nearest2d.vec, ("size", "scales")),
    "bilinear": Operator(A.upsample_bilinear2d.vec, _RESIZE),
    "bicubic": Operator(A.upsample_bicubic2d.vec, _RESIZE),
    "tanh": Operator(A.tanh.default),
    "sigmoid": Operator(A.sigmoid.default),
    "clamp": Operator(A.clamp.default, ("min", "max")),
}
# only in the float document that goes to another quantiser
FLOAT_OPERATORS = {"batch_norm": Operator(A.batch_norm.default, ("training", "momentum", "eps", "cudnn"), _STATISTICS)}
_NAMES = {operator.target: name for name, operator in (OPERATORS | FLOAT_OPERATORS).items()}
_ACTIVATIONS = ("relu", "leaky_relu", "relu6", "pixel_shuffle")  # join the group of their producer


# --- writing ---------------------------------------------------------------------------------------


def describe(quantised: Quantised) -> dict:
    """The network, its fix positions and shifts as JSON values, by the format above; without the integers.

    Raises:
        I2IError: If the network holds something that the format has no word for.
    """
    half = 2 ** (quantised.bits - 1)
    scheme = {"bits": quantised.bits, "signed": True, "value": "q * 2^-p", "saturation": [-half, half - 1]}
    scheme["rounding"] = {"input": "half up", "activation": "half up", "parameter": "half away from zero"}
    network = _network(quantised.folded, quantised.sites, quantised.fix_positions)
    return {"format": FORMAT, "version": VERSION, "scheme": scheme} | network


def describe_float(graph: fx.GraphModule) -> dict:
    """A captured float network in the same words, nothing rounded; for another quantiser, BatchNorm folded or not."""
    return {"format": "i2ilib.float", "version": VERSION} | _network(graph, [], {})


def to_json(quantised: Quantised, path: str | os.PathLike) -> Path:
    """Write the document of :func:`describe` for people and other programs, whole or not at all."""
    write_json(path, describe(quantised))
    return Path(path)


def save(path: str | os.PathLike, quantised: Quantised) -> Path:
    """Keep a quantised network in one ``.safetensors``: int8 parameters, and the document in the header.

    Raises:
        I2IError: If the suffix is another.
    """
    if Path(path).suffix != ".safetensors":
        raise I2IError(str(path), expected="the suffix .safetensors", got=repr(Path(path).suffix))
    integers = {}
    for site in (site for site in quantised.sites if site.kind == "parameter"):
        value, fp = g.parameter(quantised.folded, site.node).detach(), quantised.fix_positions[site.name]
        integers[site.name] = to_integers(value, fp, kind="parameter", bits=quantised.bits).to(torch.int8)
    write_tensors(path, integers, {FORMAT: json.dumps(describe(quantised))})
    return Path(path)


def _network(graph: fx.GraphModule, sites: list[g.Site], positions: dict[str, int]) -> dict:
    names = {site.node: site.name for site in sites}
    for node in graph.graph.nodes:
        if node not in names and node.op in ("placeholder", "call_function"):
            name = g.tensor_name(node)
            names[node] = f"{name}#{node.name}" if name in names.values() else name
    fix = {site.node: positions[site.name] for site in sites}
    computed = [node for node in graph.graph.nodes if node.op in ("placeholder", "call_function")]
    nodes = {node: _describe_node(graph, node, names, fix) for node in computed}
    ends = {"input": nodes[computed[0]], "output": nodes[graph.graph.output_node().all_input_nodes[0]]}
    ends = {end: {"name": about["name"], "shape": about["shape"]} for end, about in ends.items()}
    return ends | {"nodes": list(nodes.values())}


def _describe_node(graph: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str], fix: dict[fx.Node, int]) -> dict:
    shape = [int(size) for size in node.meta["val"].shape[1:]]
    if node.op == "placeholder":
        about = {"name": names[node], "operator": "input", "inputs": [], "attributes": {}, "parameters": {}}
        return about | {"fix_position": fix.get(node), "shape": shape}
    if node.target not in _NAMES:
        raise I2IError(names[node], expected="an operator from " + ", ".join(OPERATORS), got=str(node.target))
    kind = "untied_bias" if g.adds_bias(node) else _NAMES[node.target]
    operator = (OPERATORS | FLOAT_OPERATORS)[kind]
    defaults = [argument.default_value for argument in node.target._schema.arguments]
    values = [*node.args, *defaults[len(node.args) :]]
    count = 2 if kind == "add" else 1
    inputs = values[0] if kind == "concat" else values[:count]
    if any(not isinstance(tensor, fx.Node) or tensor.op == "get_attr" for tensor in inputs):
        raise I2IError(names[node], expected="inputs that the network computes", got="a constant")
    own = dict(zip(operator.parameters, values[count:], strict=False))
    attributes = dict(zip(operator.attributes, values[count + len(operator.parameters) :], strict=False))
    parameters = {
        role: {
            "name": g.tensor_name(argument),
            "fix_position": fix.get(argument),
            "shape": list(g.parameter(graph, argument).shape),
        }
        for role, argument in own.items()
        if argument is not None
    }
    about = {"name": names[node], "operator": kind, "inputs": [names[tensor] for tensor in inputs]}
    about |= {"attributes": _plain(attributes), "parameters": parameters, "fix_position": fix.get(node), "shape": shape}
    return about | (_shifts(node, fix) if fix and node.target in g.CONVOLUTIONS else {})


def _plain(attributes: dict) -> dict:
    """Lists for PyTorch's own, and its shorthands spelled out."""
    plain = {key: list(value) if isinstance(value, list | tuple) else value for key, value in attributes.items()}
    for key in {"kernel", "stride", "padding", "dilation", "output_padding"} & plain.keys():
        plain[key] = plain[key] or plain["kernel"]
        plain[key] = plain[key] * 2 if len(plain[key]) == 1 else plain[key]
    if "axis" in plain:
        plain["axis"] %= 4
    if "value" in plain and len(plain["padding"]) == 2:  # of the width alone
        plain["padding"] += [0, 0]
    return plain


def _shifts(node: fx.Node, fix: dict[fx.Node, int]) -> dict:
    end = g.rounded_at(node, fix)
    if missing := [n.name for n in (node.args[0], end) if n not in fix]:
        raise I2IError(g.tensor_name(node), expected="a fix position on either side", got=f"none of {missing[0]}")
    total, bias = fix[node.args[0]] + fix[node.args[1]], g.bias_of(node)
    return {"shift_cut": total - fix[end], "shift_bias": None if bias is None else total - fix[bias]}


# --- reading ---------------------------------------------------------------------------------------


def load(path: str | os.PathLike) -> Quantised:
    """The network that :func:`save` wrote. Its float network is the rounded one; it computes what the saved one does.

    Reading runs no code: the network is put together from the words of :data:`OPERATORS`.

    Raises:
        I2IError: If there is no file.
        IntegrityError: If it is another file, of another version, damaged, or says something that makes no network.
    """
    want = "a network written by i2ilib.quant.save"
    try:
        integers, header = read_tensors(path, want)
    except FileNotFoundError:
        raise I2IError(str(path), expected=want, got="no file") from None
    if FORMAT not in header:
        raise IntegrityError(str(path), expected=want, got="safetensors without the description of a quantised network")
    try:
        document = json.loads(header[FORMAT])
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            got = f"{document['format']} of version {document['version']}"
            raise IntegrityError(str(path), expected=f"{FORMAT} of version {VERSION}", got=got)
        return _build(document, integers)
    except IntegrityError:
        raise
    except (I2IError, RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        kind = "" if isinstance(error, I2IError) else f"{type(error).__name__}: "
        got = kind + " ".join(str(error).split())[:300]
        raise IntegrityError(str(path), expected=want, got=got) from None


def _build(document: dict, integers: dict[str, torch.Tensor]) -> Quantised:
    nodes, shape, bits = document["nodes"], document["input"]["shape"], document["scheme"]["bits"]
    positions = {}
    for node in nodes:
        for about in (*node["parameters"].values(), *([node] if node["fix_position"] is not None else [])):
            if type(about["fix_position"]) is not int:
                raise I2IError(about["name"], expected="a fix position", got=about["fix_position"])
            positions[about["name"]] = about["fix_position"]
    if strange := integers.keys() ^ {p["name"] for node in nodes for p in node["parameters"].values()}:
        raise I2IError("parameters", expected="those of the description", got=f"too many or missing: {sorted(strange)}")
    root = nn.Module()
    for name, value in integers.items():
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):  # it becomes part of a program
            raise I2IError("parameter", expected="a name of letters, digits, _, - and dots", got=repr(name))
        if value.dtype != torch.int8:
            raise I2IError(name, expected="int8", got=value.dtype)
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        value = value.float() * 2.0 ** -positions[name]
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    network = fx.GraphModule(root, _to_fx(nodes, document["output"]["name"]))
    with quiet():  # PyTorch's own notices about the graphs that it copies
        folded = g.capture(network, torch.zeros(2, *shape))  # the form that everything else expects
    computed = [node for node in folded.graph.nodes if node.op in ("placeholder", "call_function")]
    if len(computed) != len(nodes):
        raise I2IError("nodes", expected="operators that the output depends on", got="others")
    for node, about in zip(computed, nodes, strict=True):
        node.meta["nn_module_stack"] = {"": (about["name"], "torch.nn.modules.")}  # what tensor_name reads
    quantised = Quantised(folded, positions, shape, bits=bits)
    again = describe(quantised)
    for built, about in zip(again["nodes"], nodes, strict=True):
        if built != about:
            raise I2IError(about["name"], expected=f"a node that PyTorch makes: {built}", got=about)
    if again != document:
        raise I2IError("scheme, input or output", expected="those of the nodes", got="others")
    return quantised


def _to_fx(nodes: list[dict], output: str) -> fx.Graph:
    graph, made, parameters = fx.Graph(), {}, {}
    for about in nodes:
        if about["operator"] == "input":
            made[about["name"]] = graph.placeholder("x")
            continue
        if about["operator"] not in OPERATORS:
            raise I2IError(about["name"], expected="an operator from " + ", ".join(OPERATORS), got=about["operator"])
        operator = OPERATORS[about["operator"]]
        inputs = [made[name] for name in about["inputs"]]
        args = [inputs] if about["operator"] == "concat" else inputs
        for role in operator.parameters:
            name = about["parameters"][role]["name"] if role in about["parameters"] else None
            if name is not None and name not in parameters:
                parameters[name] = graph.get_attr(name)
            args.append(parameters.get(name))
        attributes = [about["attributes"][key] for key in operator.attributes]
        if not all(_is_number(value) for value in attributes):
            raise I2IError(about["name"], expected="attributes of numbers", got=about["attributes"])
        made[about["name"]] = graph.call_function(operator.target, (*args, *attributes))
    graph.output(made[output])
    return graph


def _is_number(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, int | float)


# --- beside AMD's result -----------------------------------------------------------------------------


class Difference(NamedTuple):
    """A tensor at which two results differ: both names, both fix positions."""

    name: str
    theirs: str
    fix_position: int
    their_fix_position: int


def compare(ours: dict, theirs: dict) -> list[Difference]:
    """Where our fix positions and AMD's differ; an empty list where they agree.

    Args:
        ours: From :func:`describe`.
        theirs: The content of a ``quant_info.json`` of AMD's quantiser.

    Raises:
        I2IError: If the two are not of one network, or theirs is not such a file.
    """
    mine = {tensor["name"]: tensor["fix_position"] for tensor in _tensors(ours)}
    pairs = match(ours, theirs).items()
    return [Difference(name, their, mine[name], fp) for name, (their, fp) in pairs if fp != mine[name]]


def match(ours: dict, theirs: dict) -> dict[str, tuple[str, int]]:
    """Our tensor names, each with AMD's name and fix position for it.

    Parameters are matched by name where the names agree (AMD's end in the module's path), else by order; feature maps
    by order of execution. Kinds must agree: weight, bias, and the operator where AMD's name tells it.
    """
    found, nodes = {}, {node["name"]: node for node in ours["nodes"]}
    for section in ("param", "output"):
        own = {t["name"]: t for t in _tensors(ours) if ("operator" in t) == (section == "output")}
        their = _section(theirs, section, ours["scheme"]["bits"])
        if len(own) != len(their):
            want = f"{len(own)} rounded tensors: {', '.join(own)}"
            raise I2IError(f"quant_info.json, {section}", expected=want, got=f"{len(their)}: {', '.join(their)}")
        tails = {name.rpartition("::")[2]: name for name in their}
        other = [tails[name] for name in own] if tails.keys() == own.keys() else list(their)
        for name, theirs_name in zip(own, other, strict=True):
            kinds = _group(nodes, name) if section == "output" else [name.rpartition(".")[2]]
            kind = theirs_name.rpartition(".")[2] if section == "param" else _kind(theirs_name)
            if kind and kind not in kinds:
                raise I2IError(theirs_name, expected=f"a {' or '.join(kinds)}, as {name}", got=kind)
            found[name] = (theirs_name, their[theirs_name])
    return found


def _tensors(document: dict) -> list[dict]:
    """The rounded tensors, parameters and nodes, in order of execution; one of several readers once."""
    found = {}
    for node in document["nodes"]:
        found |= {about["name"]: about for about in node["parameters"].values()}
        found |= {node["name"]: node} if node["fix_position"] is not None else {}
    return list(found.values())


def _group(nodes: dict[str, dict], name: str) -> list[str]:
    """The operators of the group that ends in ``name``: AMD puts the position at one of them."""
    node = nodes[name]
    kinds = [node["operator"]]
    while node["operator"] in _ACTIVATIONS:
        node = nodes[node["inputs"][0]]
        if node["fix_position"] is not None:
            break
        kinds.append(node["operator"])
    return kinds


def _kind(name: str) -> str | None:
    """Our word for the operator in AMD's name of a feature map ("Net::nndct_leaky_relu_2"), where we know it."""
    told = re.search(r"nndct_(\w+?)_\d+$", name)
    words = {word.replace("_", ""): word for word in ("input", *OPERATORS)}
    return words.get(told[1].replace("_", "")) if told else None


def _section(info: object, section: str, bits: int) -> dict[str, int]:
    """Fix position by AMD's name."""
    found = {}
    try:
        for name, [[width, fp]] in info[section].items():
            if type(fp) is not int or width != bits:
                raise I2IError(name, expected=f"{bits} bits and a fix position", got=[width, fp])
            found[name] = fp
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, I2IError):
            raise
        want = f"'{section}' with [[bits, fix position]] by tensor name"
        raise I2IError("quant_info.json", expected=want, got=repr(error)) from None
    return found
