"""SRUNet: the small U-Net that enlarges compressed video 1.5 or 2 times, and its published weights.

Source: Vaccaro, Bertini, Uricchio, Del Bimbo, Fast video visual quality and resolution improvement using SR-UNet,
ACM MM 2021 (https://doi.org/10.1145/3474085.3475683); weights: github.com/fede-vaccaro/fast-sr-unet (MIT).
"""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import I2IError, IntegrityError
from .layers import Block, Enlarger, check_at_least, check_doubling, configure, doubling, stage

M = TypeVar("M", bound=Enlarger)


@dataclasses.dataclass(frozen=True)
class SRUNetConfig:
    """The size of an :class:`SRUNet`; the defaults are the published 2x model."""

    n_filters: int = 64  # filters at half resolution and below; half as many at full resolution
    layer_multiplier: float = 1.0  # stages have int(2 * m) blocks (the first) or int(3 * m)
    scale: int = 2  # of the PixelShuffle
    downsample: float | None = None  # bicubic factor after the enlargement: 0.75 makes 2x into 1.5x
    residual: bool = True  # add the bicubic enlargement and clamp (on the host); False: the core alone
    folded: bool = False  # adapters folded into their convolutions, see reparametrise
    upsample: str = "bilinear"  # how maps are doubled: in layers.DOUBLING

    def __post_init__(self):
        check_doubling("SRUNetConfig", self.upsample)
        check_at_least("SRUNetConfig", {"n_filters": (self.n_filters, 2), "scale": (self.scale, 1)})
        if self.n_filters % 2:
            raise I2IError("SRUNetConfig.n_filters", expected="an even number", got=self.n_filters)
        if self.layer_multiplier < 0.5:
            raise I2IError("SRUNetConfig.layer_multiplier", expected="0.5 or more", got=self.layer_multiplier)
        if self.downsample is not None and not 0 < self.downsample < 1:
            raise I2IError("SRUNetConfig.downsample", expected="None or a factor in (0, 1)", got=self.downsample)


class SRUNet(Enlarger):
    """SRUNet with the parameter names of the published weights, which load unchanged with ``strict=True``.

    Args:
        config: Sizes; the default is the published 2x model.
        **fields: Single fields of :class:`SRUNetConfig` to set.

    Raises:
        I2IError: If a field does not exist or has a value that makes no network.

    Example:
        >>> SRUNet(n_filters=8)(torch.zeros(1, 3, 16, 24)).shape
        torch.Size([1, 3, 32, 48])
    """

    def __init__(self, config: SRUNetConfig | None = None, **fields):
        super().__init__()
        self.config = config = configure(SRUNetConfig, config, fields)
        full, half = config.n_filters, config.n_filters // 2
        n2, n3 = int(2 * config.layer_multiplier), int(3 * config.layer_multiplier)
        adapters = "none" if config.folded else "all"
        self.dconv_down1 = stage(3, half, n2, adapters=adapters)
        self.dconv_down2 = stage(half, full, n3, adapters=adapters)
        self.dconv_down3 = stage(full, full, n3, adapters=adapters)
        self.dconv_down4 = stage(full, full, n3, adapters=adapters)
        self.dconv_up3 = stage(2 * full, full, n3, adapters=adapters)
        self.dconv_up2 = stage(2 * full, full, n3, adapters=adapters)
        self.dconv_up1 = stage(full + half, half, n3, adapters=adapters)
        for level in (1, 2, 3):
            self.add_module(f"pool{level}", nn.MaxPool2d(2))
            self.add_module(f"upsample{level}", doubling(config.upsample, full))
        if not config.folded:
            self.to_rgb = nn.Conv2d(half, 3, 1)  # in the published files, never used
        self.conv_last = nn.Conv2d(half, 3 * config.scale**2, 1)
        self.pixel_shuffle = nn.PixelShuffle(config.scale)

    def core(self, x: Tensor) -> Tensor:
        """The detail (N, 3, s*H, s*W) that the network adds: the accelerator's part."""
        skip1 = self.dconv_down1(x)
        skip2 = self.dconv_down2(self.pool1(skip1))
        skip3 = self.dconv_down3(self.pool2(skip2))
        y = self.dconv_down4(self.pool3(skip3))
        y = self.dconv_up3(torch.cat([self.upsample3(y), skip3], 1))
        y = self.dconv_up2(torch.cat([self.upsample2(y), skip2], 1))
        y = self.dconv_up1(torch.cat([self.upsample1(y), skip1], 1))
        return self.pixel_shuffle(self.conv_last(y))

    def host(self, detail: Tensor, x: Tensor) -> Tensor:
        """Add the bicubic enlargement of ``x``, clamp, and shrink by ``downsample`` where set: the host's part."""
        y = super().host(detail, x)
        if (factor := self.config.downsample) is not None:
            y = nn.functional.interpolate(y, scale_factor=factor, mode="bicubic", align_corners=True)
            y = torch.clamp(y, -1.0, 1.0)
        return y


def reparametrise(model: M) -> M:
    """An equal model whose blocks hold one convolution each; ``model`` stays as it is.

    In blocks with as many channels out as in, the 1x1 adapter and the identity are added to the centre tap of the
    3x3 convolution: ``relu(conv3x3(x) + x + conv1x1(x))`` is one convolution and a ReLU. Fold after training. The
    outputs change by less than 1e-6.

    Args:
        model: An :class:`SRUNet` or :class:`~i2ilib.models.UNet`, folded or not.

    Returns:
        A new model with ``config.folded`` true, without adapters and without parameters that are never used.
    """
    like = next(model.parameters())
    with like.device:
        folded = type(model)(dataclasses.replace(model.config, folded=True)).train(model.training).to(like)
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, Block):
            state |= {f"{name}.{key}": value for key, value in module.folded().state_dict().items()}
    state |= {key: value for key, value in model.state_dict().items() if key.startswith(("conv_last.", "upsample"))}
    folded.load_state_dict(state)
    return folded


# The 1.5x model is the 2x network, smaller, with a bicubic shrink behind it: its size gives it away.
_DOWNSAMPLE = {(48, 0.7): 0.75}


def load_published(path: str | os.PathLike, **fields) -> SRUNet:
    """An :class:`SRUNet` with the authors' weights, sized by the shapes in the file, in evaluation mode.

    Args:
        path: A ``.pth`` file of github.com/fede-vaccaro/fast-sr-unet; only tensors are unpickled.
        **fields: Fields of :class:`SRUNetConfig` that the shapes do not tell: ``downsample``, ``residual``. The
            shrink of the published 1.5x model is known and set.

    Raises:
        I2IError: If the file is missing, or a field does not exist or has an impossible value.
        IntegrityError: If the file is corrupt or holds something else.
    """
    configure(SRUNetConfig, None, fields)  # the caller's mistakes are not the file's
    path, want = Path(path), "a state dict of SRUNet, as published"
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise I2IError(str(path), expected="a file", got="none", remedy="i2ilib.runtime.fetch downloads it.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise IntegrityError(
            str(path),
            expected=want,
            got=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Fetch it anew.",
        ) from None
    try:
        model = SRUNet(_infer(state), **fields)
        model.load_state_dict(state, strict=True)
    except (KeyError, TypeError, AttributeError, RuntimeError, I2IError) as error:
        got = "other tensors: " + " ".join(str(error).split())[:200]
        raise IntegrityError(str(path), expected=want, got=got) from None
    return model.eval()


def _infer(state: dict[str, Tensor]) -> SRUNetConfig:
    """The configuration that the shapes in a published state dict imply."""
    n_filters = 2 * state["dconv_down1.0.conv1.weight"].shape[0]
    n2 = sum(key.startswith("dconv_down1.") and key.endswith(".conv1.weight") for key in state)
    n3 = sum(key.startswith("dconv_down2.") and key.endswith(".conv1.weight") for key in state)
    multiplier = math.ceil(10 * max(n2 / 2, n3 / 3)) / 10  # the smallest tenth with int(2 m) = n2, int(3 m) = n3
    scale = math.isqrt(state["conv_last.weight"].shape[0] // 3)
    downsample = _DOWNSAMPLE.get((n_filters, multiplier))
    return SRUNetConfig(n_filters=n_filters, layer_multiplier=multiplier, scale=scale, downsample=downsample)
