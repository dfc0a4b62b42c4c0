"""Numbers as the DPU holds them: signed integers with a power-of-two scale.

A tensor with *fix position* ``fp`` is stored as ``q = clip(round(x · 2^fp), -2^(bits-1), 2^(bits-1) - 1)`` and means
``q · 2^-fp``. Rules observed on AMD's quantiser, pytorch_nndct 3.5.0.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

from ..errors import I2IError
from ..rounding import round_half_away, round_half_up

Kind = Literal["activation", "parameter", "input"]

CANDIDATES = 5  # positions tried by the search, from the largest that does not clip
LARGEST = 12  # no position is higher than this
_ZERO = 18  # what the search says of a tensor of zeros, before the limit


_ROUND = {"activation": round_half_up, "input": round_half_up, "parameter": round_half_away}


def _rounding(kind: Kind):
    if kind not in _ROUND:
        raise I2IError("kind", expected=" or ".join(_ROUND), got=repr(kind))
    return _ROUND[kind]


def to_integers(x: torch.Tensor, fp: int, *, kind: Kind = "activation", bits: int = 8) -> torch.Tensor:
    """The integers that stand for ``x`` at fix position ``fp``, rounded by kind, saturated; float32 values."""
    half = 2 ** (bits - 1)
    return _rounding(kind)(x * 2.0**fp).clamp_(-half, half - 1)


def fake_quantise(x: torch.Tensor, fp: int, *, kind: Kind = "activation", bits: int = 8) -> torch.Tensor:
    """``x`` on the grid of fix position ``fp``: float in, float out, values ``q · 2^-fp``."""
    return to_integers(x, fp, kind=kind, bits=bits) * 2.0**-fp


def fix_position(x: torch.Tensor, kind: Kind = "activation", *, bits: int = 8) -> int:
    """The fix position that AMD's quantiser chooses for a tensor.

    The first candidate is the largest position at which nothing clips, ``floor(log2(1 / s))`` with
    ``s = max(max(x) / (2^(bits-1) - 0.5), min(x) / -(2^(bits-1) + 0.5))``; of it and the next four, the one with the
    smallest squared error is taken, the lower on a tie. Network inputs use the first candidate. At most 12.

    Args:
        x: Any shape, float. A tensor of zeros gets 12.
        kind: "activation" and "input" round half up, "parameter" rounds half away from zero.

    Raises:
        I2IError: If ``x`` is empty or holds a value that is not finite, or ``kind`` is unknown.
    """
    rounding = _rounding(kind)
    if x.numel() == 0 or not torch.isfinite(x).all():
        raise I2IError("fix_position", expected="finite values", got="none" if x.numel() == 0 else "NaN or infinity")
    x = x.detach().to(torch.float32)
    half = 2 ** (bits - 1)
    scale = max(np.float32(x.max()) / np.float32(half - 0.5), np.float32(x.min()) / np.float32(-half - 0.5))
    with np.errstate(over="ignore", divide="ignore"):
        inverse = np.float32(1) / scale
    if not np.isfinite(inverse):  # zeros, and denormals
        return min(_ZERO, LARGEST)
    first = math.floor(np.log2(inverse))
    if kind == "input":
        return min(first, LARGEST)
    best, least = first, math.inf
    for fp in range(first, first + CANDIDATES):
        on_grid = rounding(x * 2.0**fp).clamp_(-half, half - 1).mul_(2.0**-fp)
        error = float(on_grid.sub_(x).square_().sum())
        if error < least:
            best, least = fp, error
    return min(best, LARGEST)


def limit_shifts(fp_in: int, fp_w: int, fp_b: int | None, fp_out: int) -> tuple[int, int | None, int]:
    """The positions of a convolution, adjusted so that the DPU's shifters reach.

    ``shift_cut = fp_w + fp_in - fp_out`` must lie in 0 to 16: ``fp_out``, then ``fp_w``, is lowered.
    ``shift_bias = fp_w + fp_in - fp_b`` must lie between ``min(0, shift_cut - 16)`` (of the shift_cut before the
    adjustment) and 16: ``fp_b`` is lowered below, ``fp_w`` above.

    Returns:
        ``(fp_w, fp_b, fp_out)``; ``fp_b`` stays None where there is no bias.
    """
    cut = fp_w + fp_in - fp_out
    if cut < 0:
        fp_out = fp_w + fp_in
    elif cut > 16:
        fp_w -= cut - 16
    if fp_b is not None:
        shift_bias, lowest = fp_w + fp_in - fp_b, min(0, -(24 - (8 + cut)))
        if shift_bias < lowest:
            fp_b -= lowest - shift_bias
        elif shift_bias > 16:
            fp_w -= shift_bias - 16
    return fp_w, fp_b, fp_out
