"""Frames to patches and back: the network sees 256 x 256, the compositor sees 4K.

The usual road is :func:`fit`, :func:`iter_batches`, the network, :func:`merge`, :func:`unfit`. Memory stays bounded by
the frame and one batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from numbers import Integral

import torch
from torch.nn import functional as F

from .errors import I2IError

PATCH = 256  # pix2pix; section 3.3.1 of the matting paper


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the patches of a frame lie, row by row.

    Where the stride does not divide the rest, the last patch is aligned with the edge and overlaps more.

    Raises:
        I2IError: If a size is no whole number from 1, the frame is smaller than a patch, or the stride larger.

    Example:
        >>> Grid(300, 256, patch=256, stride=256).positions
        [(0, 0), (44, 0)]
        >>> len(Grid(2048, 3840))
        120
    """

    height: int  # of the frame, pixels
    width: int
    patch: int = PATCH  # side of a patch, pixels
    stride: int = PATCH  # step between patches, pixels; 64 for training in the paper

    def __post_init__(self) -> None:
        _check_whole(height=self.height, width=self.width, patch=self.patch, stride=self.stride)
        if self.stride > self.patch:
            raise I2IError(
                "stride",
                expected=f"1 to the patch size {self.patch}",
                got=self.stride,
                remedy="A larger stride leaves pixels without a patch.",
            )
        if min(self.height, self.width) < self.patch:
            raise I2IError(
                "frame",
                expected=f"at least {self.patch} x {self.patch} pixels",
                got=f"{self.height} x {self.width}",
                remedy="Scale it with patches.fit, or choose a smaller patch.",
            )

    @functools.cached_property
    def tops(self) -> list[int]:
        """First row of each row of patches."""
        return starts(self.height, self.patch, self.stride)

    @functools.cached_property
    def lefts(self) -> list[int]:
        """First column of each column of patches."""
        return starts(self.width, self.patch, self.stride)

    @property
    def columns(self) -> int:
        """Patches in a row."""
        return len(self.lefts)

    @property
    def positions(self) -> list[tuple[int, int]]:
        """(top, left) of every patch, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)


def starts(size: int, patch: int, stride: int) -> list[int]:
    """Where patches begin along one side; the last one is aligned with the edge.

    Example:
        >>> starts(300, 256, 64)
        [0, 44]
    """
    found = list(range(0, size - patch + 1, stride))
    return found if found[-1] == size - patch else [*found, size - patch]


def nearest_multiple(height: int, width: int, *, patch: int = PATCH) -> tuple[int, int]:
    """The nearest integer multiple of ``patch`` in both directions, at least one patch; halves go up.

    Raises:
        I2IError: If a size is no whole number from 1.

    Example:
        >>> nearest_multiple(2160, 3840), nearest_multiple(1080, 1920), nearest_multiple(90, 160)
        ((2048, 3840), (1024, 2048), (256, 256))
    """
    _check_whole(height=height, width=width, patch=patch)
    return tuple(max(1, math.floor(size / patch + 0.5)) * patch for size in (height, width))


def fit(image: torch.Tensor, *, patch: int = PATCH) -> torch.Tensor:
    """Scale an image to the nearest multiple of ``patch`` in both directions, as section 3.3.1 of the paper does.

    Bicubic with antialiasing, since the factor is near one and bilinear would soften the frame; bicubic overshoots at
    edges, so the result is limited to each channel's own range. A matte in [0, 1] stays there, and HDR stays HDR.
    Types shorter than float32 are computed in float32.

    Args:
        image: (N, C, H, W), floating point, any range.
        patch: Side of a patch, pixels.

    Returns:
        (N, C, H', W'), same dtype; ``image`` itself where there is nothing to scale.

    Raises:
        I2IError: If ``image`` has another shape, is empty or not floating point, or ``patch`` no whole number from 1.
    """
    _check_image(image)
    return unfit(image, *nearest_multiple(*image.shape[-2:], patch=patch))


def unfit(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scale a fitted image back to ``height`` x ``width``; the same filter and limits as :func:`fit`.

    Args:
        image: (N, C, H', W'), floating point, any range.
        height: Rows wanted.
        width: Columns wanted.

    Returns:
        (N, C, height, width), same dtype; ``image`` itself where there is nothing to scale.

    Raises:
        I2IError: If ``image`` has another shape, is empty or not floating point, or a size is no whole number from 1.
    """
    _check_image(image)
    _check_whole(height=height, width=width)
    if image.shape[-2:] == (height, width):
        return image
    wide = image.to(_accumulator(image))  # PyTorch has no such filter in half precision on CPUs
    scaled = F.interpolate(wide, (height, width), mode="bicubic", antialias=True, align_corners=False)
    limited = torch.clamp(scaled, wide.amin((-2, -1), keepdim=True), wide.amax((-2, -1), keepdim=True))
    return limited.to(image.dtype)


def split(image: torch.Tensor, *, patch: int = PATCH, stride: int = PATCH) -> torch.Tensor:
    """All patches of an image at once; :func:`iter_batches` needs less memory.

    Args:
        image: (C, H, W) or (1, C, H, W), floating point, any range.
        patch: Side of a patch, pixels.
        stride: Step between patches, pixels, 1 to ``patch``.

    Returns:
        (N, C, patch, patch), same dtype, a copy; order of :class:`Grid`.

    Raises:
        I2IError: If ``image`` has another shape, is empty, not floating point or smaller than a patch, or a size is
            out of range.
    """
    frame = _frame(image)
    grid = Grid(*frame.shape[-2:], patch=patch, stride=stride)
    return _cut(frame, grid, grid.positions)


def iter_batches(
    image: torch.Tensor, *, batch: int, patch: int = PATCH, stride: int = PATCH
) -> Iterator[tuple[list[tuple[int, int]], torch.Tensor]]:
    """The patches of an image, ``batch`` at a time.

    Args:
        image: (C, H, W) or (1, C, H, W), floating point, any range.
        batch: Patches in a batch, at least 1; the last one may be smaller.
        patch: Side of a patch, pixels.
        stride: Step between patches, pixels, 1 to ``patch``.

    Yields:
        Their (top, left) positions and (N, C, patch, patch) copies, in the order of :class:`Grid`.

    Raises:
        I2IError: As :func:`split`, or if ``batch`` is below 1; before the first batch.
    """
    frame = _frame(image)
    grid = Grid(*frame.shape[-2:], patch=patch, stride=stride)
    _check_whole(batch=batch)
    positions = grid.positions
    groups = (positions[i : i + batch] for i in range(0, len(positions), batch))
    return ((group, _cut(frame, grid, group)) for group in groups)


def merge(
    patches: torch.Tensor | Iterable[torch.Tensor], *, height: int, width: int, stride: int = PATCH, feather: int = 0
) -> torch.Tensor:
    """Put patches back into a frame; where they overlap, average them.

    Each pixel is a weighted mean. The weights are all equal, or fall off towards inner patch borders along a raised
    cosine that is ``feather`` pixels wide, which hides seams; borders on the frame's edge keep full weight.
    For ``stride`` = patch this undoes :func:`split` exactly; with overlap to rounding. Types shorter than float32 are
    averaged in float32.

    Args:
        patches: (N, C, patch, patch), floating point, in the order of :class:`Grid`; or an iterable of such batches,
            which is consumed one by one, so that one frame and one row of patches are all that is held.
        height: Rows of the frame.
        width: Columns of the frame.
        stride: The step used to split.
        feather: Width of the fall-off, pixels; 0 to ``patch - stride``.

    Returns:
        (1, C, height, width), dtype and device of the patches.

    Raises:
        I2IError: If a batch is not (N, C, patch, patch) or unlike the first, there are too few or too many patches, a
            size is no whole number from 1, the stride exceeds the patch, or ``feather`` exceeds the overlap.
    """
    if not isinstance(patches, Iterable):
        raise _refusal("patches", patches, "tensors", "")
    batches = iter([patches] if isinstance(patches, torch.Tensor) else patches)
    first = next(batches, None)
    if first is None:
        raise I2IError("patches", expected="at least one batch", got="none")
    _check_patches(first)
    size = first.shape[-1]
    grid = Grid(height, width, patch=size, stride=stride)
    _check_whole(least=0, feather=feather)
    if feather > size - stride:
        raise I2IError(
            "feather",
            expected=f"0 to the overlap of {size - stride} pixels",
            got=feather,
            remedy="Choose a smaller stride.",
        )
    frame = first.new_zeros((first.shape[1], height, width), dtype=_accumulator(first))
    row = frame.new_zeros((first.shape[1], size, width))
    # the weights of a grid separate into rows and columns; each sums to one over the patches that cover a pixel
    down, across = (_weights(*side, size, feather, frame) for side in ((height, grid.tops), (width, grid.lefts)))
    count = 0
    for batch in _chain(first, batches):
        _check_patches(batch, like=first)
        for patch in batch.to(frame.dtype):
            if count < len(grid):
                i, j = divmod(count, len(grid.lefts))
                left = grid.lefts[j]
                row[..., left : left + size].addcmul_(patch, across[j])
                if j == len(grid.lefts) - 1:
                    frame[:, grid.tops[i] : grid.tops[i] + size].addcmul_(row, down[i][:, None])
                    row.zero_()
            count += 1
    if count != len(grid):
        raise I2IError(
            "patches",
            expected=f"{len(grid)} for {height} x {width} pixels, stride {stride}",
            got=count,
            remedy="Merge with the size and stride that were used to split.",
        )
    return frame[None].to(first.dtype)


def _accumulator(tensor: torch.Tensor) -> torch.dtype:
    """The type to compute in: the tensor's own, or float32 where that is longer."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _chain(first: torch.Tensor, rest: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield first
    yield from rest


def _weights(length: int, starts: list[int], patch: int, feather: int, like: torch.Tensor) -> list[torch.Tensor]:
    """One window a patch along one axis, (patch,), normalised so that every pixel gets weights that sum to one."""
    ramp = torch.sin((torch.arange(feather, dtype=torch.float64) + 0.5) / max(feather, 1) * math.pi / 2) ** 2
    windows, total = [], torch.zeros(length, dtype=torch.float64)
    for start in starts:
        window = torch.ones(patch, dtype=torch.float64)
        if start > 0:
            window[:feather] *= ramp
        if start + patch < length:
            window[patch - feather :] *= ramp.flip(0)
        windows.append(window)
        total[start : start + patch] += window
    return [(w / total[s : s + patch]).to(like) for s, w in zip(starts, windows, strict=True)]


def _cut(frame: torch.Tensor, grid: Grid, positions: list[tuple[int, int]]) -> torch.Tensor:
    return torch.stack([frame[:, top : top + grid.patch, left : left + grid.patch] for top, left in positions])


def _frame(image: torch.Tensor) -> torch.Tensor:
    if _is_image(image) and image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if not _is_image(image) or image.ndim != 3:
        raise _refusal("image", image, "a floating-point (C, H, W) or (1, C, H, W)", "Pass one frame at a time.")
    return image


def _check_image(image: torch.Tensor) -> None:
    if not _is_image(image) or image.ndim != 4:
        remedy = "Add the batch axis with image[None]."
        raise _refusal("image", image, "a floating-point (N, C, H, W)", remedy)


def _check_patches(batch: torch.Tensor, like: torch.Tensor | None = None) -> None:
    square = _is_image(batch) and batch.ndim == 4 and batch.shape[-1] == batch.shape[-2]
    kind = None if like is None else (like.shape[1:], like.dtype, like.device)
    if not square or kind not in (None, (batch.shape[1:], batch.dtype, batch.device)):
        alike = "" if like is None else f", all {tuple(like.shape[1:])} {like.dtype} on {like.device}"
        remedy = "Give merge what the network returned for batches from split."
        raise _refusal("patches", batch, "floating-point (N, C, patch, patch)" + alike, remedy)


def _is_image(given: object) -> bool:
    return isinstance(given, torch.Tensor) and given.is_floating_point() and given.numel() > 0


def _refusal(what: str, given: object, expected: str, remedy: str) -> I2IError:
    """The error for a tensor that has not the shape or type expected."""
    if not isinstance(given, torch.Tensor):
        got, remedy = type(given).__name__, "Make it a tensor with torch.as_tensor."
    else:
        got = f"{tuple(given.shape)} {given.dtype} on {given.device}"
        if not given.numel():
            remedy = "There must be at least one pixel."
        elif not given.is_floating_point():
            remedy = "Convert it first: codes of 8 bits with image.float() / 255."
    return I2IError(what, expected=expected, got=got, remedy=remedy)


def _check_whole(least: int = 1, **values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise I2IError(name, expected=f"a whole number from {least}", got=repr(value))
