"""Parts of a video joined to one file, with the times of its source and all that is copied from there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import itertools
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from ..errors import FrameError
from ..runtime import atomic_path
from .coding import Target
from .ffmpeg import ProgramError, run
from .video import Index, _opened, what_is_wrong

_TEXT = {".mp4": "mov_text", ".m4v": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}  # subtitles
_COPIED = ("audio", "subtitle", "attachment", "cover")
_COVER = 0x400  # FFmpeg's flag for a picture that is attached as a stream of video
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # of a container, not of its content
_OWN_STREAM_TAGS = {"encoder", "duration", "vendor_id", "number_of_bytes", "number_of_frames", "bps"}


@dataclasses.dataclass(frozen=True)
class Part:
    """A coded part of a video.

    Attributes:
        path: From ``coding.encoding``; not read where there are no frames.
        places: Place in the source of each of its frames.
        delay: Frames by which coding is ahead of playing, at most.
    """

    path: Path
    places: tuple[int, ...]
    delay: int


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time stamps of all frames of a video, in steps of ``unit`` seconds; for how many steps the last one is shown."""

    stamps: tuple[int, ...]
    unit: Fraction
    last: int


def timing(index: Index, unit: Fraction, rate: Fraction | None, last: int | None) -> Timing:
    """The times of a video's frames: its own stamps, or equal steps where it does not tell.

    Args:
        index: From ``video.scan``.
        unit: Seconds of a step of its stamps.
        rate: Frames per second; 25 where it is not known.
        last: Steps for which the last frame is shown, where known.
    """
    rate = Fraction(rate or 25)
    step = Fraction(1) / (rate * unit)
    if index.stamps is None:
        return Timing(
            tuple(i * rate.denominator for i in range(index.count)), Fraction(1, rate.numerator), rate.denominator
        )
    stamps = list(index.stamps)
    while len(stamps) < index.count:  # of frames that are lost
        stamps.append(stamps[-1] + max(round(step), 1))
    scale = unit.numerator  # containers take units of one part of a second
    return Timing(
        tuple(s * scale for s in stamps), Fraction(1, unit.denominator), (last or max(round(step), 1)) * scale
    )


def join(
    out: str | os.PathLike, parts: Sequence[Part], times: Timing, target: Target, source: str | os.PathLike
) -> tuple[str, ...]:
    """Write one file from parts, with all else that the source holds; whole or not at all.

    Args:
        out: One of ``coding.WRITTEN``.
        parts: In playing order.
        times: By place, of all frames of the source.
        target: How the parts were coded.
        source: The video whose sound, subtitles, attachments, chapters and tags are copied, packet by packet.

    Returns:
        What could not be copied, one sentence each.

    Raises:
        FrameError: If there is no frame, or the container refuses.
    """
    import av

    out, source, notes = Path(out), Path(source), []
    if problem := what_is_wrong(source):
        raise FrameError(str(source), expected="the source", got=problem)
    filled = [part for part in parts if part.places]
    if not filled:
        raise FrameError(str(source), expected="a frame that can be read", got="none")
    suffix, options = out.suffix.lower(), {}
    if suffix in (".mp4", ".m4v", ".mov"):
        clock = math.lcm(times.unit.denominator, 1000)  # of durations and chapters, which often are milliseconds
        clock = clock if clock < 2**31 else times.unit.denominator
        options = {"movflags": "faststart", "movie_timescale": str(clock)}
    try:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(out))
            file, main = stack.enter_context(_opened(source))
            made = stack.enter_context(av.open(str(temporary), "w", options=options))
            with av.open(str(filled[0].path)) as first:
                video = _video(made, first.streams.video[0], times.unit, target, suffix)
            video.metadata.update(_tags(main.metadata, _OWN_STREAM_TAGS))
            copies, texts = {}, []
            for stream in file.streams:
                if _kind(stream) not in _COPIED:
                    notes += [f"stream {stream.index} ({stream.type}) is not copied"] * (stream.index != main.index)
                    continue
                copy, note = _copy(made, stream)
                if note and stream.type == "subtitle" and (text := _as_text(source, stream, suffix, stack)):
                    copy, _ = _copy(made, text.streams[0], like=stream)
                    texts.append(_copied(text, {0: copy}))
                    note = f"stream {stream.index} (subtitle) became {_TEXT[suffix]}"
                elif copy:
                    copies[stream.index] = copy
                notes += [note] if note else []
            made.metadata.update(_tags(file.metadata, _OWN_TAGS))
            made.set_chapters(file.chapters())
            coded = _coded(filled, times, exact=suffix not in (".mkv", ".webm"))
            for _, stream, packet in heapq.merge(coded, _copied(file, copies), *texts, key=lambda item: item[0]):
                packet.stream = stream or video
                made.mux_one(packet)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, FrameError):
            raise
        got = getattr(error, "strerror", None) or str(error)
        raise FrameError(str(out), expected=f"a container for {target.codec.shown}", got=got) from None
    return tuple(notes)


def _as_text(source: Path, stream, suffix: str, stack: contextlib.ExitStack):
    """Subtitles in the text format of a container, by the ffmpeg program, opened; None if they are no text."""
    import av

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    path = folder / f"text{'.mkv' if suffix == '.webm' else suffix}"
    arguments = ["-copyts", "-i", f"file:{source}", "-map", f"0:{stream.index}", "-c:s", _TEXT[suffix], str(path)]
    try:
        run(arguments, what=str(source), expected="subtitles of text")
    except ProgramError:
        return None
    return stack.enter_context(av.open(str(path)))


def _tags(metadata: dict[str, str], own: set[str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.lower() not in own and not key.startswith("_STAT")}


def _video(made, like, unit: Fraction, target: Target, suffix: str):
    stream = made.add_stream_from_template(like, opaque=True)  # as coded; by name there may be no such encoder
    stream.time_base = unit
    coding, context = target.coding, stream.codec_context
    context.color_range, context.colorspace = coding.range, coding.matrix  # not every codec carries them
    context.color_primaries, context.color_trc = coding.primaries, coding.transfer
    context.sample_aspect_ratio = coding.aspect
    if target.codec.shown == "H.265" and suffix != ".mkv":
        context.codec_tag = "hvc1"  # Apple's players want it
    return stream


def _kind(stream) -> str:
    return "cover" if stream.type == "video" and int(stream.disposition) & _COVER else stream.type


def _copy(made, stream, like=None) -> tuple[object | None, str]:
    """A stream of the result for one of the source, or why there is none; with the tags of another, if given."""
    name = getattr(stream.codec_context, "name", None) or "unknown"
    try:
        if stream.type == "attachment":
            if made.format.name != "matroska":
                raise ValueError(f"{made.format.name} has no attachments")
            copy = made.add_attachment(stream.name or "attachment", stream.mimetype or "", stream.data)
        else:
            copy = made.add_stream_from_template(stream, opaque=True)
    except (ValueError, AttributeError) as error:
        return None, f"stream {stream.index} ({stream.type}, {name}) is not copied: {error}"
    copy.metadata.update(_tags((like or stream).metadata, _OWN_STREAM_TAGS))
    copy.disposition = (like or stream).disposition
    return (None if stream.type == "attachment" else copy), ""  # an attachment has no packets


def _coded(parts: Sequence[Part], times: Timing, exact: bool) -> Iterator[tuple[Fraction, None, object]]:
    """Packets of the video with their times in the result.

    A packet's time of decoding is the time of showing of the frame as many places before it as coding is ahead of
    playing; before the first frame there is none, and Matroska, which keeps no times of decoding, wants none there.
    """
    import av

    shown = [times.stamps[place] for part in parts for place in part.places]
    ends = [*shown[1:], times.stamps[parts[-1].places[-1]] + times.last]
    delay = max(part.delay for part in parts)
    step = min(b - a for a, b in zip(shown, ends, strict=True))
    early = [shown[0] - step * i if exact else shown[0] for i in range(delay, 0, -1)]
    decoded = itertools.chain(early, shown)
    begin, left = 0, len(shown)
    for part in parts:
        with av.open(str(part.path)) as file:
            packets = [packet for packet in file.demux(video=0) if packet.size]
        if len(packets) != len(part.places):
            want = f"{len(part.places)} frames"
            raise FrameError(str(part.path), expected=want, got=len(packets), remedy="Delete it and run again.")
        order = {stamp: rank for rank, stamp in enumerate(sorted(packet.pts for packet in packets))}
        for packet in packets:
            rank = begin + order[packet.pts]
            packet.time_base = times.unit
            packet.pts, packet.dts, packet.duration = shown[rank], next(decoded), ends[rank] - shown[rank]
            left -= 1
            if exact and not left:  # MP4 adds up steps of decoding to the duration of all
                packet.duration = ends[-1] - packet.dts - delay * step
            yield packet.dts * times.unit, None, packet
        begin += len(packets)


def _copied(file, copies: dict[int, object]) -> Iterator[tuple[Fraction, object, object]]:
    """Packets of the source's other streams, as they are, up to where the file can be read."""
    import av

    if not copies:
        return
    last = Fraction(0)
    try:
        for packet in file.demux([stream for stream in file.streams if stream.index in copies]):
            if not packet.size:  # the end
                continue
            if packet.pts is None and packet.dts is None:  # a cover has no time
                packet.pts = packet.dts = 0
            last = max(last, (packet.dts if packet.dts is not None else packet.pts) * packet.time_base)
            yield last, copies[packet.stream.index], packet
    except av.FFmpegError:  # cut off: the video's own reader has told so
        return


@dataclasses.dataclass
class Content:
    """What a stream that is copied holds.

    Attributes:
        kind: "audio", "subtitle", "attachment" or "cover".
        codec: As FFmpeg names it.
        digest: MD5 of all packets one after the other.
        times: Seconds of each packet.
        tags: Language, title and the like.
        disposition: FFmpeg's flags: default, forced, ...
    """

    kind: str
    codec: str
    digest: str
    times: list[float]
    tags: dict[str, str]
    disposition: int


def contents(path: str | os.PathLike) -> tuple[list[Content], dict[str, str], list[tuple[str, float, float]]]:
    """What a video holds beside its pictures: streams, tags of the file, chapters (title, begin and end in seconds).

    Empty packets of subtitles, by which MP4 fills gaps, do not count.

    Raises:
        FrameError: If the file is no video.
    """
    import av

    with _opened(Path(path)) as (file, _):
        streams = {stream.index: stream for stream in file.streams if _kind(stream) in _COPIED}
        sums = {index: hashlib.md5(usedforsecurity=False) for index in streams}
        times = {index: [] for index in streams}
        try:
            wanted = [stream for stream in streams.values() if stream.type != "attachment"]
            for packet in file.demux(wanted) if wanted else ():
                data = bytes(packet)
                if not data or (packet.stream.type == "subtitle" and data == b"\0\0"):
                    continue
                index, stamp = packet.stream.index, packet.pts if packet.pts is not None else packet.dts
                sums[index].update(data)
                times[index].append(float((stamp or 0) * packet.time_base))
        except av.FFmpegError:  # cut off
            pass
        found = []
        for index, stream in streams.items():
            if stream.type == "attachment":
                sums[index].update(stream.data)
            name = getattr(stream.codec_context, "name", None) or ""
            tags = {key.lower(): value for key, value in _tags(stream.metadata, _OWN_STREAM_TAGS).items()}
            found.append(
                Content(_kind(stream), name, sums[index].hexdigest(), times[index], tags, int(stream.disposition))
            )
        chapters = [
            (c["metadata"].get("title", ""), float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]))
            for c in file.chapters()
        ]
        return found, {k.lower(): v for k, v in _tags(file.metadata, _OWN_TAGS).items()}, chapters
