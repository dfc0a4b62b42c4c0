"""Metrics of pictures against a reference, by arithmetic alone: PSNR, SSIM and MS-SSIM, each in a named variant."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

from ..errors import I2IError
from ._pair import as_batch, check_pair, told
from .catalogue import Metric, register

_LUMA_601 = (65.481, 128.553, 24.966)  # ITU-R BT.601, limited range: 16 + these times RGB in [0, 1]
_SMALLEST_SSIM = 11  # the window
_SMALLEST_FLAT = 7
_C1, _C2 = 0.01**2, 0.03**2  # of a range of 1
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_SMALLEST_MS_SSIM = (_SMALLEST_SSIM - 1) * 2 ** (len(_SCALES) - 1) + 1  # the window must fit into the last scale
_STRIP = 32  # rows at a time


def _gauss() -> list[float]:
    weights = torch.exp(
        -((torch.arange(_SMALLEST_SSIM, dtype=torch.float64) - _SMALLEST_SSIM // 2) ** 2) / (2 * 1.5**2)
    )
    return (weights / weights.sum()).tolist()


_GAUSS = _gauss()


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
    """Structural similarity: 11×11 Gaussian window of σ 1.5, K 0.01 and 0.03, windows inside the image only.

    Higher is better, 1 for equal images; differentiable. Computed in double precision, mean over pixels and channels.
    The same numbers come from TensorFlow, from piq with ``downsample=False`` and from scikit-image with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``; scikit-image's default window is flat and of 7
    pixels, and torchmetrics averages the padded border too.

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
    square = max(1, round(min(pred.shape[-2:]) / 256)) if downsample else 1
    if square > 1:
        pred, target = (functional.avg_pool2d(image, square) for image in (pred, target))
    return told(_similarity(pred, target)[0].mean(1), reduction)


def ssim_flat(
    pred: torch.Tensor, target: torch.Tensor, *, value_range: float, reduction: str = "mean"
) -> float | torch.Tensor:
    """SSIM as scikit-image computes it unless told otherwise: a flat 7×7 window, sample variances, no gradient.

    Not to be compared with :func:`ssim`.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), values in [0, ``value_range``], sides of 7 or more.
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255.
        reduction: "mean" over the images, or "none".

    Raises:
        I2IError: If the shapes differ, the images are too small, or leave the range.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> ssim_flat(image, image, value_range=1.0)
        1.0
    """
    from skimage.metrics import structural_similarity

    pairs = (image.detach().cpu().numpy() for image in _prepared(pred, target, value_range, _SMALLEST_FLAT))
    scores = [structural_similarity(b, a, data_range=1.0, channel_axis=0) for a, b in zip(*pairs, strict=True)]
    return told(torch.tensor(scores, dtype=torch.float64, device=pred.device), reduction)


def ms_ssim(
    pred: torch.Tensor, target: torch.Tensor, *, value_range: float, reduction: str = "mean"
) -> float | torch.Tensor:
    """Multi-scale structural similarity: contrast and structure on five scales, luminance on the last.

    Higher is better, 1 for equal images; differentiable where all scales are above 0. Weights as published; windows as
    in :func:`ssim`; a scale is the mean over squares of two pixels of the one before, odd sides repeat their first
    line; a negative scale counts as 0.

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
    product = 1.0
    for place, weight in enumerate(_SCALES):
        if place:
            pred, target = _halved(pred), _halved(target)
        whole, structure = _similarity(pred, target)
        scale = whole if place == len(_SCALES) - 1 else structure
        product = product * scale.clamp_min(0) ** weight
    return told(product.mean(1), reduction)


def _prepared(pred, target, value_range: float, smallest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch each, in [0, 1], double precision."""
    pred, target = (
        as_batch(image).double() / value_range for image in check_pair(pred, target, value_range=value_range)
    )
    if min(pred.shape[-2:]) < smallest:
        size = "×".join(map(str, pred.shape[-2:]))
        raise I2IError("images", expected=f"sides of {smallest} pixels or more", got=size)
    return pred, target


def _similarity(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SSIM of each channel, (N, C), and its factor without luminance.

    By strips of rows: what is filtered stays in the processor's caches, which makes it faster. (piq's filter is not
    separated, which in double precision costs far more; ``benchmarks/metrics.py`` has the times.)
    """
    rows, sums = x.shape[-2] - _SMALLEST_SSIM + 1, [0.0, 0.0]
    for top in range(0, rows, _STRIP):
        strip = slice(top, min(top + _STRIP, rows) + _SMALLEST_SSIM - 1)
        a, b = x[..., strip, :], y[..., strip, :]
        mean_a, mean_b, squares, product = _blurred(torch.cat([a, b, a * a + b * b, a * b], 1)).chunk(4, 1)
        both, power = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
        structure = (2 * (product - both) + _C2) / (squares - power + _C2)
        whole = (2 * both + _C1) / (power + _C1) * structure
        sums = [total + part.sum((2, 3)) for total, part in zip(sums, (whole, structure), strict=True)]
    windows = rows * (x.shape[-1] - _SMALLEST_SSIM + 1)
    return sums[0] / windows, sums[1] / windows


def _blurred(image: torch.Tensor) -> torch.Tensor:
    """Weighted sums over every whole window, rows first."""
    for axis in (-2, -1):
        length = image.shape[axis] - _SMALLEST_SSIM + 1
        parts = (image.narrow(axis, place, length) * weight for place, weight in enumerate(_GAUSS))
        image = functools.reduce(torch.Tensor.add_, parts)
    return image


def _halved(image: torch.Tensor) -> torch.Tensor:
    odd = [side % 2 for side in image.shape[-2:]]
    return functional.avg_pool2d(functional.pad(image, [odd[1], 0, odd[0], 0], mode="replicate"), 2)


def _luma(rgb: torch.Tensor) -> torch.Tensor:
    if rgb.shape[1] != 3:
        raise I2IError("channel", expected="three channels for luma", got=rgb.shape[1])
    weights = rgb.new_tensor(_LUMA_601).reshape(1, 3, 1, 1)
    return (16 + (rgb * weights).sum(1, keepdim=True)) / 255


_INFINITE = (0.0, float("inf"))
_WANG = "Wang et al. 2004, doi:10.1109/TIP.2003.819861"
register(
    Metric(
        name="psnr",
        label="PSNR",
        variant="one MSE over all pixels and channels of an image, peak = value range",
        higher_is_better=True,
        score_range=_INFINITE,
        source="definition",
        function=psnr,
        of="any",
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
        of="any",
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
        of="any",
        settings={"value_range": 1.0, "downsample": True},
        smallest=_SMALLEST_SSIM,
    )
)
register(
    Metric(
        name="ssim_flat",
        label="SSIM, flat window",
        variant="flat 7×7 window, sample variances, windows inside the image: scikit-image's default",
        higher_is_better=True,
        score_range=(-1, 1),
        source=_WANG + "; computed by scikit-image",
        function=ssim_flat,
        of="any",
        settings={"value_range": 1.0},
        smallest=_SMALLEST_FLAT,
    )
)
register(
    Metric(
        name="ms_ssim",
        label="MS-SSIM",
        variant="five scales, 11×11 Gaussian window, σ 1.5, mean over channels",
        higher_is_better=True,
        score_range=(0, 1),
        source="Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216",
        function=ms_ssim,
        of="any",
        settings={"value_range": 1.0},
        smallest=_SMALLEST_MS_SSIM,
    )
)
