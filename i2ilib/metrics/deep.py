"""Perceptual distances by networks: LPIPS, DISTS, LPIPS-Comp. Their weights are files whose SHA-256 is checked.

Nothing here downloads: a file that is absent is an :class:`~i2ilib.UnavailableError` that names the command for it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional

from ..errors import I2IError, UnavailableError
from ..runtime import fetched, file_state, verified
from ._networks import State, dists_network, linear_weights, lpips_comp_network, lpips_network
from ._pair import as_batch, as_rgb, check_pair, told
from .catalogue import Metric, register

_VGG16, _VGG16_BN, _DISTS = "vgg16-397923af.pth", "vgg16_bn-6c64b313.pth", "dists_weights.pt"  # registered files
_DISTS_SIDE = 256


class _Net(NamedTuple):
    trunk: str  # registered file
    smallest: int  # side below which a pooling layer has nothing left to pool
    linear: str  # SHA-256 of the linear weights in the package lpips


_NETS = {
    "alex": _Net("alexnet-owt-7be5be79.pth", 31, "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "vgg": _Net(_VGG16, 16, "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "squeeze": _Net(
        "squeezenet1_1-b8a52dc0.pth", 17, "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"
    ),
}


def lpips(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    value_range: float,
    net: str = "alex",
    spatial: bool = False,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """Learned perceptual image patch similarity, version 0.1, by the package lpips with checked weights.

    Lower is better, 0 for equal images, rarely above 1; differentiable. The networks take [-1, 1] and are given it: the
    images come as [0, ``value_range``]. Feeding [0, 1] to the package itself without ``normalize=True`` halves the
    contrast and gives other scores, which have been published too.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), RGB or grey (repeated to RGB), values in [0, ``value_range``].
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255.
        net: The trunk: "alex" (the authors' default for comparing), "vgg" (theirs for training), or "squeeze".
        spatial: False averages each layer over its own pixels, as papers report. True enlarges each layer's map to the
            image first and averages the sum, as the authors' script ``test_network.py`` does for their example pair.
        reduction: "mean" over the images, or "none".

    Returns:
        The distance, 0 or more.

    Raises:
        I2IError: If the shapes differ, the images leave the range, are too small for the trunk, or have other than one
            or three channels, or ``net`` is unknown.
        UnavailableError: If the trunk's weights are not here.
        IntegrityError: If they, or the package's linear weights, have another checksum.

    Source:
        Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018,
        doi:10.1109/CVPR.2018.00068.

    Example:
        >>> image = torch.rand(3, 64, 64)
        >>> lpips(image, image, value_range=1.0)  # doctest: +SKIP
        0.0
    """
    if net not in _NETS:
        raise I2IError("net", expected=" or ".join(_NETS), got=repr(net))
    chosen = _NETS[net]
    pred, target = _prepared(pred, target, value_range, chosen.smallest)
    trunk = fetched(chosen.trunk)
    linear = verified(linear_weights(net), chosen.linear, "Install lpips 0.1.4 again.")
    distance = lpips_network(net, spatial, file_state(trunk), file_state(linear), pred.device, pred.dtype)
    return told(distance(pred * 2 - 1, target * 2 - 1).mean((1, 2, 3)), reduction)


def lpips_comp(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    value_range: float,
    linear: str | os.PathLike | None = None,
    trunk: str | os.PathLike | None = None,
    reduction: str = "mean",
) -> float | torch.Tensor:
    """LPIPS-Comp: LPIPS by VGG16 with batch normalisation, its linear weights trained on artefacts of compression.

    Lower is better, 0 for equal images; differentiable. The activations after the last ReLU of each of the five blocks
    are normalised to unit length over the channels; the squared differences, weighted by channel, are averaged over the
    pixels and summed over channels and blocks. The trained weights are not public, so a file of your own is needed.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), RGB or grey (repeated to RGB), values in [0, ``value_range``].
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255.
        linear: A .safetensors or .pth file with ``lin0`` to ``lin4`` of 64, 128, 256, 512 and 512 numbers, none
            negative; LPIPS's own names, ``lin0.model.1.weight``, are understood. As there, they multiply the *squared*
            differences: they are the squares of the w in the printed formula.
        trunk: A .safetensors or .pth file with torchvision's names; by default torchvision's own weights for ImageNet.
        reduction: "mean" over the images, or "none".

    Returns:
        The distance, 0 or more.

    Raises:
        I2IError: As :func:`lpips` does, or if a file does not hold these weights.
        UnavailableError: If ``linear`` is not given, or the trunk's weights are not here.
        IntegrityError: If a file is damaged.

    Source:
        Mier et al., Deep Perceptual Image Quality Assessment for Compression, 2021, arXiv:2103.01114.

    Example:
        >>> image = torch.rand(3, 64, 64)
        >>> lpips_comp(image, image, value_range=1.0, linear="mine.safetensors")  # doctest: +SKIP
        0.0
    """
    pred, target = _prepared(pred, target, value_range, _NETS["vgg"].smallest)
    if linear is None:
        raise UnavailableError(
            "lpips_comp",
            expected="linear weights trained on artefacts of compression",
            got="none",
            remedy="Their authors have not published them; name a file of your own: linear=, --lpips-comp.",
        )
    files = _chosen("linear", linear), _chosen("trunk", fetched(_VGG16_BN) if trunk is None else trunk)
    distance = lpips_comp_network(*files, pred.device, pred.dtype)
    return told(distance(pred * 2 - 1, target * 2 - 1).mean((1, 2, 3)), reduction)


def dists(
    pred: torch.Tensor, target: torch.Tensor, *, value_range: float, resize: bool = True, reduction: str = "mean"
) -> float | torch.Tensor:
    """Deep image structure and texture similarity, as a distance; VGG16 with Hann-weighted L2 pooling.

    Lower is better, 0 for equal images; differentiable. For each channel of the image and of five blocks, means are
    compared (texture) and covariance with variances (structure), and 1 minus the weighted mean of both is told.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), RGB or grey (repeated to RGB), values in [0, ``value_range``].
        target: The same shape and range.
        value_range: Largest possible value, 1.0 or 255.
        resize: Shrink images whose short side exceeds 256 pixels to that, as the paper does; bilinear without
            antialiasing, as piq 0.8. The authors' script shrinks by Pillow, their class does not: False.
        reduction: "mean" over the images, or "none".

    Returns:
        The distance, [0, 1].

    Raises:
        I2IError: If the shapes differ, the images leave the range, or have other than one or three channels.
        UnavailableError: If a file of weights is not here.
        IntegrityError: If one has another checksum.

    Source:
        Ding et al., Image Quality Assessment: Unifying Structure and Texture Similarity, 2020,
        doi:10.1109/TPAMI.2020.3045810.

    Example:
        >>> image = torch.rand(3, 64, 64)
        >>> dists(image, image, value_range=1.0)  # doctest: +SKIP
        0.0
    """
    pred, target = _prepared(pred, target, value_range, 1)
    files = (file_state(fetched(name)) for name in (_VGG16, _DISTS))
    trunk, texture_weights, structure_weights = dists_network(*files, pred.device, pred.dtype)
    if resize and (short := min(pred.shape[-2:])) > _DISTS_SIDE:
        shrink = functools.partial(functional.interpolate, scale_factor=_DISTS_SIDE / short, mode="bilinear")
        pred, target = shrink(pred), shrink(target)
    texture, structure = [], []
    for x, y in zip([pred, *trunk(pred)], [target, *trunk(target)], strict=True):
        (x_mean, x, x_variance), (y_mean, y, y_variance) = _moments(x), _moments(y)
        texture.append(_similarity(x_mean * y_mean, x_mean.square() + y_mean.square()))
        structure.append(_similarity((x * y).mean((2, 3)), x_variance + y_variance))
    apart = (1 - torch.cat(texture, 1)) @ texture_weights + (1 - torch.cat(structure, 1)) @ structure_weights
    return told(apart, reduction)


def _prepared(pred, target, value_range: float, smallest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of RGB each, in [0, 1], in single or double precision."""
    pred, target = (as_rgb(as_batch(image)) for image in check_pair(pred, target, value_range=value_range))
    height, width = pred.shape[-2:]
    if min(height, width) < smallest:
        raise I2IError("images", expected=f"sides of {smallest} pixels or more", got=f"{height}×{width}")
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    return pred.to(dtype) / value_range, target.to(dtype) / value_range


def _chosen(what: str, path: str | os.PathLike) -> State:
    if not Path(path).is_file():
        raise I2IError(what, expected="a file", got=f"none at {path}")
    return file_state(path)


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean over the pixels, what is left without it, and its variance."""
    mean = x.mean((2, 3))
    rest = x - mean[..., None, None]
    return mean, rest, rest.square().mean((2, 3))


def _similarity(product: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    return (2 * product + 1e-6) / (squares + 1e-6)


_ZHANG = "Zhang et al. 2018, doi:10.1109/CVPR.2018.00068; computed by lpips"
for _name in _NETS:
    register(
        Metric(
            name=f"lpips_{_name}",
            label=f"LPIPS ({_name})",
            variant=f"version 0.1, {_name}, RGB mapped to [-1, 1], each layer averaged over its own pixels",
            higher_is_better=False,
            score_range=(0, float("inf")),
            source=_ZHANG,
            function=lpips,
            settings={"value_range": 1.0, "net": _name},
            needs=(_NETS[_name].trunk,),
            smallest=_NETS[_name].smallest,
        )
    )
register(
    Metric(
        name="lpips_comp",
        label="LPIPS-Comp",
        variant="LPIPS by VGG16 with batch normalisation; linear weights from the file that settings name",
        higher_is_better=False,
        score_range=(0, float("inf")),
        source="Mier et al. 2021, arXiv:2103.01114",
        function=lpips_comp,
        settings={"value_range": 1.0},
        smallest=_NETS["vgg"].smallest,
    )
)
register(
    Metric(
        name="dists",
        label="DISTS",
        variant="official weights; short side shrunk to 256 pixels, bilinear, where it is longer",
        higher_is_better=False,
        score_range=(0, 1),
        source="Ding et al. 2020, doi:10.1109/TPAMI.2020.3045810",
        function=dists,
        settings={"value_range": 1.0},
        needs=(_VGG16, _DISTS),
    )
)
