"""What a model costs and sees: parameters, multiply-accumulates, layer tables, receptive fields."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters.

    Example:
        >>> count_parameters(nn.Conv2d(3, 8, 4))
        392
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass: half the operations that PyTorch counts in convolutions and products.

    Args:
        model: Any module; it runs once in evaluation mode, without gradients.
        example: A batch that it accepts; the count grows with N.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 4, stride=2, padding=1), torch.zeros(1, 3, 32, 32))
        98304
    """
    return _count(model, example).get_total_flops() // 2


def layer_table(model: nn.Module, example: Tensor) -> pd.DataFrame:
    """The layers in the order in which they run.

    Args:
        model: Any module; it runs once in evaluation mode, without gradients.
        example: A batch that it accepts.

    Returns:
        One row a leaf module call: ``name``, ``type``, ``kernel`` and ``stride`` (of the height; 0 where the layer has
        none), ``output`` (shape without N), ``parameters`` and ``macs`` (of the whole batch).
    """
    rows = []

    def note(name: str):
        def hook(module: nn.Module, _, output: Tensor) -> None:
            first = {key: getattr(module, key, 0) for key in ("kernel_size", "stride")}
            kernel, stride = (value[0] if isinstance(value, tuple) else value for value in first.values())
            row = {"name": name, "type": type(module).__name__, "kernel": kernel, "stride": stride}
            rows.append(row | {"output": tuple(output.shape[1:]), "parameters": count_parameters(module)})

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(note(name)) for name, module in leaves]
    try:
        counts = _count(model, example).get_flop_counts()
    finally:
        for handle in handles:
            handle.remove()
    prefix = type(model).__name__
    for row in rows:
        row["macs"] = sum(counts.get(f"{prefix}.{row['name']}" if row["name"] else prefix, {}).values()) // 2
    return pd.DataFrame(rows)


@torch.no_grad()
def _count(model: nn.Module, example: Tensor) -> FlopCounterMode:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            model(example)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter


def receptive_field(layers: Iterable[tuple[int, ...]]) -> int:
    """Side, in input pixels, of the square that one output pixel of a chain of convolutions can see.

    Each layer adds (kernel - 1) * dilation steps, and a step is as wide as all strides before it.

    Args:
        layers: (kernel, stride) or (kernel, stride, dilation) of each layer, input first.

    Example:
        >>> receptive_field([(4, 2), (4, 2), (4, 2), (4, 1), (4, 1)])
        70

    Source: Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019,
    https://doi.org/10.23915/distill.00021, equation 2.
    """
    field, step = 1, 1
    for kernel, stride, *dilation in layers:
        field += (kernel - 1) * (dilation[0] if dilation else 1) * step
        step *= stride
    return field
