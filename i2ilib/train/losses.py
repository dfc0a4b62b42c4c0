"""Perceptual losses by name: what a training minimises beside SSIM. Images are sRGB codes in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import metrics
from ..errors import I2IError

_WINDOWS = (17, 9, 5, 3)  # pixels of the Gaussian, of scales 1, 1/2, 1/4 and 1/8
_NOISE = 2.0  # variance of what the eye adds, squared 8-bit codes
_LUMA = (0.2126, 0.7152, 0.0722)  # BT.709


def vif_limited(pred: Tensor, target: Tensor) -> Tensor:
    """1 - visual information fidelity in the pixel domain, mean over four scales, no credit for added contrast.

    The share of what an eye could learn from the target's luma that it can still learn from the other one's. The
    target is modelled as noise of a local variance; the other one as that times a gain, plus noise. A gain above 1,
    which sharpening makes, counts as 1, as in VMAF NEG: a network that minimises this restores contrast and does not
    exaggerate it. VMAF is made of the same four figures and two others, so a training on this is judged by VMAF NEG
    with favour; say so beside its scores.

    Args:
        pred: (N, 3, H, W), sides of 41 or more, so that the smallest scale has a window.
        target: The same shape.

    Returns:
        A tensor of one number in [0, 1], differentiable; 0 for equal images.

    Raises:
        I2IError: If a side is shorter.

    Source:
        Sheikh and Bovik, Image Information and Visual Quality, IEEE TIP 2006, doi:10.1109/TIP.2005.859378; the limit
        as in Li et al., Toward a Better Quality Metric for the Video Community, 2020 (VMAF NEG).

    Example:
        >>> image = torch.rand(1, 3, 64, 64)
        >>> round(vif_limited(image, image).item(), 4)
        0.0
    """
    if min(pred.shape[-2:]) < 41:
        raise I2IError("vif_limited", expected="sides of 41 pixels or more", got=tuple(pred.shape[-2:]))
    weights = pred.new_tensor(_LUMA)
    pred, target = (torch.einsum("nchw,c->nhw", x, weights)[:, None] * 255 - 128 for x in (pred, target))
    lost = []
    for place, size in enumerate(_WINDOWS):
        mean = partial(_windowed, size=size)
        if place:
            pred, target = (mean(x)[..., ::2, ::2] for x in (pred, target))
        p, t = mean(pred), mean(target)
        variance_p = (mean(pred.square()) - p.square()).clamp_min(0)
        variance_t = (mean(target.square()) - t.square()).clamp_min(0)
        together = mean(pred * target) - p * t
        gain = (together / (variance_t + 1e-4)).clamp_min(0)
        rest = (variance_p - gain * together).clamp_min(1e-4)
        kept = torch.log2(1 + gain.clamp_max(1).square() * variance_t / (rest + _NOISE)).sum((1, 2, 3))
        whole = torch.log2(1 + variance_t / _NOISE).sum((1, 2, 3))
        lost.append(1 - (kept + 1) / (whole + 1))  # plain areas have nothing to lose
    return torch.stack(lost).mean()


def _windowed(x: Tensor, *, size: int) -> Tensor:
    """Weighted mean over a Gaussian window of σ = size / 5, inside the image only."""
    at = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    taps = torch.exp(-at.square() / (2 * (size / 5) ** 2))
    taps = taps / taps.sum()
    return F.conv2d(F.conv2d(x, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))


def lpips_vgg(pred: Tensor, target: Tensor) -> Tensor:
    """LPIPS by VGG16, the thesis's loss.

    Raises:
        UnavailableError: If the trunk's weights are not here.
    """
    return metrics.lpips(pred, target, value_range=1.0, net="vgg")


PERCEPTUAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"lpips_vgg": lpips_vgg, "vif_limited": vif_limited}
"""By the name that stands in histories, weights and tables; the second takes the first's place where it cannot be."""
