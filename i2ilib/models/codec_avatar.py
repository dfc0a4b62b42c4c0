"""The codec avatar decoder: from a face's code and a view direction to its mesh, texture and warp field.

Source: Zhang et al., F-CAD: A Framework to Explore Hardware Accelerators for Codec Avatar Decoding, DAC 2021, section
II and Table I. The paper prints branches, shapes and totals; the channels are reconstructed from its totals, its
efficiencies (Eq. 3) and its accelerators' resources, and give every printed figure of operations.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import I2IError
from .layers import configure

GRID = 8  # height and width of the code
CODE = 4  # its channels: 4 × 8 × 8 = 256 numbers
VIEW = 3
SLOPE = 26 / 256  # of LeakyReLU, the DPU's only one: the network is trained with the slope that it will run with
GEOMETRY, SHARED, TEXTURE = (128, 64, 64, 32, 32), (128, 64, 64, 64, 64), (16, 16)  # channels of the blocks


class Conv(NamedTuple):
    """A convolution of the decoder; one that is part of a block is followed by LeakyReLU."""

    ci: int  # channels in
    co: int  # channels out
    size: int  # height and width where it computes
    kernel: int
    block: bool  # part of a block; otherwise the branch ends here
    doubles: bool  # followed by doubling


@dataclasses.dataclass(frozen=True)
class CodecAvatarConfig:
    """The size of a :class:`CodecAvatarDecoder`; the defaults are the paper's decoder."""

    size: int = 1024  # height and width of the texture, a power of two from 32; mesh and warp field have a quarter
    width: float = 1.0  # channels between input and output, as a multiple of the paper's
    padded: bool = True  # compute a fourth channel of geometry, as hardware that pairs channels does; it is left out
    # convolutions with one bias a channel; all others are untied, with one bias an element of their output
    tied: tuple[str, ...] = ("geometry.conv6", "texture.conv6", "texture.conv8", "warp.conv6")

    def __post_init__(self):
        object.__setattr__(self, "tied", tuple(self.tied))  # JSON knows lists only
        owner = "CodecAvatarConfig"
        sizes = [GRID << n for n in range(2, 8)]
        if self.size not in sizes:
            raise I2IError(f"{owner}.size", expected="one of " + ", ".join(map(str, sizes)), got=self.size)
        if not 0 < self.width < math.inf:
            raise I2IError(f"{owner}.width", expected="a positive number", got=self.width)
        names = [f"{part}.{name}" for part, convs in self.layout.items() for name in convs]
        if strange := sorted(set(self.tied) - set(names)):
            raise I2IError(f"{owner}.tied", expected="names from " + ", ".join(names), got=", ".join(strange))

    @property
    def layout(self) -> dict[str, dict[str, Conv]]:
        """The convolutions by part and name. Below the full size the first blocks do not double."""
        doublings = int(math.log2(self.size // GRID))  # on the way to the texture; two are in its own part
        seen = self._channels(SHARED[-1])
        return {
            "geometry": self._convs(1, CODE, GEOMETRY, 3 + self.padded, 5, doublings - 2),
            "shared": self._convs(1, CODE + VIEW, SHARED, None, 5, doublings - 2),
            "texture": self._convs(6, seen, TEXTURE, 3, 1, doublings),
            "warp": self._convs(6, seen, (), 2, 5, doublings - 2),
        }

    def _convs(
        self, first: int, ci: int, blocks: tuple[int, ...], co: int | None, kernel: int, doublings: int
    ) -> dict[str, Conv]:
        convs = []
        for i, wide in enumerate(map(self._channels, blocks), doublings - len(blocks)):
            convs.append(Conv(ci, wide, GRID << max(0, i), 5, block=True, doubles=i >= 0))
            ci = wide
        if co is not None:
            convs.append(Conv(ci, co, GRID << doublings, kernel, block=False, doubles=False))
        return {f"conv{i}": conv for i, conv in enumerate(convs, first)}

    def _channels(self, count: int) -> int:
        return max(1, round(count * self.width))


class Avatar(NamedTuple):
    """What is drawn of a face, in the plane of its texture (rows and columns are V and U)."""

    geometry: Tensor  # (N, 3, s/4, s/4): position of the surface: x right, y up, z to the viewer; half a head's height
    texture: Tensor  # (N, 3, s, s): sRGB, nominal range [0, 1]
    warp: Tensor  # (N, 2, s/4, s/4): where the texture is read instead: along U, along V, in 1/64 of its edge


class UntiedConv2d(nn.Module):
    """A convolution with "same" padding, stride 1, whose output elements have a bias each.

    An ordinary convolution has a bias a channel: the untied one can say where on the face it is.

    Args:
        ci: Channels in.
        co: Channels out.
        kernel: Height and width, odd.
        size: Height and width of the maps.

    Example:
        >>> UntiedConv2d(4, 8, 5, size=16)(torch.zeros(2, 4, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(self, ci: int, co: int, kernel: int, *, size: int):
        super().__init__()
        self.conv = nn.Conv2d(ci, co, kernel, padding=kernel // 2, bias=False)
        self.bias = nn.Parameter(torch.zeros(co, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """(N, ci, size, size) to (N, co, size, size)."""
        return self.conv(x) + self.bias


class CodecAvatarDecoder(nn.Module):
    """Three branches: mesh from the face's code; texture and warp field from code and view, with five shared blocks.

    Table I: [4, 8, 8] → [CAU]×5 + C → [3, 256, 256]; [7, 8, 8] → [CAU]×7 + C → [3, 1024, 1024]; and from the fifth
    block of the second, C → [2, 256, 256]. LeakyReLU has the DPU's slope, so that quantisation, which knows only
    that one, leaves the function as it was trained; doubling repeats pixels.

    Args:
        config: Sizes; the default is the paper's decoder.
        **fields: Single fields of :class:`CodecAvatarConfig` to set.

    Raises:
        I2IError: If a field does not exist or has a value that makes no network.

    Example:
        >>> net = CodecAvatarDecoder(size=64, width=0.125)
        >>> avatar = net(torch.zeros(2, 256), torch.tensor([[0.0, 0.0, 1.0]] * 2))
        >>> [tuple(part.shape) for part in avatar]
        [(2, 3, 16, 16), (2, 3, 64, 64), (2, 2, 16, 16)]
    """

    def __init__(self, config: CodecAvatarConfig | None = None, **fields):
        super().__init__()
        self.config = config = configure(CodecAvatarConfig, config, fields)
        for part, convs in config.layout.items():
            blocks = ((name, self._block(conv, f"{part}.{name}" in config.tied)) for name, conv in convs.items())
            self.add_module(part, nn.Sequential(OrderedDict(blocks)))
        if config.padded:  # stays zero: no error is ever computed from it
            with torch.no_grad():
                head = self.geometry.conv6.conv
                getattr(head, "conv", head).weight[3:] = 0

    @staticmethod
    def _block(conv: Conv, tied: bool) -> nn.Sequential:
        if tied:
            layer = nn.Conv2d(conv.ci, conv.co, conv.kernel, padding=conv.kernel // 2)
            weight = layer.weight
            nn.init.zeros_(layer.bias)
        else:
            layer = UntiedConv2d(conv.ci, conv.co, conv.kernel, size=conv.size)
            weight = layer.conv.weight
        nn.init.kaiming_normal_(weight, SLOPE)  # keeps the variance
        if not conv.block:
            with torch.no_grad():
                weight.mul_(0.1)  # or the first steps would go into silencing the outputs, and take the blocks along
        parts = OrderedDict(conv=layer)
        if conv.block:
            parts["act"] = nn.LeakyReLU(SLOPE)
        if conv.doubles:
            parts["up"] = nn.Upsample(scale_factor=2.0, mode="nearest")
        return nn.Sequential(parts)

    def codes(self, latent: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """The maps that the branches start from.

        Args:
            latent: (N, 256) float32, the face's code.
            view: (N, 3) float32, unit vector from the head to the viewer: right, up, forward.

        Returns:
            (N, 4, 8, 8), the code reshaped, for branch 1; and (N, 7, 8, 8) with the view repeated, for 2 and 3.

        Raises:
            I2IError: If the shapes are others.
        """
        n = len(latent)
        want = (n, CODE * GRID**2), (n, VIEW)
        if not torch.compiler.is_compiling() and (tuple(latent.shape), tuple(view.shape)) != want:
            got = f"{tuple(latent.shape)} and {tuple(view.shape)}"
            raise I2IError("codes", expected=f"latent (N, {CODE * GRID**2}) and view (N, {VIEW})", got=got)
        code = latent.reshape(-1, CODE, GRID, GRID)
        return code, torch.cat([code, view[:, :, None, None].expand(-1, -1, GRID, GRID)], 1)

    def forward(self, latent: Tensor, view: Tensor) -> Avatar:
        """Decode.

        Args:
            latent: (N, 256) float32, the face's code.
            view: (N, 3) float32, unit vector from the head to the viewer: right, up, forward.

        Returns:
            Geometry (N, 3, s/4, s/4), texture (N, 3, s, s) and warp field (N, 2, s/4, s/4).

        Raises:
            I2IError: If the shapes do not fit.
        """
        code, seen = self.codes(latent, view)
        shared = self.shared(seen)
        return Avatar(self.geometry(code)[:, :3], self.texture(shared), self.warp(shared))

    def branch(self, number: int) -> nn.Sequential:
        """One branch by itself, one tensor in and one out, on this decoder's parameters.

        Args:
            number: 1 geometry, from (N, 4, 8, 8), with the padding channel if there is one; 2 texture and 3 warp
                field, from (N, 7, 8, 8), both with the shared part.

        Raises:
            I2IError: If there is no such branch.
        """
        parts = {1: ("geometry",), 2: ("shared", "texture"), 3: ("shared", "warp")}
        if number not in parts:
            raise I2IError("branch", expected="1, 2 or 3", got=number)
        chosen = OrderedDict((name, getattr(self, name)) for name in parts[number])
        return nn.Sequential(chosen).train(self.training)
