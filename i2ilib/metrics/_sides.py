"""The two sides of a comparison of clips, as they are stored: planes that ffmpeg reads, or frames that we give it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import FrameError, I2IError
from ..frames import Clip, Frame, ffmpeg, open_clip, srgb_codes
from ._pair import as_batch, check_image

_RAW = re.compile(r"yuv4(?P<chroma>20|22|44)p(?:(?P<bits>10|12|14|16)le)?")
_ON_CODES = 1e-3  # of an 8-bit code: float32 keeps k/255 closer than this
_Named = tuple[str, torch.Tensor]  # what to call a frame in an error, and (3, H, W) sRGB codes in [0, 1]


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two clips.

    Attributes:
        name: What to call it in an error: the argument, or a file.
        kind: "raw", "video", "pictures" or "frames".
        size: Width and height, pixels.
        count: Frames; None where only the end will tell.
        bits: Of a channel as stored.
        stored: In words, for the record.
        arguments: With which ffmpeg reads it as Y'CbCr; empty where we give its frames.
        stream: Number of the stream to read.
        pixel_format: As stored; of Y'CbCr alone.
        matrix: As the file states it: of Y'CbCr alone.
        full: Codes of the full range.
        frames: Gives its frames from the start, where ffmpeg does not read it.
    """

    name: str
    kind: str
    size: tuple[int, int]
    count: int | None
    bits: int
    stored: str
    arguments: tuple[str, ...] = ()
    stream: int = 0
    pixel_format: str = ""
    matrix: str | None = None
    full: bool = False
    frames: Callable[[], Iterator[_Named]] | None = None


def side(
    name: str, source: object, size: tuple[int, int] | None, pixel_format: str | None, bits: int | None = None
) -> Side:
    """One side from whatever stands for it.

    Args:
        name: "dist" or "ref".
        source: A path, a :class:`~i2ilib.frames.Clip`, a tensor or an iterable of tensors.
        size: Width and height of a raw file.
        pixel_format: Of a raw file.
        bits: With which it will be scored, if that is settled.

    Raises:
        I2IError: If it is none of these, or holds no frame; FrameError, if it names the file.
    """
    if isinstance(source, (str, os.PathLike)):
        if Path(source).suffix.lower() == ".yuv":
            return _raw(Path(source), size, pixel_format)
        source = open_clip(source)
    if isinstance(source, Clip):
        return _clip(source, bits)
    if isinstance(source, torch.Tensor):
        source = as_batch(source)
    if isinstance(source, (torch.Tensor, Sequence)):
        return _in_memory(name, source)
    if isinstance(source, Iterable):
        return _arriving(name, source)
    want = "a path, a clip, a tensor (N, 3, H, W), or an iterable of tensors (3, H, W)"
    raise I2IError(name, expected=want, got=type(source).__name__)


def _raw(path: Path, size: tuple[int, int] | None, pixel_format: str | None) -> Side:
    known = _RAW.fullmatch(pixel_format or "")
    if size is None or not known:
        raise I2IError(
            str(path),
            expected="size=(width, height) and pixel_format such as yuv420p or yuv420p10le, since it has no header",
            got=f"size={size}, pixel_format={pixel_format!r}",
        )
    width, height = size
    wide, high = {"20": (2, 2), "22": (2, 1), "44": (1, 1)}[known["chroma"]]
    bits = int(known["bits"] or 8)
    frame = (width * height + 2 * -(-width // wide) * -(-height // high)) * (1 if bits == 8 else 2)
    try:
        total = path.stat().st_size if path.is_file() else None
    except OSError:
        total = None
    if total is None:
        raise FrameError(str(path), expected="a raw file", got="no file that can be read")
    if not total or total % frame:
        raise FrameError(
            str(path),
            expected=f"a whole number of frames of {frame} bytes, {width}×{height} {pixel_format}",
            got=f"{total} bytes",
            remedy="Check size and pixel_format." if total else None,
        )
    how = ("-f", "rawvideo", "-pix_fmt", pixel_format, "-video_size", f"{width}x{height}", "-framerate", "25")
    return Side(
        str(path),
        "raw",
        (width, height),
        total // frame,
        bits,
        f"{pixel_format}, matrix not stated, taken as of limited range",
        (*how, "-i", f"file:{path.absolute()}"),
        pixel_format=pixel_format,
    )


def _clip(clip: Clip, bits: int | None) -> Side:
    name, count = str(clip.path), len(clip)
    if clip.index is None:
        _, first = next(clip.read({clip.names[0]}))
        if isinstance(first, FrameError):
            raise first
        height, width = first.rgb.shape[-2:]
        found, stored = _bits(first), first.depth
        if first.colour == "linear":
            stored += ", light made sRGB codes and cut off above white"
        most = 8 if bits is None and found <= 8 else 64
        return Side(name, "pictures", (width, height), count, found, stored, frames=lambda: _read(clip, most))
    height, width = clip.index.size
    how = ffmpeg.stored(clip.path)
    if not how.yuv:
        stored = f"{how.pixel_format}, read as RGB"
        return Side(name, "video", (width, height), count, how.bits, stored, frames=lambda: _read(clip, 64))
    return Side(
        name,
        "video",
        (width, height),
        count,
        how.bits,
        f"{how.pixel_format}, matrix {how.matrix or 'not stated'}, {'full' if how.full else 'limited'} range",
        ("-i", f"file:{clip.path.absolute()}"),
        how.stream,
        how.pixel_format,
        how.matrix,
        how.full,
    )


def _read(clip: Clip, most: int) -> Iterator[_Named]:
    for _, frame in clip.read():
        if isinstance(frame, FrameError):
            raise frame
        if _bits(frame) > most:
            remedy = "Give bits=10, or bits=8 to round it."
            raise FrameError(frame.source, expected="8 bits, as the first picture", got=frame.depth, remedy=remedy)
        yield frame.source, srgb_codes(frame)[0]


def _bits(frame: Frame) -> int:
    return int(frame.depth.split()[0])


def _in_memory(name: str, frames: Sequence[torch.Tensor] | torch.Tensor) -> Side:
    if not len(frames):
        raise I2IError(name, expected="at least one frame", got="none")
    height, width = next(_checked(name, frames))[1].shape[-2:]
    scaled = (frame * 255 for _, frame in _checked(name, frames))
    codes = all(bool((frame - frame.round()).abs().max() < _ON_CODES) for frame in scaled)
    bits, stored = (8, "sRGB in [0, 1], on 8-bit codes") if codes else (32, "sRGB in [0, 1]")
    return Side(name, "frames", (width, height), len(frames), bits, stored, frames=lambda: _checked(name, frames))


def _arriving(name: str, frames: Iterable[torch.Tensor]) -> Side:
    arriving = _checked(name, frames)
    first = next(arriving, None)
    if first is None:
        raise I2IError(name, expected="at least one frame", got="none")
    height, width = first[1].shape[-2:]
    whole = itertools.chain([first], arriving)
    return Side(name, "frames", (width, height), None, 32, "sRGB in [0, 1], as it arrives", frames=lambda: whole)


def _checked(name: str, frames: Iterable[torch.Tensor]) -> Iterator[_Named]:
    for number, frame in enumerate(frames, 1):
        what = f"{name}, frame {number}"
        if not isinstance(frame, torch.Tensor) or frame.ndim not in (3, 4) or frame.numel() == 0:
            got = tuple(frame.shape) if isinstance(frame, torch.Tensor) else type(frame).__name__
            raise I2IError(what, expected="a tensor (3, H, W)", got=got)
        frame = frame.reshape(frame.shape[-3:]) if frame.shape[:-3] in ((), (1,)) else frame
        if frame.ndim != 3 or frame.shape[0] not in (1, 3):
            raise I2IError(what, expected="one frame of three channels, (3, H, W)", got=tuple(frame.shape))
        frame = check_image(what, frame.detach(), 1.0).float().cpu()
        yield what, frame.clamp(0, 1).expand(3, -1, -1)


def fed(sides: Sequence[Side], bits: int) -> Iterator[bytes]:
    """The frames that we give, packed RGB: each of dist with its counterpart of ref behind it, or of one side alone.

    Eight bits are 0 to 255. More are 16-bit numbers whose white is 65280: swscale takes them as 8-bit codes times 256,
    and 65535 would come out brighter than white.

    Raises:
        I2IError: If a frame has another size than the first or the sides are not equally long.
    """
    kind, white = (np.uint8, 255) if bits == 8 else (np.dtype("<u2"), 255 << 8)
    given, number = [one for one in sides if one.frames], 0
    for number, pair in enumerate(itertools.zip_longest(*(one.frames() for one in given)), 1):
        for one, frame in zip(given, pair, strict=True):
            if frame is None:
                longer = given[pair[0] is None]
                raise unequal(longer, f"{number} or more", one, str(number - 1))
            width, height = one.size
            what, pixels = frame
            if pixels.shape[-2:] != (height, width):
                got = "×".join(map(str, reversed(pixels.shape[-2:])))
                raise FrameError(what, expected=f"{width}×{height} pixels, as the first frame", got=got)
        for other in sides:
            if other.count is not None and number > other.count:
                raise unequal(given[0], f"{number} or more", other, str(other.count))
        yield b"".join(np.rint(pixels.permute(1, 2, 0).numpy() * white).astype(kind).tobytes() for _, pixels in pair)
    for other in sides:
        if other.count is not None and number < other.count:
            raise unequal(other, str(other.count), given[0], str(number))


def unequal(one: Side, count: str, other: Side, other_count: str) -> I2IError:
    """That the two sides are not equally long, for raising."""
    got = f"{count} ({one.name}) and {other_count} ({other.name})"
    return I2IError("dist and ref", expected="equally many frames", got=got, remedy="Cut both to the same frames.")
