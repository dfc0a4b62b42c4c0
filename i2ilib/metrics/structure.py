"""Metrics of a matte's structure: the gradient and the connectivity error of the matting benchmarks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch.nn import functional

from ..errors import I2IError
from ..runtime import require
from ._pair import as_batch, check_pair, masked_sum, told
from .catalogue import Metric
from .matte import RHEMANN, register_with_band

_SIGMA = 1.4
_RADIUS = math.ceil(_SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _SIGMA * 0.01)))  # of weights above 0.01
_SMALLEST_DISTANCE = 0.15  # above its level; below that, a pixel counts as fully connected


def gradient_error(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    stretch: bool = True,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Sum of (|∇p| − |∇t|)², in thousands: how far the matte's edges differ in steepness.

    Lower is better, 0 is best; grows with the size of the image. Differentiable; the length of a gradient that is zero
    has derivative 0. The gradient is the response of two 9×9 filters, each a Gaussian of σ 1.4 along one axis times its
    first derivative along the other, of unit Euclidean norm; pixels at the border are repeated beyond it.

    Args:
        pred: Coverage in [0, 1] of one channel: (N, 1, H, W), (1, H, W) or (H, W).
        target: The same shape and range.
        stretch: Scale each matte first so that it spans [0, 1], as the MATLAB code (mat2gray) and RobustVideoMatting's
            evaluation do; a constant matte has no gradient either way. Most Python copies leave it out, which matters
            only to mattes that do not reach 0 and 1.
        mask: The pixels to count, bool, of a shape that can be expanded to that of ``pred``; all by default, as video
            benchmarks do. alphamatting.com counts the unknown region of the trimap alone. The filters see the whole
            frame in any case.
        reduction: "mean" over the images, or "none".

    Returns:
        Sum in thousands, [0, inf), or one for each image, (N,).

    Raises:
        I2IError: If the shapes differ, the mattes have more than one channel, are empty or leave [0, 1], or the mask
            is not bool or has another size.

    Source:
        Rhemann et al., A Perceptually Motivated Online Benchmark for Image Matting, CVPR 2009,
        doi:10.1109/CVPR.2009.5206503 (their q is 2).

    Example:
        >>> edge = torch.zeros(1, 1, 32, 32)
        >>> edge[..., 16:] = 1
        >>> gradient_error(edge, edge), gradient_error(edge.mT, edge) > 0.1
        (0.0, True)
    """
    pred, target = _prepared(pred, target)
    if stretch:
        pred, target = _stretched(pred), _stretched(target)
    return told(masked_sum((_steepness(pred) - _steepness(target)).square(), mask) / 1000, reduction)


def connectivity_error(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    variant: str = "matlab",
    mask: torch.Tensor | None = None,
    step: float = 0.1,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Sum of |φ(p) − φ(t)|, in thousands: parts that hang on to the main body in one matte and not in the other.

    Lower is better, 0 is best; grows with the size of the image. Computed on the CPU, without a gradient.

    At each threshold θ of ``step``, 2 ``step`` … 1, Ω is the largest 4-connected region of the pixels where both mattes
    reach θ. The level l of a pixel is the last θ before it first lies outside Ω, from 0; 1 if it never does. With its
    distance d = α − l, φ = 1 − d where d ≥ 0.15, else 1. This is what papers print: the MATLAB code that comes with the
    data of Deep Image Matting (Xu et al., CVPR 2017), which leaves out Rhemann's weight λ (taken as 1).

    The two variants differ in Ω:

    - "matlab" as just described; Ω is empty where the mattes share no pixel, for which the MATLAB code stops with an
      error. Of regions of one size the first by columns counts. RobustVideoMatting's evaluation does the same by
      OpenCV, but for such ties.
    - "python" as in GCA-Matting's evaluation and its many copies: the background of the labelled image competes as a
      region, and wins wherever it has at least as many pixels as the largest one. Ω is then the complement: pixels
      below θ pass for connected, the main body for cut off. So the variants agree on a matte that fills most of its
      frame, and part as soon as an empty border is added, which changes nothing in "matlab". The copies warn that
      they lie about 5 % below the MATLAB code; the difference can have either sign and be several times as large.

    Everything up to the sum is computed in single precision, as in MATLAB: k/255 reaches θ where it equals θ exactly,
    at 0.2, 0.4, 0.6, 0.8 and 1. (Copies that work in double precision let 153/255 miss their 0.6000000000000001.)

    Args:
        pred: Coverage in [0, 1] of one channel: (N, 1, H, W), (1, H, W) or (H, W).
        target: The same shape and range.
        variant: "matlab" or "python".
        mask: The pixels to count, as for :func:`gradient_error`; regions are of the whole frame in any case.
        step: Between thresholds; a whole number of steps makes 1.
        reduction: "mean" over the images, or "none".

    Returns:
        Sum in thousands, [0, inf), or one for each image, (N,).

    Raises:
        I2IError: As :func:`gradient_error` does, and if ``variant`` is unknown or ``step`` does not divide 1.

    Source:
        Rhemann et al., A Perceptually Motivated Online Benchmark for Image Matting, CVPR 2009,
        doi:10.1109/CVPR.2009.5206503 (their p is 1).

    Example:
        >>> target = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
        >>> pred = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0, 1.0]])  # with an island of two pixels
        >>> round(1000 * connectivity_error(pred, target), 6), connectivity_error(pred, target, variant="python")
        (2.0, 0.0)
    """
    if variant not in ("matlab", "python"):
        raise I2IError("variant", expected="matlab or python", got=repr(variant))
    steps = round(1 / step) if 0 < step <= 1 else 0
    if not math.isclose(steps * step, 1):
        raise I2IError("step", expected="a whole part of 1", got=step, remedy="Use 0.1, as the benchmarks do.")
    pred, target = _prepared(pred, target)
    thresholds = np.linspace(0, 1, steps + 1, dtype=np.float32)
    planes = [matte.detach().cpu().numpy()[:, 0].astype(np.float32) for matte in (pred, target)]
    differences = []
    for p, t in zip(*planes, strict=True):
        level = _level(p, t, thresholds, variant)
        differences.append(abs(_phi(p, level) - _phi(t, level)))
    error = torch.from_numpy(np.stack(differences)[:, None]).to(pred)
    return told(masked_sum(error, mask) / 1000, reduction)


def _prepared(pred, target) -> tuple[torch.Tensor, torch.Tensor]:
    """Batches of one channel in double precision."""
    pred, target = (as_batch(matte).double() for matte in check_pair(pred, target, value_range=1.0))
    if pred.shape[1] != 1:
        raise I2IError("mattes", expected="one channel", got=pred.shape[1], remedy="Stack images as (N, 1, H, W).")
    return pred, target


def _stretched(matte: torch.Tensor) -> torch.Tensor:
    low, high = matte.amin((1, 2, 3), keepdim=True), matte.amax((1, 2, 3), keepdim=True)
    return (matte - low) / torch.where(high > low, high - low, 1)


def _steepness(matte: torch.Tensor) -> torch.Tensor:
    """Length of the gradient, (N, 1, H, W)."""
    x = torch.arange(-_RADIUS, _RADIUS + 1, dtype=matte.dtype, device=matte.device)
    smooth = torch.exp(-x.square() / (2 * _SIGMA**2))
    smooth, change = (weights / weights.norm() for weights in (smooth, x * smooth))
    padded = functional.pad(matte, [_RADIUS] * 4, mode="replicate")

    def along(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.conv2d(padded, rows.reshape(1, 1, -1, 1)), columns.reshape(1, 1, 1, -1))

    # vector_norm, because its derivative at zero is 0, not NaN
    return torch.linalg.vector_norm(torch.stack([along(smooth, change), along(change, smooth)]), dim=0)


def _level(pred: np.ndarray, target: np.ndarray, thresholds: np.ndarray, variant: str) -> np.ndarray:
    """l of each pixel, (H, W)."""
    level, inside = np.ones_like(pred), np.ones(pred.shape, bool)
    for below, threshold in itertools.pairwise(thresholds):
        largest = _largest((pred >= threshold) & (target >= threshold), variant)
        level[inside & ~largest] = below
        inside &= largest
    return level


def _largest(both: np.ndarray, variant: str) -> np.ndarray:
    """Ω, bool."""
    label = require("scipy.ndimage").label  # 4-connected by default
    if variant == "python":
        regions = label(both)[0]
        return regions == np.bincount(regions.ravel()).argmax()
    regions = label(both.T)[0].T  # MATLAB counts by columns, and takes the first of equals
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return both & (regions == sizes.argmax())


def _phi(matte: np.ndarray, level: np.ndarray) -> np.ndarray:
    distance = matte - level
    return 1 - np.where(distance >= np.float32(_SMALLEST_DISTANCE), distance, np.float32(0))


register_with_band(
    Metric(
        name="gradient_error",
        label="Grad",
        variant="σ 1.4, mattes stretched to [0, 1], whole frame, thousands",
        higher_is_better=False,
        score_range=(0, float("inf")),
        source=RHEMANN,
        function=gradient_error,
        of="matte",
        unit="10³",
    )
)
register_with_band(
    Metric(
        name="connectivity_error",
        label="Conn",
        variant="as the MATLAB code: largest 4-connected region, steps of 0.1, whole frame, thousands",
        higher_is_better=False,
        score_range=(0, float("inf")),
        source=RHEMANN,
        function=connectivity_error,
        of="matte",
        unit="10³",
    )
)
register_with_band(
    Metric(
        name="connectivity_error_python",
        label="Conn, Python copies",
        variant="as connectivity_error, but the background competes for the largest region",
        higher_is_better=False,
        score_range=(0, float("inf")),
        source="GCA-Matting's evaluation (Li and Lu, AAAI 2020) and its copies; there over the unknown region",
        function=connectivity_error,
        of="matte",
        unit="10³",
        settings={"variant": "python"},
    )
)
