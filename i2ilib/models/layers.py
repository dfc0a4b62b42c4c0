"""What the models share: configuration, checks on the input, the SRUNet block."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import I2IError

C = TypeVar("C")
E = TypeVar("E", bound="Enlarger")


def configure(kind: type[C], config: C | None, fields: dict[str, object]) -> C:
    """The configuration ``config`` (or the default of ``kind``) with single ``fields`` replaced.

    Raises:
        I2IError: If a field does not exist or has a value that ``kind`` refuses.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := [name for name in fields if name not in known]:
        raise I2IError(kind.__name__, expected="fields from " + ", ".join(known), got=", ".join(unknown))
    return dataclasses.replace(config or kind(), **fields)


def check_at_least(owner: str, lowest: dict[str, tuple[object, int]]) -> None:
    """Refuse configuration values that are no whole numbers or below their lowest sensible value.

    Args:
        owner: Name of the configuration, for the message.
        lowest: Field name to (value, lowest value).
    """
    for name, (value, least) in lowest.items():
        if not isinstance(value, int) or value < least:
            raise I2IError(f"{owner}.{name}", expected=f"a whole number, {least} or more", got=value)


def check_doubling(owner: str, kind: str) -> None:
    """Refuse an unknown way of doubling."""
    if kind not in DOUBLING:
        raise I2IError(f"{owner}.upsample", expected=" or ".join(map(repr, DOUBLING)), got=repr(kind))


def check_input(x: Tensor, *, channels: int, multiple: int, model: str) -> None:
    """Refuse a batch that the network cannot halve down to its bottom and double back.

    Silent while PyTorch traces, exports or compiles: there the shape may be a symbol.

    Raises:
        I2IError: If ``x`` is not (N, ``channels``, H, W) with H and W multiples of ``multiple``.
    """
    if isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    shape = tuple(x.shape)
    if len(shape) != 4 or shape[1] != channels or any(n < 1 or n % multiple for n in shape[2:]):
        raise I2IError(
            f"{model} input",
            expected=f"shape (N, {channels}, H, W) with H and W multiples of {multiple}",
            got=shape,
            remedy="Pad or crop the image, or split it into patches.",
        )


class Block(nn.Module):
    """SRUNet's building block: ``relu(conv3x3(x) + x + conv1x1(x))``; without the two sums where channels change.

    Args:
        ci: Channels in.
        co: Channels out.
        adapter: Own the 1x1 convolution. Without it the block is ``relu(conv3x3(x))``, the form that folding leaves.

    Source: Vaccaro et al., Fast video visual quality and resolution improvement using SR-UNet, ACM MM 2021.
    """

    def __init__(self, ci: int, co: int, *, adapter: bool = True):
        super().__init__()
        self.conv_adapter = nn.Conv2d(ci, co, 1) if adapter else None
        self.conv1 = nn.Conv2d(ci, co, 3, padding=1)
        self.relu = nn.ReLU()
        self.sums = adapter and ci == co  # the published files keep unused adapters where channels change

    def forward(self, x: Tensor) -> Tensor:
        """(N, ci, H, W) to (N, co, H, W)."""
        y = self.conv1(x)
        if self.sums:
            y = y + x + self.conv_adapter(x)
        return self.relu(y)

    @torch.no_grad()
    def folded(self) -> Block:
        """An equal block with one convolution: the identity and the adapter go into the centre tap."""
        conv, adapter = self.conv1, self.conv_adapter
        block = Block(conv.in_channels, conv.out_channels, adapter=False).to(conv.weight)
        block.conv1.load_state_dict(conv.state_dict())
        if self.sums:
            identity = torch.eye(conv.out_channels).to(conv.weight)
            block.conv1.weight[:, :, 1, 1] += adapter.weight[:, :, 0, 0] + identity
            block.conv1.bias += adapter.bias
        return block


def stage(ci: int, co: int, blocks: int, *, adapters: str) -> nn.Sequential:
    """``blocks`` blocks in a row, the first from ``ci`` to ``co`` channels.

    Args:
        ci: Channels in.
        co: Channels out.
        blocks: How many.
        adapters: Which blocks own the 1x1 convolution: "all", "used" (where it counts), or "none" (folded).
    """
    widths = [ci] + [co] * blocks
    return nn.Sequential(
        *(
            Block(a, b, adapter=adapters == "all" or (adapters == "used" and a == b))
            for a, b in itertools.pairwise(widths)
        )
    )


DOUBLING = ("bilinear", "nearest", "transposed")
"""How maps are doubled on the way up; "bilinear" is how the published weights were trained."""


def doubling(kind: str, channels: int) -> nn.Module:
    """A module that doubles height and width.

    "transposed" is a transposed convolution that begins as bilinear interpolation, whose weights (9, 3, 3 and 1
    sixteenths) an int8 holds exactly: it runs where only convolutions do. At the border it sees zeros, where
    interpolation repeats the edge.

    Args:
        kind: In :data:`DOUBLING`.
        channels: Of the map.
    """
    if kind != "transposed":
        options = {"align_corners": False} if kind == "bilinear" else {}
        return nn.Upsample(scale_factor=2, mode=kind, **options)
    module = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        module.weight.copy_(torch.eye(channels)[:, :, None, None] * torch.outer(taps, taps))
    return module


class Enlarger(nn.Module):
    """The frame that SRUNet and UNet share: a device part, then a host part.

    Device: everything up to the PixelShuffle (:meth:`core`). Host: bicubic enlargement, sum and clamp
    (:meth:`host`), which no integer engine runs. With ``config.residual`` false the forward is the core alone,
    the part to quantise and export; both share their ``state_dict``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge.

        Args:
            x: (N, 3, H, W) float32, gamma-coded RGB in [-1, 1]; H and W multiples of 8.

        Returns:
            (N, 3, s*H, s*W) float32 in [-1, 1] (times ``downsample`` where set); with ``residual`` false the
            detail to be added, unclamped.

        Raises:
            I2IError: If the shape does not fit.
        """
        check_input(x, channels=3, multiple=8, model=type(self).__name__)
        detail = self.core(x)
        return self.host(detail, x) if self.config.residual else detail

    def core(self, x: Tensor) -> Tensor:
        """The detail (N, 3, s*H, s*W) that the network adds: the accelerator's part."""
        raise NotImplementedError

    def host(self, detail: Tensor, x: Tensor) -> Tensor:
        """Add the detail to the bicubic enlargement of ``x`` and clamp to [-1, 1]: the host's part."""
        size = {"scale_factor": float(self.config.scale), "mode": "bicubic", "align_corners": False}
        return torch.clamp(detail + nn.functional.interpolate(x, **size), -1.0, 1.0)


def with_doubling(model: E, kind: str) -> E:
    """The network with another way of doubling its maps, all weights kept; ``model`` stays as it is.

    Args:
        model: An SRUNet or UNet.
        kind: In :data:`DOUBLING`. A transposed convolution begins as bilinear interpolation, whatever was before.

    Raises:
        I2IError: If ``kind`` is none of them.

    Example:
        >>> with_doubling(net, "nearest").config.upsample  # doctest: +SKIP
        'nearest'
    """
    like = next(model.parameters())
    config = dataclasses.replace(model.config, upsample=kind)
    other = type(model)(config).train(model.training).to(like)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("upsample")}
    other.load_state_dict(other.state_dict() | state)
    return other


@torch.no_grad()
def enlarge(model: Enlarger, frames: Tensor) -> Tensor:
    """Whole frames of any size through a network, one by one; sides are padded by replication and cropped again.

    Args:
        model: In evaluation mode, with ``residual`` on.
        frames: (N, 3, h, w) sRGB codes in [0, 1].

    Returns:
        (N, 3, s h, s w) sRGB codes in [0, 1], on the device of ``frames``; s is ``scale``, times ``downsample`` where
        set, and sizes are rounded down.

    Example:
        >>> enlarge(model, torch.rand(2, 3, 90, 161)).shape  # doctest: +SKIP
        torch.Size([2, 3, 180, 322])
    """
    height, width = frames.shape[-2:]
    factor = model.config.scale * (getattr(model.config, "downsample", None) or 1)
    like = next(model.parameters())
    padded = nn.functional.pad(frames * 2 - 1, (0, -width % 8, 0, -height % 8), mode="replicate")
    made = torch.cat([model(frame[None].to(like)).to(frames) for frame in padded])
    return ((made + 1) / 2)[..., : int(height * factor), : int(width * factor)]
