"""Metrics of alpha mattes, pixel by pixel: IoU, MSE, MAD and SAD, over the whole frame or in the unknown band."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from numbers import Integral

import torch
from torch.nn import functional

from ..errors import I2IError
from ._pair import NoScore, as_batch, check_pair, flat, masked_mean, masked_sum, told
from .catalogue import Metric, register

RHEMANN = "Rhemann et al., A Perceptually Motivated Online Benchmark for Image Matting, CVPR 2009"
BAND = 10  # radius in pixels of the band that metrics named ..._band count


def iou(
    pred: torch.Tensor,
    target: torch.Tensor,
    threshold: float = 0.5,
    *,
    absent: float = 1.0,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Intersection over union of the pixels whose alpha is above ``threshold``, averaged over the images of a batch.

    Higher is better, 1 is best. "Above" is strict: alpha equal to the threshold is background. A count of pixels has
    no gradient.

    Args:
        pred: Coverage in [0, 1]: (N, C, H, W), one IoU for each of the N images; with fewer axes it is one image.
        target: The same shape and range.
        threshold: Alpha that separates background from foreground, 0 to 1 (1 excluded).
        absent: Score of an image in which neither matte has foreground. 1 says that agreeing on nothing is right;
            others use 0 or NaN.
        mask: The pixels to count, as for :func:`mse`.
        reduction: "mean" over the images, or "none".

    Returns:
        Mean IoU, [0, 1], or one for each image, (N,).

    Raises:
        I2IError: If the shapes differ, the mattes are empty or leave [0, 1], the threshold is out of range, or the
            mask is not bool or has another size.

    Example:
        >>> iou(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        0.5
    """
    if not 0 <= threshold < 1:
        raise I2IError("threshold", expected="from 0 to below 1", got=threshold)
    pred, target = check_pair(pred, target, value_range=1.0)
    a, b = pred > threshold, target > threshold
    both, either = masked_sum(a & b, mask).double(), masked_sum(a | b, mask).double()
    return told(torch.where(either > 0, both / either.clamp_min(1), absent), reduction)


def mse(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    value_range: float = 1.0,
    scale: float = 1.0,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Mean squared error over all pixels, channels and images, on a [0, ``scale``] range.

    Lower is better, 0 is best; differentiable. The matting paper's Table 1 lists errors from 1.64 to 3.35 without
    saying on which scale. On [0, 1] an error above 1 is impossible, so the table is read here with ``scale=255``, the
    8-bit scale on which mattes are stored; 1.64 is then a root-mean-square error of 1.3 grey levels. It is a reading,
    not a fact.

    Args:
        pred: Any shape, values in [0, ``value_range``]; four axes are a batch, fewer are one image.
        target: The same shape and range.
        value_range: Largest value that the inputs may take.
        scale: Largest value of the range on which the error is told, squared units; 255 for 8-bit levels.
        mask: The pixels to count, bool, of a shape that can be expanded to that of ``pred``; all by default. An image
            without any scores 0.
        reduction: "mean" over the images, or "none".

    Returns:
        Mean squared error, [0, ``scale`` squared], or one for each image, (N,).

    Raises:
        I2IError: If the shapes differ, the images are empty, hold NaN or leave [0, ``value_range``], ``scale`` is
            not above 0, or the mask is not bool or has another size.

    Example:
        >>> mse(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5])), mse(torch.ones(1), torch.zeros(1), scale=255)
        (0.125, 65025.0)
    """
    if not scale > 0:
        raise I2IError("scale", expected="above 0", got=scale, remedy="Use 1.0 or 255.")
    pred, target = check_pair(pred, target, value_range=value_range)
    error = (pred.double() - target.double()).square() * (scale / value_range) ** 2
    return told(masked_mean(error, mask), reduction)


def mad(
    pred: torch.Tensor, target: torch.Tensor, *, mask: torch.Tensor | None = None, reduction: str = "mean"
) -> float | torch.Tensor:
    """Mean absolute difference of coverage, [0, 1]; published tables print it times 1000.

    Lower is better, 0 is best; differentiable but where the mattes are equal.

    Args:
        pred: Coverage in [0, 1], as for :func:`mse`.
        target: The same shape and range.
        mask: The pixels to count, as for :func:`mse`.
        reduction: "mean" over the images, or "none".

    Raises:
        I2IError: As :func:`mse` does.

    Example:
        >>> mad(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5]))
        0.25
    """
    pred, target = check_pair(pred, target, value_range=1.0)
    return told(masked_mean((pred.double() - target.double()).abs(), mask), reduction)


def sad(
    pred: torch.Tensor, target: torch.Tensor, *, mask: torch.Tensor | None = None, reduction: str = "mean"
) -> float | torch.Tensor:
    """Sum of absolute differences of coverage over an image, in thousands of pixels, averaged over the images.

    Lower is better, 0 is best; grows with the size of the image. Published tables print it in thousands too.

    Args:
        pred: Coverage in [0, 1], as for :func:`mse`.
        target: The same shape and range.
        mask: The pixels to count, as for :func:`mse`.
        reduction: "mean" over the images, or "none".

    Raises:
        I2IError: As :func:`mse` does.

    Example:
        >>> sad(torch.ones(1, 1, 100, 100), torch.zeros(1, 1, 100, 100))
        10.0
    """
    pred, target = check_pair(pred, target, value_range=1.0)
    return told(masked_sum((pred.double() - target.double()).abs(), mask) / 1000, reduction)


def unknown_band(target: torch.Tensor, radius: int = BAND) -> torch.Tensor:
    """The pixels that a trimap would leave open: those partly covered, and all within ``radius`` of them.

    Where a hand-drawn trimap comes with the data, use that one; benchmarks count only its unknown region.

    Args:
        target: Coverage in [0, 1], (N, C, H, W), (C, H, W) or (H, W).
        radius: Growth in pixels, a square's half side; 0 for the partly covered alone.

    Returns:
        bool, of the same shape.

    Raises:
        I2IError: If the matte leaves [0, 1], or ``radius`` is negative.

    Example:
        >>> unknown_band(torch.tensor([[0, 0, 0.5, 1, 1, 1]]), radius=1).int().tolist()
        [[0, 1, 1, 1, 0, 0]]
    """
    if not isinstance(radius, Integral) or radius < 0:
        raise I2IError("radius", expected="a whole number, 0 or more", got=radius)
    target, _ = check_pair(target, target, value_range=1.0)
    partly = as_batch((target > 0) & (target < 1)).float()
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        partly = functional.max_pool2d(partly, kernel, 1, padding)  # a square's maximum: down, then across
    return (partly > 0).reshape(target.shape)


def register_with_band(metric: Metric) -> None:
    """Register a metric of mattes, and its variant that counts the unknown band alone, as ``<name>_band``."""
    register(metric)
    register(
        dataclasses.replace(
            metric,
            name=f"{metric.name}_band",
            label=f"{metric.label}, band",
            variant=f"as {metric.name}, but only near the reference's partly covered pixels (its unknown band)",
            function=functools.partial(_in_band, of=metric.function),
            of="matte",
            settings={**metric.settings, "band": BAND},
        )
    )


def _in_band(
    pred: torch.Tensor, target: torch.Tensor, *, of: Callable, band: int, reduction: str = "mean", **more
) -> float | torch.Tensor:
    mask = unknown_band(target, band)
    scores = of(pred, target, mask=mask, reduction="none", **more)
    there = flat(mask).any(1)[: len(scores)]  # of a pair of frames the earlier one's band counts
    if not there.any():
        raise NoScore("unknown band", expected="a reference with partly covered pixels", got="none")
    return told(torch.where(there, scores, torch.nan), reduction)


register_with_band(
    Metric(
        name="iou",
        label="IoU",
        variant="foreground where alpha > 0.5; 1 where neither matte has any",
        higher_is_better=True,
        score_range=(0, 1),
        source="Jaccard index of binary masks; the matting paper's Table 1",
        function=iou,
        of="matte",
    )
)
register_with_band(
    Metric(
        name="mse",
        label="MSE",
        variant="mean over pixels and channels, [0, 1] scale",
        higher_is_better=False,
        score_range=(0, 1),
        source=RHEMANN,
        function=mse,
        of="any",
    )
)
register_with_band(
    Metric(
        name="mse_255",
        label="MSE",
        variant="mean over pixels and channels, squared 8-bit levels",
        higher_is_better=False,
        score_range=(0, 65025),
        source="the matting paper's Table 1, as read here",
        function=mse,
        of="any",
        unit="levels²",
        settings={"scale": 255.0},
    )
)
register_with_band(
    Metric(
        name="mad",
        label="MAD",
        variant="mean absolute difference over the whole frame, [0, 1] scale",
        higher_is_better=False,
        score_range=(0, 1),
        source="Lin et al., Robust High-Resolution Video Matting, WACV 2022",
        function=mad,
        of="any",
    )
)
register_with_band(
    Metric(
        name="sad",
        label="SAD",
        variant="sum of absolute differences over the whole frame, thousands of pixels",
        higher_is_better=False,
        score_range=(0, float("inf")),
        source=RHEMANN,
        function=sad,
        of="matte",
        unit="10³ px",
    )
)
