"""Rounding to integers as the DPU does it; observed on AMD's quantiser, pytorch_nndct 3.5.0."""

from __future__ import annotations

import torch


def round_half_up(x: torch.Tensor) -> torch.Tensor:
    """``floor(x + 0.5)``, exact below 2^127: ties go up. The DPU's rule for feature maps.

    Example:
        >>> round_half_up(torch.tensor([-2.5, -1.5, 0.5, 2.5])).tolist()
        [-2.0, -1.0, 1.0, 3.0]
    """
    # x + 0.5 itself would round: 0.49999997 + 0.5 is 1.0 in float32; doubling and halving are exact
    return torch.floor(x * 2).mul_(0.5).ceil_()


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """Ties go away from zero. The DPU's rule for weights and biases.

    Example:
        >>> round_half_away(torch.tensor([-2.5, -0.5, 0.5, 2.5])).tolist()
        [-3.0, -1.0, 1.0, 3.0]
    """
    return torch.copysign(round_half_up(x.abs()), x)
