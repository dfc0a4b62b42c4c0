"""How a video is coded, and frames coded the same way: pixel format, range, matrix, primaries, transfer, aspect."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from ..errors import FrameError, I2IError
from ..runtime import atomic_path
from .video import _filter, _opened, _orientation, _packets, decoded_frames

WRITTEN = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
RANGES = {0: "unspecified", 1: "limited", 2: "full"}
NOT_GAMMA = {  # transfer functions unlike those of ordinary video
    8: "linear light",
    9: "a logarithm",
    10: "a logarithm",
    16: "PQ (SMPTE ST 2084)",
    18: "HLG (ARIB STD-B67)",
}
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020"}  # that FFmpeg computes
_GUESSED = (0, 2, 3)  # no matrix of Y'CbCr is told; FFmpeg takes that of BT.601
_WHITE = 65280  # of 16-bit RGB in FFmpeg: the 8-bit code, shifted
_METADATA = {  # side data of frames that encoders here do not write
    "MASTERING_DISPLAY_METADATA": "mastering display",
    "CONTENT_LIGHT_LEVEL": "content light level",
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DOVI_METADATA": "Dolby Vision",
    "FILM_GRAIN_PARAMS": "film grain",
}


@dataclasses.dataclass(frozen=True)
class Codec:
    """An encoder and what it is told."""

    encoder: str  # as FFmpeg names it
    crf: int | None  # constant rate factor by default; None: lossless
    options: dict[str, str]
    shown: str  # name of the codec


CODECS = {
    "h264": Codec("libx264", 18, {"preset": "medium"}, "H.264"),
    "hevc": Codec("libx265", 20, {"preset": "medium", "x265-params": "log-level=error"}, "H.265"),
    "av1": Codec("libsvtav1", 24, {"preset": "6"}, "AV1"),
    "vp9": Codec("libvpx-vp9", 24, {"b": "0", "row-mt": "1"}, "VP9"),
    "ffv1": Codec("ffv1", None, {"level": "3"}, "FFV1"),
}


@dataclasses.dataclass(frozen=True)
class Coding:
    """How the pixels of a video are coded. Numbers are those of ITU-T H.273, 2 for what is not told.

    Attributes:
        pixel_format: As FFmpeg names it; without the old names for full range.
        bits: Of a channel.
        range: A key of :data:`RANGES`.
        matrix: Of Y'CbCr; 0 for RGB.
        primaries: Of the colours.
        transfer: Function from light to codes.
        aspect: Width of a pixel over its height, as shown upright; 1 where it is not told.
        rate: Average frames per second, or None.
        unit: Seconds of one step of the time stamps.
        last: Steps for which the last frame is shown, or None.
        orientation: EXIF's tag for how frames are turned to be shown.
        interlaced: Whether the first frame is made of two fields.
        alpha: Whether there is an alpha channel.
        metadata: Names of data of the first frame that no encoder here writes.
    """

    pixel_format: str
    bits: int
    range: int
    matrix: int
    primaries: int
    transfer: int
    aspect: Fraction
    rate: Fraction | None
    unit: Fraction
    last: int | None
    orientation: int
    interlaced: bool
    alpha: bool
    metadata: tuple[str, ...]


def coding(path: str | os.PathLike) -> Coding:
    """How a video is coded, from its header, its packets and its first frame.

    Raises:
        FrameError: If the file is no video, or none of its frames can be decoded.
    """
    path = Path(path)
    with _opened(path) as (file, stream):
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
        rate, unit = stream.average_rate, stream.time_base
        last = _last(file, stream)
    first = next(decoded_frames(path), None)
    if first is None:
        raise FrameError(str(path), expected="a video", got="no frame that can be decoded")
    orientation = _orientation(first)
    name, full = first.format.name, first.color_range
    if name.startswith("yuvj"):
        name, full = name.replace("yuvj", "yuv"), 2
    return Coding(
        name,
        max(component.bits for component in first.format.components),
        int(full),
        int(first.colorspace),
        int(first.color_primaries),
        int(first.color_trc),
        1 / aspect if orientation >= 5 else aspect,
        rate or None,
        unit,
        last,
        orientation,
        bool(first.interlaced_frame),
        any(component.is_alpha for component in first.format.components),
        _metadata(path),
    )


def _last(file, stream) -> int | None:
    """Steps for which the last frame is shown: in MP4 up to the end of the stream, else as its packet says."""
    whole, begin, named = stream.duration, stream.start_time, file.format.name
    packets = [p for p in _packets(file, stream)[0] if p.end is not None and p.shown]
    if not packets:
        return None
    final = max(packets, key=lambda packet: packet.stamp)
    left = (begin or 0) + (whole or 0) - final.stamp  # packets of MP4 know the steps of decoding only
    return (left if "mov" in named and left > 0 else final.end - final.stamp) or None


def _metadata(path: Path) -> tuple[str, ...]:
    """Names of the first frame's side data; from a frame of its own, see ``video._orientation``."""
    with contextlib.suppress(ValueError):  # of a kind that PyAV does not know
        kinds = [data.type.name for data in next(decoded_frames(path)).side_data]
        return tuple(shown for kind, shown in _METADATA.items() if kind in kinds)
    return ()


@dataclasses.dataclass(frozen=True)
class Target:
    """What an encoder is told; made by :func:`target`."""

    codec: Codec
    crf: int | None
    coding: Coding  # of the result
    size: tuple[int, int]  # height and width, pixels
    gop: int  # frames between key frames, at most
    notes: tuple[str, ...] = ()  # what could not be kept


def target(
    source: Coding, size: tuple[int, int], suffix: str, *, codec: str = "auto", crf: int | None = None, gop: int = 96
) -> Target:
    """How frames made from a video are to be coded, so that they mean what its own mean.

    Pixel format, range, matrix, primaries, transfer and aspect are kept. Where the codec has no such pixel format it
    is 4:2:0 of 8 or 10 bits; RGB becomes Y'CbCr of BT.709.

    Args:
        source: From :func:`coding`.
        size: Height and width, pixels.
        suffix: Of the file to come, one of :data:`WRITTEN`.
        codec: A name in :data:`CODECS`, or "auto": H.264 for 8 bits and H.265 for more; in WebM VP9 and AV1.
        crf: Constant rate factor, smaller is better and larger; None for the codec's own.
        gop: Frames between key frames, at most.

    Raises:
        I2IError: If the codec is unknown or does not go into the container, or the factor is none of it.
        FrameError: If the matrix of the source is one that FFmpeg does not compute.
    """
    import av

    suffix = suffix.lower()
    if suffix not in WRITTEN:
        raise I2IError("suffix", expected=" or ".join(WRITTEN), got=repr(suffix))
    if codec == "auto":
        deep = source.bits > 8
        codec = ("av1" if deep else "vp9") if suffix == ".webm" else "hevc" if deep else "h264"
    if codec not in CODECS:
        raise I2IError("codec", expected="auto or " + " or ".join(CODECS), got=repr(codec))
    fits = {".webm": ("vp9", "av1"), ".mkv": tuple(CODECS)}.get(suffix, ("h264", "hevc", "av1", "vp9"))
    if codec not in fits:
        raise I2IError("codec", expected=f"{' or '.join(fits)} in {suffix}", got=repr(codec))
    chosen = CODECS[codec]
    if crf is not None and (chosen.crf is None or not 0 <= crf <= (51 if codec in ("h264", "hevc") else 63)):
        got = "one, though the codec is lossless" if chosen.crf is None else crf
        raise I2IError("crf", expected="0 to 51 (H.264, H.265) or 63 (AV1, VP9)", got=got)
    formats = {format.name for format in av.Codec(chosen.encoder, "w").video_formats}
    if source.bits > 8 and not any(av.VideoFormat(name).components[0].bits > 8 for name in formats):
        remedy = "Choose hevc or av1."
        raise I2IError("codec", expected=f"one for {source.bits} bits", got=f"{chosen.encoder} of 8", remedy=remedy)
    source, notes = _coded(source, formats)
    if source.matrix not in _MATRICES and source.matrix not in _GUESSED and not source.pixel_format.startswith("gray"):
        raise FrameError(
            "matrix",
            expected="Y'CbCr of a matrix that FFmpeg computes",
            got=f"number {source.matrix} of ITU-T H.273",
            remedy="Convert the video first.",
        )
    height, width = size
    halved = [c for c in av.VideoFormat(source.pixel_format, 8, 8).components if c.is_chroma]
    even = [2 if c and (c[0].width, c[0].height)[axis] < 8 else 1 for axis, c in ((1, halved), (0, halved))]
    grown = tuple(side + -side % step for side, step in zip((height, width), even, strict=True))
    if grown != size:
        notes = (*notes, f"{width} x {height} became {grown[1]} x {grown[0]}: halved chroma needs even sides")
    return Target(chosen, chosen.crf if crf is None else crf, source, grown, gop, notes)


def _coded(source: Coding, formats: set[str]) -> tuple[Coding, tuple[str, ...]]:
    """The coding that an encoder of these pixel formats can give, and what changes."""
    usual = "yuv420p10le" if source.bits > 8 else "yuv420p"
    rgb = source.matrix == 0 or source.pixel_format.startswith(("gbr", "rgb", "bgr", "pal", "argb", "abgr"))
    if rgb:
        coded = dataclasses.replace(source, pixel_format=usual, range=1, matrix=1, primaries=1, transfer=1)
        return dataclasses.replace(coded, bits=min(source.bits, 10)), (f"its RGB is coded as {usual}, BT.709",)
    wanted = source.pixel_format if source.pixel_format in formats else usual
    if wanted == source.pixel_format:
        return source, ()
    note = f"{source.pixel_format} became {wanted}: the codec has no other"
    return dataclasses.replace(source, pixel_format=wanted, bits=10 if source.bits > 8 else 8), (note,)


class Encoder:
    """Frames on their way into one file; made by :func:`encoding`.

    Attributes:
        count: Frames so far.
        delay: Frames by which the order of coding is ahead of that of playing, at most; known at the end.
    """

    def __init__(self, file, stream, target: Target):
        self.file, self.stream, self.target = file, stream, target
        self.count, self.delay, self.graph, self.stamps = 0, 0, None, []

    def put(self, rgb: torch.Tensor) -> None:
        """Add a frame.

        Args:
            rgb: (1, 3, H, W) float32, sRGB codes in [0, 1], the size of the target or a row and column less.
        """
        import av

        height, width = self.target.size
        wide = rgb[0].permute(1, 2, 0).mul(_WHITE).round_().to(torch.uint16).numpy()
        short = [(0, full - side) for full, side in zip((height, width), wide.shape, strict=False)]
        wide = np.pad(wide, (*short, (0, 0)), "edge") if any(map(any, short)) else wide
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide), format="rgb48le")
        coding = self.target.coding
        if self.graph is None:
            full = coding.range == 2 or (coding.pixel_format.startswith("gray") and coding.range != 1)
            self.graph = _filter(
                frame,
                "scale=flags=bicubic+accurate_rnd+full_chroma_inp"
                f":out_color_matrix={_MATRICES.get(coding.matrix, 'bt601')}:out_range={'pc' if full else 'tv'}",
                f"format={coding.pixel_format}",
            )
        self.graph.push(frame)
        frame = self.graph.pull()
        frame.pts, frame.time_base, frame.pict_type = self.count, self.stream.codec_context.time_base, 0
        frame.color_range, frame.colorspace = coding.range, coding.matrix
        frame.color_primaries, frame.color_trc = coding.primaries, coding.transfer
        self.count += 1
        self._mux(frame)

    def _mux(self, frame) -> None:
        for packet in self.stream.encode(frame):
            self.stamps.append(packet.pts)
            self.file.mux(packet)

    def finish(self) -> None:
        """Code what is still waiting."""
        if self.count:
            self._mux(None)
        places = {stamp: place for place, stamp in enumerate(sorted(self.stamps))}
        self.delay = max((i - places[stamp] for i, stamp in enumerate(self.stamps)), default=0)


@contextlib.contextmanager
def encoding(path: Path, target: Target) -> Iterator[Encoder]:
    """Code frames into a file of their own, whole or not at all; a part of a video, to be joined by ``joining``.

    Args:
        path: Ends in ``.nut``, which keeps any codec.
        target: From :func:`target`.

    Raises:
        FrameError: If the encoder refuses.
    """
    import av

    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w", format="nut") as file:
                encoder = Encoder(file, _stream(file, target), target)
                yield encoder
                encoder.finish()
        except av.FFmpegError as error:
            want = f"frames that {target.codec.shown} takes"
            raise FrameError(str(path), expected=want, got=error.strerror or str(error)) from None


def _stream(file, target: Target):
    coding = target.coding
    rate = Fraction(coding.rate or 25).limit_denominator(1001) or Fraction(1, 1001)
    os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 would fill the terminal
    stream = file.add_stream(target.codec.encoder, rate=rate)
    stream.height, stream.width = target.size
    stream.pix_fmt = coding.pixel_format
    context = stream.codec_context
    context.time_base, context.gop_size = 1 / rate, target.gop  # frames are counted: times come later
    context.sample_aspect_ratio = coding.aspect
    context.color_range, context.colorspace = coding.range, coding.matrix
    context.color_primaries, context.color_trc = coding.primaries, coding.transfer
    context.thread_type = "AUTO"  # not "SLICE", which costs quality
    crf = {} if target.crf is None else {"crf": str(target.crf)}
    stream.options = target.codec.options | crf | {"flags": "+global_header"}
    return stream
