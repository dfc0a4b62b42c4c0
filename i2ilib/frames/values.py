"""What the numbers of a frame mean: sRGB codes of its colours, or coverage."""

from __future__ import annotations

import torch

from .. import colour
from ..errors import FrameError
from .picture import Frame

_LOSSLESS = (".png", ".exr", ".tif", ".tiff", ".bmp", ".gif")


def srgb_codes(frame: Frame) -> torch.Tensor:
    """Colours (1, 3, H, W) as sRGB codes in [0, 1]; brighter than white becomes white.

    Raises:
        FrameError: If a pixel is not finite.
    """
    rgb = _finite(frame.rgb, frame)
    return (colour.linear_to_srgb(rgb) if frame.colour == "linear" else rgb).clamp(0, 1)


def coverage(frame: Frame) -> torch.Tensor:
    """A grey picture, or the alpha channel of a cut-out, (1, 1, H, W) in [0, 1]: no colour, so no transfer function.

    Raises:
        FrameError: If a pixel is not finite, the picture has colours, or a grey picture and an alpha channel differ.
    """
    grey = _finite(frame.rgb, frame)
    lossy = not frame.source.lower().endswith(_LOSSLESS)  # a codec may leave a little colour
    coloured = bool((grey.amax(1) - grey.amin(1)).mean() > (0.05 if lossy else 0.01))
    if frame.alpha is not None and (coloured or not bool((frame.alpha == 1).all())):
        even = grey.amax() - grey.amin() <= 1e-3
        if not (coloured or even or torch.allclose(grey, frame.alpha.expand_as(grey), atol=1e-2)):
            raise FrameError(
                frame.source,
                expected="one matte",
                got="a grey picture and an alpha channel",
                remedy="Keep one of them.",
            )
        return _finite(frame.alpha, frame).clamp(0, 1)
    if coloured:
        raise FrameError(frame.source, expected="a grey picture as alpha", got="one with colours")
    return grey.median(1, keepdim=True).values.clamp(0, 1)


def _finite(pixels: torch.Tensor, frame: Frame) -> torch.Tensor:
    if not torch.isfinite(pixels).all():
        raise FrameError(frame.source, expected="finite pixels", got="NaN or infinity", remedy="Render it again.")
    return pixels
