"""What makes a training step faster on a CPU and leaves what it computes alone."""

from __future__ import annotations

from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F

FEW = 256  # positions in a batch's smaller map up to which a layer's time goes into moving its weights
MANY = 2**16  # pairs of channels from which a layer has weights worth speaking of


def lay_out(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network where it is trained, laid out for steps of few patches.

    In the deep levels of a U-Net millions of weights meet a handful of pixels. The kernels for convolutions bring
    weights into blocks and back at every step, which costs more there than the arithmetic; a matrix product over
    unfolded patches reads them as they lie. So on a CPU, heavy 4×4 convolutions with stride 2 choose by size. All
    other networks get their weights channels last, which is what the kernels want.

    Args:
        module: Changed in place; its parameters keep their names and values.
        device: Where it will be trained.
    """
    module.to(device)
    heavy = [child for child in module.modules() if _is_heavy(child)] if device.type == "cpu" else []
    for child in heavy:
        child.forward = MethodType(_convolve if isinstance(child, nn.Conv2d) else _convolve_transposed, child)
    return module if heavy else module.to(memory_format=torch.channels_last)


def _is_heavy(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        and (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
        and (layer.dilation, layer.output_padding, layer.groups) == ((1, 1), (0, 0), 1)
        and (layer.padding_mode, layer.bias) == ("zeros", None)
        and layer.in_channels * layer.out_channels >= MANY
    )


def _convolve(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    n, _, h, w = x.shape
    if n * (h // 2) * (w // 2) > FEW:
        return nn.Conv2d.forward(self, x)
    columns = F.unfold(x, 4, padding=1, stride=2).transpose(0, 1).flatten(1)  # (C·16, N·h·w/4)
    return (self.weight.flatten(1) @ columns).unflatten(1, (n, h // 2, w // 2)).transpose(0, 1)


def _convolve_transposed(self: nn.ConvTranspose2d, x: torch.Tensor) -> torch.Tensor:
    n, _, h, w = x.shape
    if n * h * w > FEW:
        return nn.ConvTranspose2d.forward(self, x)
    columns = self.weight.flatten(1).t() @ x.transpose(0, 1).flatten(1)  # (C·16, N·h·w)
    return F.fold(columns.unflatten(1, (n, h * w)).transpose(0, 1), (2 * h, 2 * w), 4, padding=1, stride=2)
