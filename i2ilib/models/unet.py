"""The larger U-Net for super-resolution that SRUNet is measured against: SRUNet's blocks, classic U-Net widths."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..errors import I2IError
from .layers import Enlarger, check_at_least, check_doubling, configure, doubling, stage


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The size of a :class:`UNet`."""

    filters: tuple[int, ...] = (64, 128, 256, 512)  # a stage each, outermost first
    scale: int = 4  # of the PixelShuffle: 96x96 to 384x384
    residual: bool = True  # add the bicubic enlargement and clamp (on the host); False: the core alone
    folded: bool = False  # adapters folded into their convolutions, see reparametrise
    upsample: str = "bilinear"  # how maps are doubled: in layers.DOUBLING

    def __post_init__(self):
        check_doubling("UNetConfig", self.upsample)
        object.__setattr__(self, "filters", tuple(self.filters))  # JSON knows lists only
        if len(self.filters) != 4:
            raise I2IError("UNetConfig.filters", expected="four stages", got=self.filters)
        sizes = {f"filters[{i}]": (width, 1) for i, width in enumerate(self.filters)}
        check_at_least("UNetConfig", sizes | {"scale": (self.scale, 1)})


class UNet(Enlarger):
    """A U-Net of two blocks a stage, max-pool down, bilinear up, concat skips, PixelShuffle and bicubic residual.

    Args:
        config: Sizes; the default has 64-128-256-512 filters and enlarges 4 times.
        **fields: Single fields of :class:`UNetConfig` to set.

    Raises:
        I2IError: If a field does not exist or has a value that makes no network.

    Example:
        >>> UNet(filters=(8, 8, 16, 16))(torch.zeros(1, 3, 16, 24)).shape
        torch.Size([1, 3, 64, 96])

    Source: Ronneberger et al., U-Net, MICCAI 2015 (https://doi.org/10.1007/978-3-319-24574-4_28), for the shape; the
    blocks, head and residual are SRUNet's.
    """

    def __init__(self, config: UNetConfig | None = None, **fields):
        super().__init__()
        self.config = config = configure(UNetConfig, config, fields)
        adapters = "none" if config.folded else "used"
        f1, f2, f3, f4 = config.filters
        self.down1 = stage(3, f1, 2, adapters=adapters)
        self.down2 = stage(f1, f2, 2, adapters=adapters)
        self.down3 = stage(f2, f3, 2, adapters=adapters)
        self.down4 = stage(f3, f4, 2, adapters=adapters)
        self.up3 = stage(f4 + f3, f3, 2, adapters=adapters)
        self.up2 = stage(f3 + f2, f2, 2, adapters=adapters)
        self.up1 = stage(f2 + f1, f1, 2, adapters=adapters)
        for level, width in enumerate((f2, f3, f4), start=1):
            self.add_module(f"pool{level}", nn.MaxPool2d(2))
            self.add_module(f"upsample{level}", doubling(config.upsample, width))
        self.conv_last = nn.Conv2d(f1, 3 * config.scale**2, 1)
        self.pixel_shuffle = nn.PixelShuffle(config.scale)

    def core(self, x: Tensor) -> Tensor:
        """The detail (N, 3, s*H, s*W) that the network adds: the accelerator's part."""
        skip1 = self.down1(x)
        skip2 = self.down2(self.pool1(skip1))
        skip3 = self.down3(self.pool2(skip2))
        y = self.down4(self.pool3(skip3))
        y = self.up3(torch.cat([self.upsample3(y), skip3], 1))
        y = self.up2(torch.cat([self.upsample2(y), skip2], 1))
        y = self.up1(torch.cat([self.upsample1(y), skip1], 1))
        return self.pixel_shuffle(self.conv_last(y))
