"""Frames of a video with their times, from any place in it, and a writer that keeps the times, through PyAV.

A pipe from ffmpeg would tell neither the time of a frame nor which frame a damaged packet cost.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import FrameError, I2IError
from ..runtime import atomic_path
from .picture import Frame, upright, what_is_wrong

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mxf")
INTERLACED = "it is interlaced, and its fields stay woven"  # a note of a frame
_TICKS = 90_000  # a second: the clock of MPEG, of which every usual frame rate is a divisor
_TIMED = {"mov", "mp4", "matroska", "webm"}  # containers that keep the time at which a frame is shown
_KEYED = {  # codecs whose key frames are marked truly and need nothing from before
    "av1", "cfhd", "dnxhd", "ffv1", "ffvhuff", "h264", "hevc", "huffyuv", "jpeg2000", "libdav1d", "mjpeg", "mpeg1video",
    "mpeg2video", "mpeg4", "png", "prores", "rawvideo", "theora", "utvideo", "v210", "vp8", "vp9",
}  # fmt: skip
_PLANES = re.compile(r"(?P<kind>gray|gbra?p|yuva4[0-9]{2}p)(9|10|12|14|16)?([lb]e)?")  # whole numbers in planes
_ORIENTATIONS = {  # EXIF's tag by the display matrix (a, b, c, d), where a point goes from (x, y) to (ax + cy, bx + dy)
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}

_MATRICES = {1: "BT.709", 2: "matrix not stated", 5: "BT.601", 6: "BT.601", 9: "BT.2020"}  # by FFmpeg's number


@dataclasses.dataclass(frozen=True)
class Index:
    """What a video holds, known without decoding it where its packets tell.

    Attributes:
        count: Frames, with those that are missing.
        times: Seconds from the first frame, of each frame that is there, in playing order; None where time stamps do
            not increase.
        fps: Average rate, or None.
        size: Height and width of the first frame as shown, pixels.
        orientation: EXIF's tag for how the first frame is turned to be shown, and all others with it.
        colour: Matrix and range, "BT.709, limited range"; "RGB"; "matrix not stated, limited range".
        matrix_stated: Whether the video says which matrix makes RGB of it; true of RGB.
        stamps: The stream's own time stamp of each frame; None where they do not tell frames apart.
        keys: Time stamps at which decoding can begin.
    """

    count: int
    times: tuple[float, ...] | None
    fps: float | None
    size: tuple[int, int]
    orientation: int
    colour: str
    matrix_stated: bool
    stamps: tuple[int, ...] | None
    keys: tuple[int, ...]


def scan(path: str | os.PathLike) -> Index:
    """Find the frames of a video.

    Time stamps of packets are trusted if the container keeps the times of showing, no two are equal, and both ends of
    the video decode to just these; otherwise the whole video is decoded once.

    Raises:
        FrameError: If the file is no video or holds no frame.
    """
    path = Path(path)
    with _opened(path) as (file, stream):
        unit, fps, codec = stream.time_base, float(stream.average_rate or 0), stream.codec_context.name
        timed = bool(_TIMED & set(file.format.name.split(",")))
        promised = _promised(path, stream)
        packets, problem = _packets(file, stream)
        missing = _missing(stream, packets, promised)  # here: a closed file's stream is freed memory
    total = missing + sum(packet.shown for packet in packets) if missing else 0
    if missing:
        packets = _without_holes(packets[:-1])  # the last one may be cut
    first = next(decoded_frames(path), None)
    if first is None:
        raise FrameError(str(path), expected="a video", got=problem or "no frame")
    stamps, keys = [], []
    if timed or all(packet.key for packet in packets):  # else the stamps may be those of decoding
        stamps, keys = _told(packets)
    if not stamps or first.pts != stamps[0] or not _ends_as_told(path, stamps, keys):
        lost: list[str] = []
        decoded = [frame.pts for frame in decoded_frames(path, lost=lost)]
        if not stamps or not (lost or missing):  # of what was lost the packets alone tell
            stamps, keys = decoded, []
    increasing = None not in stamps and all(a < b for a, b in itertools.pairwise(stamps))
    seekable = codec in _KEYED and "pal8" not in first.format.name  # a palette comes with the first packet alone
    orientation = _orientation(first)
    return Index(
        count=max(len(stamps), total),
        times=tuple(float((stamp - stamps[0]) * unit) for stamp in stamps) if increasing else None,
        fps=fps or None,
        size=upright(np.empty((first.height, first.width, 0)), orientation).shape[:2],
        orientation=orientation,
        colour=_colour(first),
        matrix_stated=first.format.is_rgb or first.format.has_palette or int(first.colorspace) != 2,
        stamps=tuple(stamps) if increasing else None,
        keys=tuple(sorted({*keys} & {*stamps})) if increasing and seekable else (),
    )


def read(
    path: str | os.PathLike, index: Index, wanted: Iterable[int], *, deinterlace: bool = False
) -> Iterator[tuple[int, Frame | FrameError]]:
    """The wanted frames in playing order, each with its place, or the error that it met.

    Decoding goes on from one wanted frame to the next, or begins anew at a key frame between them.

    Args:
        path: The video.
        index: From :func:`scan`.
        wanted: Places from 0, increasing; asked for one by one.
        deinterlace: Make each frame of its own fields and those around it (FFmpeg's bwdif, one frame for one); the
            wanted places must then follow one another without a gap.

    Yields:
        The place and the frame: sRGB codes in [0, 1], with alpha where the video has it.
    """
    path = Path(path)
    found = (_deinterlaced if deinterlace else _found)(path, index, wanted)
    for place, frame, sound in found:
        name = f"frame_{place + 1:06d}"
        if sound:
            yield place, _picture(frame, path, name, index.orientation)
        else:
            got = "the stream ended early" if frame is None else "damaged data"
            yield place, FrameError(f"{path}, {name}", expected="a frame", got=got, remedy="Copy the video again.")


def _found(path: Path, index: Index, wanted: Iterable[int]) -> Iterator[tuple[int, object, bool]]:
    """Each wanted place, its frame as decoded (None if there is none), and whether it is sound."""
    last, ahead, frames = 0, None, _placed(path, index, 0)
    keys = [bisect.bisect_left(index.stamps, stamp) for stamp in index.keys]  # their places
    for place in wanted:
        key = keys[bisect.bisect_right(keys, place) - 1] if keys and keys[0] <= place else 0
        if key > last + 1:
            ahead, frames = None, _placed(path, index, key)
        while ahead is None or ahead[0] < place:
            ahead = next(frames, (math.inf, None, False))
        last = place
        at, frame, sound = ahead
        yield place, frame, at == place and sound


def _deinterlaced(path: Path, index: Index, wanted: Iterable[int]) -> Iterator[tuple[int, object, bool]]:
    """As :func:`_found`, of places in a row. The filter needs one frame before and one behind, and no more."""
    places = list(wanted)
    if not places:
        return
    around = range(max(places[0] - 1, 0), min(places[-1] + 2, index.count))
    for sound, run in itertools.groupby(_found(path, index, around), key=lambda item: item[2]):
        for place, frame, _ in _bwdif(run) if sound else run:
            if places[0] <= place <= places[-1]:
                yield place, frame, sound


def _bwdif(run: Iterable[tuple[int, object, bool]]) -> Iterator[tuple[int, object, bool]]:
    """Sound frames in a row, each made of its own fields and those around it."""
    graph, waiting = None, []  # the filter holds a frame back until it has seen the next
    for place, frame, _ in run:
        graph = graph or _filter(frame, "bwdif=mode=send_frame")
        waiting.append(place)
        graph.push(frame)
        yield from _pulled(graph, waiting)
    graph.push(None)
    yield from _pulled(graph, waiting)


def _pulled(graph, waiting: list[int]) -> Iterator[tuple[int, object, bool]]:
    import av

    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            frame = graph.pull()
            yield waiting.pop(0), frame, True


class _Packet(NamedTuple):
    stamp: int | None
    dts: int | None
    end: int | None  # stamp and duration
    key: bool
    size: int  # bytes
    shown: bool  # not cut off by an edit list, and not empty


@contextlib.contextmanager
def _opened(path: Path):
    """The container and its first video stream; what FFmpeg cannot read is a FrameError."""
    import av

    if problem := what_is_wrong(path):  # reading a pipe would wait for ever
        raise FrameError(str(path), expected="a video", got=problem)
    try:
        file = av.open(f"file:{path}", metadata_errors="replace")  # "file:", since names may hold colons
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "an unknown format"
        raise FrameError(str(path), expected="a video that FFmpeg can read", got=reason) from None
    with file:
        stream = file.streams.best("video")  # no cover picture, and not the smaller of two
        if stream is None or stream.codec_context is None or not stream.codec_context.width:
            raise FrameError(str(path), expected="a video", got="no stream of pictures that can be decoded")
        yield file, stream


def _packets(file, stream) -> tuple[list[_Packet], str]:
    """What the container tells of every packet, and why reading stopped, if not at the end."""
    import av

    packets, problem = [], ""
    try:
        for p in file.demux(stream):
            if p.size or p.dts is not None:  # the last, empty packet only flushes the decoder
                end = None if p.pts is None else p.pts + (p.duration or 0)
                packets.append(_Packet(p.pts, p.dts, end, p.is_keyframe, p.size, p.size > 0 and not p.is_discard))
    except av.FFmpegError as error:
        problem = str(error)
    return packets, problem


def _promised(path: Path, stream) -> int:
    """Packets that the container promises, known before it is read; 0 where it does not say."""
    if "avi" in stream.container.format.name:  # its count has the gaps between frames too: only a cut file needs it
        with open(path, "rb") as file:
            header = file.read(8)
        return stream.frames if int.from_bytes(header[4:], "little") + 8 > path.stat().st_size else 0
    # the index knows what an edit list leaves, the count does not; Matroska has no count, and an index of a few frames
    return sum(entry.size > 0 for entry in stream.index_entries) if stream.frames else 0


def _missing(stream, packets: list[_Packet], promised: int) -> int:
    """How many packets the container promises beyond those it holds; by duration where it does not count."""
    if promised:
        return max(promised - sum(packet.size > 0 for packet in packets), 0)
    ends = [packet.end for packet in packets if packet.end is not None]
    whole, rate = _seconds(stream), float(stream.average_rate or 0)
    cut = ends and (whole - float(max(ends) * stream.time_base)) * rate > 0.5
    return max(round(whole * rate) - len(packets), 0) if cut else 0


def _seconds(stream) -> float:
    """The duration that a header of MXF or a tag of Matroska tells, or 0."""
    if "mxf" in stream.container.format.name and stream.duration:
        return float(stream.duration * stream.time_base)
    told = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    hours, minutes, seconds = map(float, told.groups()) if told else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds


def _without_holes(packets: list[_Packet]) -> list[_Packet]:
    """Packets of a stream that was cut off, less those that should be shown behind others that are lost."""
    last = max((packet.dts for packet in packets if packet.dts is not None), default=None)
    return [p for p in packets if last is None or p.stamp is None or p.stamp <= last]


def decoded_frames(
    path: Path, *, start: int | None = None, lost: list[str] | None = None, cut: set[int] | None = None
) -> Iterator:
    """Frames as the decoder gives them, from a key frame's time stamp on.

    Errors of damaged packets are added to ``lost``, time stamps of packets that were cut off to ``cut``.
    """
    import av

    lost, cut = [] if lost is None else lost, set() if cut is None else cut
    with _opened(path) as (file, stream):
        stream.thread_type = "AUTO"
        decoder = stream.codec_context
        if stream.metadata.get("alpha_mode") == "1" and decoder.name in ("vp8", "vp9"):
            with contextlib.suppress(ValueError):  # FFmpeg's own decoder has no alpha
                decoder = av.CodecContext.create(f"libvpx-{decoder.name}".replace("-vp8", ""), "r")
        if start is not None:
            file.seek(start, stream=stream)
        try:
            for packet in file.demux(stream):
                if packet.is_corrupt and packet.size:
                    cut.add(packet.pts)
                try:
                    frames = decoder.decode(packet if packet.size else None)
                except av.FFmpegError as error:
                    lost.append(str(error))
                    continue
                yield from frames
        except av.FFmpegError as error:  # the container ends in the middle of something
            lost.append(str(error))


def _told(packets: list[_Packet]) -> tuple[list[int], list[int]]:
    """Time stamps of all frames and of the key frames, in order; none where they do not tell frames apart."""
    stamps = [packet.stamp for packet in packets if packet.shown]
    if None in stamps or len(set(stamps)) < len(stamps):
        return [], []
    return sorted(stamps), sorted(packet.stamp for packet in packets if packet.key and packet.stamp is not None)


def _ends_as_told(path: Path, stamps: list[int], keys: list[int]) -> bool:
    """Whether decoding from the last key frame gives just the frames that the packets tell."""
    if not keys:
        return False
    lost: list[str] = []
    found = [frame.pts for frame in decoded_frames(path, start=keys[-1], lost=lost) if (frame.pts or 0) >= keys[-1]]
    return not lost and found == [stamp for stamp in stamps if stamp >= keys[-1]]


def _judged(path: Path, start: int | None = None) -> Iterator[tuple[object, bool]]:
    """Frames, and whether each is sound: not damaged, nor made from one that is, up to the next key frame."""
    lost: list[str] = []
    cut: set[int] = set()
    known, doubt = 0, False
    between = []  # B frames wait for the frame behind them, from which they are made too
    for frame in decoded_frames(path, start=start, lost=lost, cut=cut):
        doubt = ((doubt or len(lost) > known) and not frame.key_frame) or frame.is_corrupt or frame.pts in cut
        known = len(lost)
        between.append((frame, doubt))
        if frame.pict_type != 3:  # B
            yield from ((f, not (d or doubt)) for f, d in between)
            between = []
    yield from ((f, not d) for f, d in between)


def _placed(path: Path, index: Index, key: int) -> Iterator[tuple[int, object, bool]]:
    """Place, decoded frame, and whether it is sound, from a key frame on; from the start if the container misleads."""
    if index.stamps is None:
        yield from ((place, *judged) for place, judged in enumerate(_judged(path)))
        return
    places = {stamp: place for place, stamp in enumerate(index.stamps)}
    judged = _judged(path, index.stamps[key] if key else None)
    frames = ((places[frame.pts], frame, sound) for frame, sound in judged if frame.pts in places)
    first = next((found for found in frames if found[0] >= key), None)
    if key and (first is None or first[0] > key or not first[2]):
        yield from _placed(path, index, 0)
    elif first is not None:
        yield first
        yield from frames


def _picture(frame, path: Path, name: str, orientation: int) -> Frame | FrameError:
    import av

    try:
        pixels = _pixels(frame)
    except (av.FFmpegError, ValueError) as error:
        got = f"{frame.format.name}: {error}"
        return FrameError(f"{path}, {name}", expected="a pixel format that becomes RGB", got=got)
    data = torch.from_numpy(upright(pixels, orientation).transpose(2, 0, 1).copy())[None]
    alpha = data[:, 3:] if data.shape[1] == 4 else None
    depth = f"{max(component.bits for component in frame.format.components)} bits"
    return Frame(data[:, :3], alpha, name, f"{path}, {name}", "srgb", depth=depth, notes=_notes(frame))


def _pixels(frame) -> np.ndarray:
    """(H, W, 3 or 4) float32 in [0, 1]; the last channel is alpha.

    Planes of grey, RGB and alpha are divided by their largest number: FFmpeg only shifts them to 16 bits, which makes
    white a little grey. All others it converts.
    """
    components = frame.format.components
    transparent = any(component.is_alpha for component in components)
    plain = _PLANES.fullmatch(frame.format.name)
    if plain and plain["kind"].startswith("g") and not (plain["kind"] == "gray" and frame.color_range == 1):  # limited
        parts = [_plane(frame, component) for component in components if not component.is_alpha]
        parts = parts * 3 if len(parts) == 1 else parts
    else:
        parts = list(np.moveaxis(_rgb(frame, alpha=transparent and not plain), 2, 0))
    if transparent and plain:
        parts.append(_plane(frame, components[-1]))
    return np.stack(parts, 2)


def _plane(frame, component) -> np.ndarray:
    plane = frame.planes[component.plane]
    order = ">" if frame.format.is_big_endian else "<"
    kind = np.dtype(np.uint8 if component.bits <= 8 else f"{order}u2")
    rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]
    return rows.astype(np.float32) / np.float32(2**component.bits - 1)


def _rgb(frame, *, alpha: bool) -> np.ndarray:
    """(H, W, 3 or 4) float32 in [0, 1] of formats that must be converted."""
    if frame.format.is_rgb or frame.format.has_palette:
        deep = max(component.bits for component in frame.format.components) > 8
        layout = ("rgba64le" if alpha else "rgb48le") if deep else ("rgba" if alpha else "rgb24")
        return _converted(frame, layout) / np.float32(65535 if deep else 255)
    wide = _converted(frame, "rgba64le" if alpha else "rgb48le")
    return np.minimum(wide / np.float32(65280), 1)  # FFmpeg's white: the 8-bit code, shifted


def _converted(frame, layout: str) -> np.ndarray:
    """A frame in another pixel format, converted as the ffmpeg program does, in full precision."""
    # without the flags the result is about one 8-bit code too dark
    graph = _filter(frame, "scale=flags=bicubic+accurate_rnd+full_chroma_int", f"format={layout}")
    graph.push(frame)
    return graph.pull().to_ndarray()


def _filter(frame, *chain: str):
    """FFmpeg's filters in a row, each as ``name=arguments``, for frames like this one."""
    import av

    graph = av.filter.Graph()
    about = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
    about += f":colorspace={frame.colorspace}:range={frame.color_range}"
    links = [graph.add("buffer", about), *(graph.add(*step.split("=", 1)) for step in chain), graph.add("buffersink")]
    for one, other in itertools.pairwise(links):
        one.link_to(other)
    graph.configure()
    return graph


def _orientation(frame) -> int:
    """EXIF's tag for the display matrix of a frame; 1 where it is none of the eight.

    Not for every frame: PyAV's ``side_data`` and its frame hold each other, and whole frames would wait for the
    garbage collector.
    """
    try:
        found = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    except ValueError:  # side data of a kind that PyAV does not know
        return {90: 8, -90: 6, 180: 3, -180: 3}.get(frame.rotation, 1)
    if not found:
        return 1
    a, b, _, c, d = np.frombuffer(found[0], np.int32)[:5] / 65536
    return _ORIENTATIONS.get((a, b, c, d), 1)


def _colour(frame) -> str:
    if frame.format.is_rgb or frame.format.has_palette:
        return "RGB"
    matrix = _MATRICES.get(int(frame.colorspace), "another matrix")
    return f"{matrix}, {'full' if int(frame.color_range) == 2 else 'limited'} range"


def _notes(frame) -> tuple[str, ...]:
    from av.video.reformatter import ColorPrimaries, ColorTrc

    notes = []
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67, ColorTrc.LINEAR, ColorTrc.LOG, ColorTrc.LOG_SQRT):
        notes.append(f"its transfer function is {ColorTrc(frame.color_trc).name} and is taken as sRGB")
    if frame.color_primaries in (ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432):
        notes.append(f"its primaries are {ColorPrimaries(frame.color_primaries).name} and are taken as Rec. 709")
    if frame.interlaced_frame:
        notes.append(INTERLACED)
    return tuple(notes)


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    *,
    fps: float | None = None,
    times: Sequence[float] | None = None,
    crf: int = 18,
) -> None:
    """Encode frames as H.264, 4:2:0, limited-range BT.709, with the flags that say so; whole or not at all.

    Args:
        path: Ends in one of :data:`SUFFIXES`; ``.mp4`` and ``.mov`` keep a time to 1/90000 s, ``.mkv`` to 1 ms.
        frames: (H, W, 3) uint8 each, sRGB codes; H and W even.
        fps: Frames per second, or
        times: seconds of each frame, increasing, as :attr:`Index.times` has them.
        crf: Constant rate factor of x264; smaller is better and larger.

    Raises:
        I2IError: If neither or both of ``fps`` and ``times`` are given, times do not increase or are not as many as the
            frames, or a frame has another shape or type.
        FrameError: If the container cannot hold the video.
    """
    import av

    path = Path(path)
    if (fps is None) == (times is None) or (fps is not None and not 0 < fps < 1000):
        raise I2IError("write_video", expected="fps (above 0) or times", got=f"fps={fps}, times={times}")
    if path.suffix.lower() not in SUFFIXES:
        raise I2IError(str(path), expected="a name ending in " + ", ".join(SUFFIXES), got=repr(path.suffix))
    clock = 1000 if path.suffix.lower() in (".mkv", ".webm") else _TICKS
    ticks = itertools.count() if times is None else _ticks(times, clock)
    unit = Fraction(1, clock) if times is not None else 1 / Fraction(fps).limit_denominator(1001)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise I2IError("frames", expected="at least one", got="none")
    with atomic_path(path) as temporary:
        try:
            with av.open(str(temporary), "w", options={"movflags": "faststart", "fflags": "bitexact"}) as file:
                stream = _encoder(file, first, unit, crf)
                for place, pixels in enumerate(itertools.chain([first], frames)):
                    tick = next(ticks, None)
                    if tick is None:
                        raise I2IError("times", expected="one for each frame", got=f"fewer, {place}")
                    file.mux(stream.encode(_encodable(pixels, first, tick, unit)))
                file.mux(stream.encode(None))
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, I2IError):
                raise
            raise FrameError(str(path), expected="a container for H.264", got=str(error)) from None
        if times is not None and next(ticks, None) is not None:
            raise I2IError("times", expected="one for each frame", got=f"{len(times)} for {place + 1} frames")


def _ticks(times: Sequence[float], clock: int) -> Iterator[int]:
    ticks = [round(time * clock) if math.isfinite(time) else -1 for time in times]
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    if min(ticks, default=0) < 0 or min(gaps, default=1) < 1 or max(gaps, default=0) >= 2**31:
        want = f"seconds from 0 on, each from 1/{clock} to {2**31 // clock} after the one before"
        raise I2IError("times", expected=want, got=times)
    return iter(ticks)


def _encoder(file, first: np.ndarray, unit: Fraction, crf: int):
    from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

    stream = file.add_stream("libx264", rate=max(round(1 / unit), 1) if unit.numerator == 1 else 1 / unit)
    context = stream.codec_context
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt, context.time_base, stream.time_base = "yuv420p", unit, unit
    stream.options = {
        "crf": str(crf),
        "preset": "slow",
        "threads": "1",
        "flags": "+bitexact",
    }  # the same bytes anywhere
    context.color_range, context.colorspace = ColorRange.MPEG, 1  # BT.709
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _encodable(pixels: np.ndarray, first: np.ndarray, tick: int, unit: Fraction):
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    even = pixels.ndim == 3 and pixels.shape[2] == 3 and not any(side % 2 or not side for side in pixels.shape[:2])
    if not even or pixels.shape != first.shape or pixels.dtype != np.uint8:
        raise I2IError(
            "frame",
            expected=f"(H, W, 3) uint8 like the first, {first.shape}, H and W even",
            got=f"{pixels.shape} {pixels.dtype}",
            remedy="Crop the frames.",
        )
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
    )
    frame.pts, frame.time_base = tick, unit
    return frame
