"""Metrics of pictures against a reference, by arithmetic alone: PSNR, SSIM and MS-SSIM, each in a named variant."""

from __future__ import annotations

import torch

from ..errors import I2IError
from ..runtime import require
from ._pair import as_batch, check_pair, told
from .catalogue import Metric, register

_LUMA_601 = (65.481, 128.553, 24.966)  # ITU-R BT.601, limited range: 16 + these times RGB in [0, 1]
_SMALLEST_SSIM = 11  # the window
_SMALLEST_MS_SSIM = (11 - 1) * 2**4 + 1  # it must fit into the fifth scale


def psnr(
    pred: torch.Tensor, target: torch.Tensor, *, value_range: float, channel: str = "all", reduction: str = "mean"
) -> float | torch.Tensor:
    """Peak signal-to-noise ratio: 10 log10(value_range² / MSE), one MSE over all pixels and channels of an image.

    Higher is better; infinite for equal images. Differentiable but there. A mean over images is the mean of their
    PSNRs, which is not the PSNR of their mean error. piq adds 1e-8 to the error, ours is exact.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), values in [0, ``value_range``].
        target: The same shape and range.
        value_range: The peak, 1.0 or 255.
        channel: "all", or "luma": of RGB, the BT.601 limited-range luma as float, against the peak all the same, as
            papers on super-resolution do.
        reduction: "mean" over the images, or "none".

    Returns:
        Decibels.

    Raises:
        I2IError: If the shapes differ, the images are empty or leave the range, or ``channel`` is unknown, or luma is
            asked of other than three channels.

    Example:
        >>> round(psnr(torch.full((3, 8, 8), 0.1), torch.zeros(3, 8, 8), value_range=1.0), 4)
        20.0
    """
    pred, target = (as_batch(image).double() for image in check_pair(pred, target, value_range=value_range))
    pred, target = pred / value_range, target / value_range
    if channel == "luma":
        pred, target = _luma(pred), _luma(target)
    elif channel != "all":
        raise I2IError("channel", expected="all or luma", got=repr(channel))
    return told(-10 * torch.log10((pred - target).square().mean((1, 2, 3))), reduction)


def ssim(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    value_range: float,
    downsample: bool = False,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Structural similarity, by piq: 11×11 Gaussian window of σ 1.5, K 0.01 and 0.03, windows inside the image only.

    Higher is better, 1 for equal images; differentiable. Mean over the channels. So do TensorFlow and scikit-image with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``; scikit-image's default window is flat and of 7
    pixels, torchmetrics averages the padded border too.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), values in [0, ``value_range``], sides of 11 or more.
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255; scores depend on it.
        downsample: Average first over squares of round(short side / 256) pixels, as the authors' MATLAB code does.
        reduction: "mean" over the images, or "none".

    Returns:
        [-1, 1].

    Raises:
        I2IError: If the shapes differ, the images are too small, or leave the range.

    Source:
        Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004,
        doi:10.1109/TIP.2003.819861.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> round(ssim(image, image, value_range=1.0), 6)
        1.0
    """
    pred, target = _prepared(pred, target, value_range, _SMALLEST_SSIM)
    found = require("piq").ssim(pred, target, data_range=1.0, downsample=downsample, reduction="none")
    return told(found, reduction)


def ms_ssim(
    pred: torch.Tensor, target: torch.Tensor, *, value_range: float, reduction: str = "mean"
) -> float | torch.Tensor:
    """Multi-scale structural similarity, by piq: five scales, the authors' weights, otherwise as :func:`ssim`.

    Higher is better, 1 for equal images; differentiable.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), values in [0, ``value_range``], sides of 161 or more.
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255.
        reduction: "mean" over the images, or "none".

    Returns:
        [0, 1].

    Raises:
        I2IError: If the shapes differ, the images are too small, or leave the range.

    Source:
        Wang et al., Multiscale Structural Similarity for Image Quality Assessment, 2003,
        doi:10.1109/ACSSC.2003.1292216.

    Example:
        >>> image = torch.rand(1, 3, 176, 176)
        >>> round(ms_ssim(image, image, value_range=1.0), 6)
        1.0
    """
    pred, target = _prepared(pred, target, value_range, _SMALLEST_MS_SSIM)
    found = require("piq").multi_scale_ssim(pred, target, data_range=1.0, reduction="none")
    return told(found, reduction)


def _prepared(pred, target, value_range: float, smallest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch each, in [0, 1] (piq refuses what a rounding error leaves outside)."""
    require("torchvision")  # piq imports it
    pred, target = (as_batch(image) for image in check_pair(pred, target, value_range=value_range))
    if min(pred.shape[-2:]) < smallest:
        size = "×".join(map(str, pred.shape[-2:]))
        raise I2IError("images", expected=f"sides of {smallest} pixels or more", got=size)
    return (pred / value_range).clamp(0, 1), (target / value_range).clamp(0, 1)


def _luma(rgb: torch.Tensor) -> torch.Tensor:
    if rgb.shape[1] != 3:
        raise I2IError("channel", expected="three channels for luma", got=rgb.shape[1])
    weights = rgb.new_tensor(_LUMA_601).reshape(1, 3, 1, 1)
    return (16 + (rgb * weights).sum(1, keepdim=True)) / 255


_INFINITE = (0.0, float("inf"))
_WANG = "Wang et al. 2004, doi:10.1109/TIP.2003.819861; computed by piq"
register(
    Metric(
        name="psnr",
        label="PSNR",
        variant="one MSE over all pixels and channels of an image, peak = value range",
        higher_is_better=True,
        score_range=_INFINITE,
        source="definition",
        function=psnr,
        unit="dB",
        settings={"value_range": 1.0},
    )
)
register(
    Metric(
        name="psnr_y",
        label="PSNR of luma",
        variant="BT.601 limited-range luma of sRGB as float, peak 255",
        higher_is_better=True,
        score_range=_INFINITE,
        source="definition",
        function=psnr,
        unit="dB",
        settings={"value_range": 1.0, "channel": "luma"},
    )
)
register(
    Metric(
        name="ssim",
        label="SSIM",
        variant="11×11 Gaussian window, σ 1.5, windows inside the image, no downsampling, mean over channels",
        higher_is_better=True,
        score_range=(-1, 1),
        source=_WANG,
        function=ssim,
        settings={"value_range": 1.0},
        smallest=_SMALLEST_SSIM,
    )
)
register(
    Metric(
        name="ssim_downsampled",
        label="SSIM, downsampled",
        variant="as ssim, after the automatic downsampling of the authors' MATLAB code",
        higher_is_better=True,
        score_range=(-1, 1),
        source=_WANG,
        function=ssim,
        settings={"value_range": 1.0, "downsample": True},
        smallest=_SMALLEST_SSIM,
    )
)
register(
    Metric(
        name="ms_ssim",
        label="MS-SSIM",
        variant="five scales, 11×11 Gaussian window, σ 1.5, mean over channels",
        higher_is_better=True,
        score_range=(0, 1),
        source="Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216; computed by piq",
        function=ms_ssim,
        settings={"value_range": 1.0},
        smallest=_SMALLEST_MS_SSIM,
    )
)
