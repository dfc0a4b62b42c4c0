"""BVI-DVC as SRUNet is trained on it: the frames of a clip, and the same frames small and compressed.

Layout::

    <root>/frames_HQ/<clip>/<clip>_001.png …           the clip as it is
    <root>/frames_QF<crf>/<clip>/<clip>_001.png …      scaled down, then coded with x265 at that CRF

Sources: Vaccaro et al., "Fast video visual quality and resolution improvement using SR-UNet", ACM MM 2021 (the layout,
96 x 96 crops, CRF 22 and 23, half size); Ma, Zhang and Bull, "BVI-DVC", IEEE TMM 2021 (the clips). Images are sRGB
codes in [0, 1].
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from .. import runtime
from ..errors import FrameError, I2IError
from ..frames import ffmpeg, read_image

PAGE = "https://fan-aaron-zhang.github.io/BVI-DVC/"


class Pair(NamedTuple):
    """Files of one frame."""

    low: Path  # small and compressed
    high: Path


def pairs(root: str | Path, crf: int = 23, *, clip: str | None = None) -> list[Pair]:
    """The frames of a data set, of one clip or of all, in order.

    Raises:
        I2IError: If a folder is missing or empty, or a frame lacks its counterpart.
    """
    root = Path(root)
    remedy = f"Get BVI-DVC from {PAGE} and run i2ilib.datasets.bvi_dvc.write_clip on its frames."
    names = {}
    for kind in ("frames_HQ", f"frames_QF{crf}"):
        folder = root / kind
        if not folder.is_dir():
            found = ", ".join(sorted(p.name for p in root.glob("frames_*"))) or "none"
            raise I2IError(str(folder), expected="a folder of clips", got=found, remedy=remedy)
        names[kind] = {str(p.relative_to(folder)) for p in folder.glob(f"{clip or '*'}/*.png")}
    high, low = names.values()
    if not high or high != low:
        odd = sorted(high ^ low)[:3]
        raise I2IError(
            str(root),
            expected=f"the same frames in frames_HQ and frames_QF{crf}" + (f" for clip {clip}" if clip else ""),
            got=f"{len(high)} and {len(low)}" + (f", {', '.join(odd)} in one only" if odd else ""),
            remedy=remedy,
        )
    return [Pair(root / f"frames_QF{crf}" / name, root / "frames_HQ" / name) for name in sorted(high)]


def read_pair(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Low (3, h, w) and high (3, s h, s w) of one frame, float32, sRGB codes in [0, 1]; s is a whole number.

    Raises:
        FrameError: If a file cannot be decoded, or the sizes are not a whole multiple of each other.
    """
    low, high = (read_image(path).rgb[0] for path in pair)
    scale = high.shape[1] // low.shape[1]
    if (low.shape[1] * scale, low.shape[2] * scale) != tuple(high.shape[1:]):
        raise FrameError(
            str(pair.low),
            expected=f"a size that divides {tuple(high.shape[1:])} (height, width)",
            got=tuple(low.shape[1:]),
            remedy="Write the clip again with bvi_dvc.write_clip.",
        )
    return low, high


def random_crop(
    low: torch.Tensor, high: torch.Tensor, *, size: int = 96, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random crop of ``low`` and the same part of the scene in ``high``.

    Args:
        low: (3, h, w).
        high: (3, s h, s w).
        size: Side of the crop in ``low``, pixels.
        generator: Of the position.

    Returns:
        (3, size, size) and (3, s size, s size).

    Raises:
        I2IError: If the frame is smaller than the crop.
    """
    _, h, w = low.shape
    if min(h, w) < size:
        raise I2IError("crop", expected=f"a frame of at least {size} x {size} pixels", got=f"{h} x {w}")
    scale = high.shape[1] // h
    y = int(torch.randint(h - size + 1, (), generator=generator))
    x = int(torch.randint(w - size + 1, (), generator=generator))
    part = high[:, y * scale : (y + size) * scale, x * scale : (x + size) * scale]
    return low[:, y : y + size, x : x + size], part


def write_clip(
    root: str | Path, name: str, frames: Iterable[torch.Tensor], *, crf: int = 23, scale: int = 2, fps: float = 24.0
) -> Path:
    """Write a clip in the layout: the frames, and the same scaled down and coded with x265.

    Args:
        root: Folder of the data set.
        name: Of the clip.
        frames: (3, H, W) each, sRGB codes in [0, 1]; H and W multiples of ``2 * scale``, as 4:2:0 needs.
        crf: Constant rate factor of x265; 22 and 23 in the paper.
        scale: How much smaller the coded frames are.
        fps: Frames per second, which x265 needs for its rate control.

    Returns:
        ``root``.

    Raises:
        I2IError: If there are no frames, they differ in size, or the size does not divide.
    """
    root, size, count = Path(root), None, 0
    high, low = root / "frames_HQ" / name, root / f"frames_QF{crf}" / name
    for folder in (high, low):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}_*.png"):
            old.unlink()
    for count, frame in enumerate(frames, 1):
        size = size or tuple(frame.shape)
        if tuple(frame.shape) != size or size[1] % (2 * scale) or size[2] % (2 * scale):
            raise I2IError(
                f"frame {count}",
                expected=f"(3, H, W) as the first, H and W multiples of {2 * scale}",
                got=tuple(frame.shape),
                remedy="Crop the frames.",
            )
        codes = frame.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with runtime.atomic_path(high / f"{name}_{count:03d}.png") as temporary:
            Image.fromarray(codes).save(temporary)
    if not count:
        raise I2IError("frames", expected="at least one frame", got="none")
    with tempfile.TemporaryDirectory() as folder:
        coded = f"{folder}/clip.mp4"
        small = f"{size[2] // scale}:{size[1] // scale}"
        scaled = f"scale={small}:flags=bicubic+accurate_rnd:out_color_matrix=bt709:out_range=tv"
        source = ["-framerate", str(fps), "-i", str(high / f"{name}_%03d.png")]
        x265 = ["-c:v", "libx265", "-crf", str(crf), "-pix_fmt", "yuv420p", "-x265-params", "log-level=none:pools=1"]
        back = [
            "-vf",
            "scale=in_color_matrix=bt709:in_range=tv:flags=accurate_rnd+full_chroma_int",
            "-pix_fmt",
            "rgb24",
            "-fps_mode",
            "passthrough",
        ]
        for arguments in (
            [*source, "-vf", scaled, *x265, "-colorspace", "bt709", "-color_range", "tv", coded],
            ["-i", coded, *back, str(low / f"{name}_%03d.png")],
        ):
            ffmpeg.run(["-y", *arguments], what=str(root / name), expected="ffmpeg to code the clip")
    return root
