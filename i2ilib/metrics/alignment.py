"""Is a pair of images or clips aligned? A shift, a crop or a lost frame spoils every score and looks like bad work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from ._pair import as_batch

_TOLD = 0.5  # of the squared error must go away, or nothing is said: a bad picture is not a misaligned one
_LEAST = 0.2  # pixels
_WINDOW = 512  # pixels: a shift shows in a part of a picture
_THUMBNAIL = 16


def found_shift(pred: torch.Tensor, target: torch.Tensor) -> tuple[float, float] | None:
    """By how many pixels the first is shifted against the second; None where no shift explains their difference.

    A shift counts if undoing it takes away at least half of the squared error. It is looked for in the middle of the
    picture, in tenths of a pixel, by the phase of the Fourier transforms.

    Args:
        pred: (N, C, H, W), (C, H, W) or (H, W), any range; of a batch the first image is taken.
        target: The same shape.

    Returns:
        (down, right), or None.

    Source:
        Guizar-Sicairos et al., Efficient subpixel image registration algorithms, 2008, doi:10.1364/OL.33.000156,
        as scikit-image has it.

    Example:
        >>> picture = torch.rand(64, 64)
        >>> found_shift(picture.roll((2, -3), (0, 1)), picture)
        (2.0, -3.0)
    """
    from skimage.registration import phase_cross_correlation

    moved, still = (_grey(image) for image in (pred, target))
    if min(moved.shape) < 8 or min(moved.std(), still.std()) < 1e-6:
        return None
    back, _, _ = phase_cross_correlation(still, moved, upsample_factor=10)
    if max(map(abs, back)) < _LEAST or max(abs(b) / side for b, side in zip(back, moved.shape, strict=True)) > 0.25:
        return None
    margin = math.ceil(max(map(abs, back))) + 2
    inner = (slice(margin, -margin),) * 2
    if min(moved[inner].shape, default=0) < 4:
        return None
    undone = ndimage.shift(moved, back, order=3, mode="nearest")
    before, after = (np.square(image[inner] - still[inner]).mean() for image in (moved, undone))
    return tuple(float(-b) for b in back) if after < _TOLD * before else None


def found_delay(pred: Sequence[torch.Tensor], target: Sequence[torch.Tensor], *, reach: int = 5) -> int:
    """By how many frames the first clip comes later than the second; 0 where no delay explains their difference.

    Args:
        pred: Frames in order, each (C, H, W) or (1, C, H, W); a few dozen are enough.
        target: As many frames.
        reach: Largest delay looked for, in either direction.

    Example:
        >>> clip = list(torch.rand(12, 3, 16, 16))
        >>> found_delay(clip[:10], clip[2:])
        2
    """
    reach = min(reach, (len(pred) - 1) // 2)
    if reach < 1:
        return 0
    a, b = (np.stack([_thumbnail(frame) for frame in clip]) for clip in (pred, target))
    middle = np.arange(reach, len(a) - reach)  # has a partner at every delay
    errors = {d: float(np.square(a[middle] - b[middle - d]).mean()) for d in range(-reach, reach + 1)}
    best = min(errors, key=lambda delay: (errors[delay], abs(delay)))
    return best if errors[best] < _TOLD * errors[0] else 0


def found_crop(pred: torch.Tensor, target: torch.Tensor) -> tuple[int, int] | None:
    """Where a smaller image lies in a larger one, if it is cut out of it.

    Args:
        pred: (C, H, W) or (1, C, H, W); either may be the smaller one, in both sides.
        target: Of another size.

    Returns:
        (down, right) of its first pixel in the larger image, or None.

    Example:
        >>> picture = torch.rand(3, 64, 64)
        >>> found_crop(picture[:, 5:40, 7:60], picture)
        (5, 7)
    """
    from skimage.feature import match_template

    small, large = sorted((_grey(image, whole=True) for image in (pred, target)), key=lambda image: image.size)
    if any(a > b for a, b in zip(small.shape, large.shape, strict=True)) or small.std() < 1e-6:
        return None
    match = match_template(large, small)
    place = np.unravel_index(np.argmax(match), match.shape)
    return tuple(int(at) for at in place) if match[place] > 0.95 else None


def _grey(image: torch.Tensor, *, whole: bool = False) -> np.ndarray:
    """The first image's mean over channels, its middle, as float64."""
    grey = as_batch(image)[0].double().mean(0).cpu().numpy()
    if whole:
        return grey
    top, left = (max(0, (side - _WINDOW) // 2) for side in grey.shape)
    return grey[top : top + _WINDOW, left : left + _WINDOW]


def _thumbnail(frame: torch.Tensor) -> np.ndarray:
    grey = as_batch(frame)[:1].float().mean(1, keepdim=True)
    return torch.nn.functional.adaptive_avg_pool2d(grey, _THUMBNAIL)[0, 0].cpu().numpy()
