"""The layers of any network, found by running it on shapes alone: no weights, no data, no arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import I2IError


@dataclasses.dataclass(frozen=True)
class Layer:
    """One operator of a network that an engine spends time on. Shapes are (C, H, W) of one image; a byte a value."""

    name: str
    kind: str  # "conv", "deconv" (transposed), "linear", "pool", "add", "resize", or "concat" (an address, no work)
    macs: int  # of one image; 0 for what does not multiply
    weights: int  # bytes
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    sources: tuple[int, ...]  # which layer of the list made each input; -1: the network's input
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def bytes_in(self) -> int:
        """Of all inputs of one image."""
        return sum(math.prod(shape) for shape in self.inputs)

    @property
    def bytes_out(self) -> int:
        """Of the output of one image."""
        return math.prod(self.output)


def layers(model: nn.Module | Callable[..., object], example: Tensor | Sequence[Tensor]) -> list[Layer]:
    """The layers of a network in the order in which they run, found by running it on shapes alone.

    Args:
        model: Any module, its weights real or on the meta device; it runs in evaluation mode and stays as it is. Or a
            function of meta tensors.
        example: (N, C, H, W), or several inputs; only the shape counts, one image of it.

    Raises:
        I2IError: If an input has another number of dimensions, or nothing in the network multiplies.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))
        >>> [(layer.name, layer.kind, layer.macs) for layer in layers(net, torch.zeros(1, 3, 32, 32))]
        [('0', 'conv', 98304), ('2', 'deconv', 32768)]
    """
    inputs = [example] if isinstance(example, Tensor) else list(example)
    for tensor in inputs:
        if tensor.ndim != 4:
            raise I2IError("example", expected="a tensor (N, C, H, W)", got=tuple(tensor.shape))
    inputs = [torch.empty((1, *tensor.shape[1:]), device="meta") for tensor in inputs]
    with torch.no_grad(), torch.device("meta"), _Tracer() as tracer:
        if isinstance(model, nn.Module):
            _run(model, inputs, tracer)
        else:
            model(*inputs)
    if not any(layer.macs for layer in tracer.layers):
        raise I2IError("layers", expected="a network with convolutions", got=type(model).__name__)
    return tracer.layers


def _run(model: nn.Module, inputs: list[Tensor], tracer: _Tracer) -> None:
    modes = {module: module.training for module in model.modules()}
    hooks = []
    for name, module in model.named_modules():
        hooks += [
            module.register_forward_pre_hook(lambda *_, name=name: tracer.within.append(name)),
            module.register_forward_hook(lambda *_: tracer.within.pop() and None, always_call=True),
        ]
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    try:
        torch.func.functional_call(model.eval(), state, tuple(inputs))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training


class _Tracer(TorchDispatchMode):
    """Notes every operator that costs an engine time; all others pass on whose result they carry."""

    def __init__(self):
        super().__init__()
        self.layers: list[Layer] = []
        self.within: list[str] = []
        self.maker: dict[int, int] = {}  # id of a tensor: index of the layer that made it
        self.kept: list[object] = []  # an id stays valid only as long as its tensor lives

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = [r for r in (result if isinstance(result, tuple | list) else [result]) if isinstance(r, Tensor)]
        self.kept.append(outputs)
        if outputs:
            rule = _RULES.get(function.overloadpacket.__name__.rstrip("_"))
            found = rule(outputs[0], *args) if rule else None
            if found:
                self._note(outputs[0], found[0], found[1], found[2])
            else:
                first = next((a for a in args if isinstance(a, Tensor)), None)
                for output in outputs:
                    self.maker[id(output)] = self.maker.get(id(first), -1)
        return result

    def _note(self, output: Tensor, kind: str, inputs: Sequence[Tensor], about: dict[str, object]) -> None:
        inputs = [x for x in inputs if x.numel()]
        name = next((name for name in reversed(self.within) if name), "") or f"{kind} {len(self.layers)}"
        self.layers.append(
            Layer(
                name=name,
                kind=kind,
                inputs=tuple(tuple(x.shape[1:]) for x in inputs),
                output=tuple(output.shape[1:]),
                sources=tuple(self.maker.get(id(x), -1) for x in inputs),
                **{"macs": 0, "weights": 0} | about,
            )
        )
        self.maker[id(output)] = len(self.layers) - 1


def _pair(value: Sequence[int] | int) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _convolution(y, x, w, bias, stride, padding, dilation, transposed, output_padding, groups):
    pixels = math.prod((x if transposed else y).shape[2:])
    about = {"kernel": _pair(w.shape[2:]), "stride": _pair(stride), "groups": groups}
    return "deconv" if transposed else "conv", [x], about | {"macs": w.numel() * pixels, "weights": w.numel()}


def _linear(y, *args):
    x, w = args[-2:]
    return ("linear", [x], {"macs": y.shape[0] * w.numel(), "weights": w.numel()}) if y.ndim == 2 else None


def _pool(y, x, kernel, stride=None, *_):
    return "pool", [x], {"kernel": _pair(kernel), "stride": _pair(stride or kernel)}


def _global_pool(y, x, *_):
    return ("pool", [x], {"kernel": _pair(x.shape[2:]), "stride": _pair(x.shape[2:])}) if x.ndim == 4 else None


def _add(y, a, b, *_):
    both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and y.ndim == 4
    return ("add", [a, b], {}) if both else None


def _same(kind: str):
    return lambda y, x, *_: (kind, x if isinstance(x, list | tuple) else [x], {})


_RULES = {  # by the operator's name; each gives kind, inputs and the other fields, or None: no work
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    "_adaptive_avg_pool2d": _global_pool,
    "mean": _global_pool,
    "add": _add,
    "mul": _add,
    "cat": _same("concat"),
    "upsample_nearest2d": _same("resize"),
    "upsample_bilinear2d": _same("resize"),
    "pixel_shuffle": _same("resize"),
    "pixel_unshuffle": _same("resize"),
}
