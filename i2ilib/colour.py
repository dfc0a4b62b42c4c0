"""Transfer functions and the fixed-point mapping between a compositor's linear light and an INT8 network.

A frame travels ``linear`` → ``srgb`` [0, 1] → ``mapped`` [-q, q] → int8, and back. All functions are element-wise:
any shape, any device. Source of equations 1 to 4: the pix2pix matting paper, sections 3.3.1 and 3.3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from .errors import I2IError
from .rounding import round_half_up

LINEAR_THRESHOLD = 0.0031308  # equation 1; IEC 61966-2-1 prints the same number
SRGB_THRESHOLD = 0.04045  # IEC 61966-2-1: the image of LINEAR_THRESHOLD, so the curve has no step
PAPER_THRESHOLD = 0.004045  # equation 4 as printed; leaves a step in the shadows (a digit was lost)
SLOPE = 12.92
Q_VALUES = (1, 2, 4, 8, 16, 32, 64, 128)

Kernel = Callable[..., torch.Tensor]  # (x, out=None) -> result
_CHUNK = 1 << 15  # elements a pass: temporaries stay in the cache, and PyTorch runs such a pass in the calling thread


def linear_to_srgb(linear: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Encode linear light with the sRGB curve, equation 1.

    Args:
        linear: Any shape, floating point, nominal range [0, 1]. Values outside are extended by the same two
            formulas: above 1 the power, below 0 the straight line. NaN stays NaN.
        out: Result buffer of the same shape and dtype; may be ``linear`` itself. Not for a tensor that needs gradients.

    Returns:
        sRGB values, same shape and dtype; [0, 1] for input in [0, 1].

    Raises:
        I2IError: If ``linear`` is not floating point, or ``out`` does not match it.

    Example:
        >>> linear_to_srgb(torch.tensor([0.0, 0.18, 1.0]))
        tensor([0.0000, 0.4614, 1.0000])
    """
    _check(linear, "linear", out)
    return _apply(_piecewise(LINEAR_THRESHOLD, SLOPE, _encode), linear, out)


def srgb_to_linear(
    srgb: torch.Tensor, *, threshold: float = SRGB_THRESHOLD, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode sRGB values to linear light, equation 4.

    Args:
        srgb: Any shape, floating point, nominal range [0, 1]. Values outside are extended by the same two formulas:
            above 1 the power, below 0 the straight line. NaN stays NaN.
        threshold: Where the straight line ends. The default inverts equation 1; ``PAPER_THRESHOLD`` is what the
            paper prints.
        out: Result buffer of the same shape and dtype; may be ``srgb`` itself. Not for a tensor that needs gradients.

    Returns:
        Linear light, same shape and dtype; [0, 1] for input in [0, 1].

    Raises:
        I2IError: If ``srgb`` is not floating point, ``threshold`` is outside [0, 1], or ``out`` does not match.

    Example:
        >>> srgb_to_linear(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.2140, 1.0000])
    """
    if not 0 <= threshold <= 1:
        raise I2IError(
            "threshold", expected="a number from 0 to 1", got=threshold, remedy="Use SRGB_THRESHOLD or PAPER_THRESHOLD."
        )
    _check(srgb, "srgb", out)
    return _apply(_piecewise(threshold, 1 / SLOPE, _decode), srgb, out)


def to_fixed(srgb: torch.Tensor, q: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Map [0, 1] to [-q, q], equation 2: ``q (x - 0.5) 2``.

    Args:
        srgb: Any shape, floating point, nominal range [0, 1]. Nothing is rounded or clipped; :func:`to_int8` does that.
        q: A power of two from 1 to 128.
        out: Result buffer of the same shape and dtype; may be ``srgb`` itself. Not for a tensor that needs
            gradients.

    Returns:
        Mapped values, same shape and dtype.

    Raises:
        I2IError: If ``srgb`` is not floating point, ``q`` is not in :data:`Q_VALUES`, or ``out`` does not match.

    Example:
        >>> to_fixed(torch.tensor([0.0, 0.5, 1.0]), 64)
        tensor([-64.,   0.,  64.])
    """
    _check(srgb, "srgb", out)
    _check_q(q)
    return _apply(lambda x, out=None: torch.mul(x - 0.5, 2 * q, out=out), srgb, out)


def from_fixed(mapped: torch.Tensor, q: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Map [-q, q] to [0, 1], equation 3: ``(x / q + 1) / 2``.

    Args:
        mapped: Any shape, floating point, nominal range [-q, q].
        q: A power of two from 1 to 128.
        out: Result buffer of the same shape and dtype; may be ``mapped`` itself. Not for a tensor that needs
            gradients.

    Returns:
        sRGB values or coverage, same shape and dtype; values outside [-q, q] land outside [0, 1].

    Raises:
        I2IError: If ``mapped`` is not floating point, ``q`` is not in :data:`Q_VALUES`, or ``out`` does not match.

    Example:
        >>> from_fixed(torch.tensor([-64.0, 0.0, 64.0]), 64)
        tensor([0.0000, 0.5000, 1.0000])
    """
    _check(mapped, "mapped", out)
    _check_q(q)
    return _apply(lambda x, out=None: torch.add(x * (0.5 / q), 0.5, out=out), mapped, out)


def to_int8(mapped: torch.Tensor, *, fix_position: int = 0) -> torch.Tensor:
    """Round to signed 8-bit codes as the DPU does for feature maps.

    ``clip(floor(x 2^fp + 0.5), -128, 127)``: ties go up, out of range saturates (no wrap), NaN becomes 0. The binary
    point sits ``fix_position`` bits from the right. Agrees with rounding method 2 of AMD's quantiser.

    Args:
        mapped: Any shape, floating point.
        fix_position: Bits after the binary point; negative values are allowed.

    Returns:
        int8, same shape.

    Raises:
        I2IError: If ``mapped`` is not floating point.

    Example:
        >>> to_int8(torch.tensor([-2.5, -0.5, 0.5, 2.5, 200.0])).tolist()
        [-2, 0, 1, 3, 127]
    """
    _check(mapped, "mapped")
    codes = round_half_up(mapped * 2.0**fix_position)
    return codes.clamp_(-128, 127).nan_to_num_(nan=0.0).to(torch.int8)


def from_int8(integers: torch.Tensor, *, fix_position: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values that signed 8-bit codes stand for: ``code 2^-fp``, exactly.

    Args:
        integers: int8, any shape.
        fix_position: Bits after the binary point.
        dtype: Floating-point type of the result.

    Returns:
        Mapped values, same shape.

    Raises:
        I2IError: If ``integers`` is not int8.

    Example:
        >>> from_int8(torch.tensor([-128, 127], dtype=torch.int8), fix_position=7)
        tensor([-1.0000,  0.9922])
    """
    if integers.dtype != torch.int8:
        raise I2IError("integers", expected="dtype int8", got=integers.dtype, remedy="Use to_int8 to make codes.")
    return integers.to(dtype).mul_(2.0**-fix_position)


# --- the two curves, computed once for both directions ---------------------------------------------


def _encode(x: torch.Tensor) -> torch.Tensor:
    """1.055 x^(1/2.4) - 0.055 for x > 0, the power as exp and log: a third of the time of pow, 2e-7 accurate."""
    return 1.055 * torch.exp(torch.log(x) * (1 / 2.4)) - 0.055


def _decode(x: torch.Tensor) -> torch.Tensor:
    """((x + 0.055) / 1.055)^2.4 for x >= 0."""
    return torch.exp(torch.log((x + 0.055) * (1 / 1.055)) * 2.4)


def _piecewise(threshold: float, slope: float, curve: Kernel) -> Kernel:
    """``curve(x)`` above the threshold, ``slope x`` elsewhere; NaN takes the line and stays NaN."""

    def kernel(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        # the curve never sees a value at which it, or its gradient, is NaN or infinite
        return torch.where(x > threshold, curve(torch.clamp_min(x, threshold)), x * slope, out=out)

    return kernel


# --- one way to run them all -------------------------------------------------------------------------


def _apply(kernel: Kernel, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """``kernel(x)``, element-wise; a large frame on the CPU goes through the cache in chunks, on all threads."""
    if torch.is_grad_enabled() and (x.requires_grad or (out is not None and out.requires_grad)):
        if out is not None:
            raise I2IError("out", expected="None for a tensor that needs gradients", got="a buffer", remedy="Leave it.")
        return kernel(x)
    out = torch.empty_like(x) if out is None else out
    source, result = _flat(x.detach()), _flat(out)
    if x.device.type != "cpu" or source is None or result is None or x.stride() != out.stride():
        return out.copy_(kernel(x))
    workers = torch.get_num_threads() if source.numel() > 4 * _CHUNK else 1
    share = max(-(-source.numel() // (4 * workers)), _CHUNK)

    @torch.inference_mode()  # a new thread does not know the caller's mode
    def work(start: int) -> None:
        stop = min(start + share, source.numel())
        for first in range(start, stop, _CHUNK):
            place = slice(first, min(first + _CHUNK, stop))
            kernel(source[place], result[place])

    starts = range(0, source.numel(), share)
    if workers == 1:
        for start in starts:
            work(start)
    else:  # own threads: PyTorch's wait for each other after every pass, which costs dearly on a busy machine
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, starts))
    return out


def _flat(x: torch.Tensor) -> torch.Tensor | None:
    """A dense tensor in its own memory order (an HWC frame seen as CHW is dense too); None if it has gaps."""
    ordered = x.permute(sorted(range(x.ndim), key=lambda axis: -x.stride(axis)))
    return ordered.view(-1) if ordered.is_contiguous() else None


def _check(x: torch.Tensor, name: str, out: torch.Tensor | None = None) -> None:
    if not x.is_floating_point():
        raise I2IError(
            name, expected="a floating-point tensor", got=x.dtype, remedy="Divide 8-bit values by 255, 16-bit by 65535."
        )
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.device != x.device):
        raise I2IError(
            "out",
            expected=f"shape {tuple(x.shape)}, {x.dtype} on {x.device}",
            got=f"{tuple(out.shape)}, {out.dtype} on {out.device}",
            remedy="Make it with torch.empty_like.",
        )


def _check_q(q: int) -> None:
    if q not in Q_VALUES:
        raise I2IError("q", expected="a power of two from 1 to 128", got=q, remedy="Choose one of colour.Q_VALUES.")
