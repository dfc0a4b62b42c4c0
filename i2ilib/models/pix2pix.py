"""The pix2pix U-Net generator and its PatchGAN discriminator.

Source: Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017, appendix 6.1
(https://doi.org/10.1109/CVPR.2017.632).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..errors import I2IError
from .layers import check_at_least, check_input, configure

ORDERS = {"dpu": 26 / 256, "pix2pix": 0.2}  # order of operators: slope of LeakyReLU


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The size of a :class:`Generator` and the order of its operators."""

    in_channels: int = 3
    out_channels: int = 3
    width: int = 64  # filters of the first convolution, C64; the deepest have 8 times as many
    levels: int = 8  # halvings; height and width must be multiples of 2**levels
    order: str = "dpu"  # "dpu": conv, norm, activation, concat; "pix2pix": activation, conv, norm, concat
    slope: float | None = None  # of LeakyReLU; None: 26/256, the DPU's only one, or pix2pix's 0.2
    dropout: float = 0.0  # in the middle C512 decoder blocks; pix2pix trains with 0.5

    def __post_init__(self):
        owner = "GeneratorConfig"
        sizes = {name: (getattr(self, name), 1) for name in ("in_channels", "out_channels", "width")}
        check_at_least(owner, sizes | {"levels": (self.levels, 2)})
        if self.order not in ORDERS:
            raise I2IError(f"{owner}.order", expected=" or ".join(ORDERS), got=repr(self.order))
        if not 0 <= self.dropout < 1:
            raise I2IError(f"{owner}.dropout", expected="a probability below 1", got=self.dropout)

    @property
    def negative_slope(self) -> float:
        """The slope of LeakyReLU for negative values that this configuration means."""
        return ORDERS[self.order] if self.slope is None else self.slope

    @property
    def filters(self) -> list[int]:
        """Filters of the encoder's convolutions, outermost first: 64, 128, 256, 512, 512, ..."""
        return [self.width * min(2**level, 8) for level in range(self.levels)]


class Generator(nn.Module):
    """The pix2pix generator: C64-C128-C256-C512x5 down, C512x4-C256-C128-C64 up, one skip a level, tanh.

    All convolutions are 4x4 with stride 2 and padding 1. Order "pix2pix" activates before each convolution, so ReLU
    follows the concat; order "dpu" activates right after convolution and norm and puts nothing behind the concat,
    the only form an engine with fused activations can run. Both have the same parameters under the same names, and
    differ in one thing: the decoder of "dpu" also sees the negative part of every skip, which the ReLU behind
    pix2pix's concat removes. With ``slope=0`` they compute the same.

    Args:
        config: Sizes and order; the default is the published generator in DPU order.
        **fields: Single fields of :class:`GeneratorConfig` to set.

    Raises:
        I2IError: If a field does not exist or has a value that makes no network.

    Example:
        >>> net = Generator(width=8, levels=4, out_channels=1)
        >>> net(torch.zeros(1, 3, 32, 48)).shape
        torch.Size([1, 1, 32, 48])
    """

    def __init__(self, config: GeneratorConfig | None = None, **fields):
        super().__init__()
        self.config = config = configure(GeneratorConfig, config, fields)
        filters, last = config.filters, config.levels - 1
        self.encoder = nn.ModuleList(self._down(level) for level in range(config.levels))
        self.decoder = nn.ModuleList(self._up(level) for level in range(last, 0, -1))
        outer = [("act", nn.ReLU())] if config.order == "pix2pix" else []
        outer += [("conv", nn.ConvTranspose2d(2 * filters[0], config.out_channels, 4, 2, 1)), ("tanh", nn.Tanh())]
        self.head = nn.Sequential(OrderedDict(outer))
        self.apply(initialise)

    def _down(self, level: int) -> nn.Sequential:
        config, filters = self.config, self.config.filters
        outermost, innermost = level == 0, level == config.levels - 1
        ci = config.in_channels if outermost else filters[level - 1]
        parts = [("conv", nn.Conv2d(ci, filters[level], 4, 2, 1, bias=False))]
        if not (outermost or innermost):
            parts.append(("norm", nn.BatchNorm2d(filters[level])))
        if config.order == "dpu":  # behind the innermost comes the decoder, which activates by ReLU
            parts.append(("act", nn.ReLU() if innermost else nn.LeakyReLU(config.negative_slope)))
        elif not outermost:
            parts.insert(0, ("act", nn.LeakyReLU(config.negative_slope)))
        return nn.Sequential(OrderedDict(parts))

    def _up(self, level: int) -> nn.Sequential:
        config, filters = self.config, self.config.filters
        innermost = level == config.levels - 1
        ci, co = filters[level] * (1 if innermost else 2), filters[level - 1]
        parts = [("conv", nn.ConvTranspose2d(ci, co, 4, 2, 1, bias=False)), ("norm", nn.BatchNorm2d(co))]
        parts.insert(0 if config.order == "pix2pix" else 2, ("act", nn.ReLU()))
        if config.dropout and level >= 4 and not innermost:
            parts.append(("dropout", nn.Dropout(config.dropout)))
        return nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Translate a batch.

        Args:
            x: (N, in_channels, H, W) float32; H and W multiples of ``2**levels``. For matting the mapped image
                divided by q_in, thus in [-1, 1].

        Returns:
            (N, out_channels, H, W) float32 in [-1, 1].

        Raises:
            I2IError: If the shape does not fit.
        """
        config = self.config
        check_input(x, channels=config.in_channels, multiple=2**config.levels, model="Generator")
        skips = []
        for down in self.encoder:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up in self.decoder:
            x = torch.cat([skips.pop(), up(x)], 1)
        return self.head(x)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """The size of a :class:`Discriminator`."""

    in_channels: int = 6  # condition and image side by side
    width: int = 64  # filters of the first convolution
    layers: int = 3  # convolutions with stride 2; 3 see 70x70 pixels

    def __post_init__(self):
        sizes = {field.name: (getattr(self, field.name), 1) for field in dataclasses.fields(self)}
        check_at_least("DiscriminatorConfig", sizes)


class Discriminator(nn.Module):
    """The PatchGAN: judges every 70x70 window of an image by itself (with three layers).

    Args:
        config: Sizes; the default is pix2pix's for RGB to RGB.
        **fields: Single fields of :class:`DiscriminatorConfig` to set.

    Example:
        >>> Discriminator()(torch.zeros(1, 6, 256, 256)).shape
        torch.Size([1, 1, 30, 30])
    """

    def __init__(self, config: DiscriminatorConfig | None = None, **fields):
        super().__init__()
        self.config = config = configure(DiscriminatorConfig, config, fields)
        filters = [config.in_channels] + [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        parts = []
        for i, (ci, co) in enumerate(itertools.pairwise(filters)):
            stride = 2 if i < config.layers else 1
            parts += [nn.Conv2d(ci, co, 4, stride, 1, bias=i == 0)]
            parts += [nn.BatchNorm2d(co)] if i else []
            parts += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Conv2d(filters[-1], 1, 4, 1, 1))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Judge a batch.

        Args:
            x: (N, in_channels, H, W) float32 in [-1, 1]: condition and image concatenated; each side 24 or more.

        Returns:
            (N, 1, h, w) logits, one a window, no sigmoid: above 0 says real.

        Raises:
            I2IError: If the number of channels does not fit.
        """
        check_input(x, channels=self.config.in_channels, multiple=1, model="Discriminator")
        return self.layers(x)


def initialise(module: nn.Module) -> None:
    """Draw a module's weights as pix2pix does: normal, deviation 0.02, around 0 (1 for BatchNorm); biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
