"""What an enlarged clip has kept of its source: found in the two files alone, line by line, pass or fail."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import FrameError
from ..frames import Clip, read_image
from ..frames.coding import RANGES, Coding, coding
from ..frames.joining import Content, contents, timing
from ..frames.video import Index, decoded_frames, scan


class Check(NamedTuple):
    """A line of an audit."""

    name: str
    ok: bool
    told: str  # what was found

    def __str__(self) -> str:
        return f"{'pass' if self.ok else 'FAIL'}  {self.name}: {self.told}"


def audit_video(
    source: str | os.PathLike, out: str | os.PathLike, size: tuple[int, int], *, deinterlaced: bool = False
) -> list[Check]:
    """Hold an enlarged video against its source.

    Times are compared from the first frame on, and may differ by half a tick of the result's clock, since Matroska
    has only milliseconds. Sound may shift against the pictures by no more.

    Args:
        source: The video that was enlarged.
        out: The result.
        size: Height and width that the result should have; one more where chroma is halved and they are odd.
        deinterlaced: Whether the source was to be deinterlaced.

    Raises:
        FrameError: If one of them is no video.
    """
    source, out = Path(source), Path(out)
    indices, codings = [scan(p) for p in (source, out)], [coding(p) for p in (source, out)]
    lost: list[str] = []
    decoded = sum(1 for _ in decoded_frames(out, lost=lost))
    wanted = indices[0].count
    lines = [
        Check("frames", decoded == wanted and not lost, f"{decoded} of {wanted}" + (f"; {lost[0]}" if lost else "")),
        _size(indices[1].size, size),
        *_times(indices, codings),
        *_pictures(*codings, deinterlaced=deinterlaced),
    ]
    (streams, tags, chapters), (streams_out, tags_out, chapters_out) = contents(source), contents(out)
    begins = [float((index.stamps or (0,))[0] * how.unit) for index, how in zip(indices, codings, strict=True)]
    tick = float(codings[1].unit)
    for kind in ("audio", "subtitle", "attachment", "cover"):
        pairs = ([stream for stream in found if stream.kind == kind] for found in (streams, streams_out))
        for number, (one, other) in enumerate(itertools.zip_longest(*pairs), 1):
            lines.append(_stream(f"{kind} {number}", one, other, begins, tick))
    lost_tags = sorted(key for key, value in tags.items() if tags_out.get(key) != value)
    told = f"{len(tags) - len(lost_tags)} of {len(tags)}" + (f", not {', '.join(lost_tags)}" if lost_tags else "")
    near = len(chapters) == len(chapters_out) and all(
        a[0] == b[0] and abs(a[1] - b[1]) <= 1e-3 and abs(a[2] - b[2]) <= 1e-3
        for a, b in zip(chapters, chapters_out, strict=True)
    )
    return [
        *lines,
        Check("chapters", near, f"{len(chapters_out)} of {len(chapters)}"),
        Check("tags", not lost_tags, told),
    ]


def _size(found: tuple[int, int], wanted: tuple[int, int]) -> Check:
    grown = [f - w for f, w in zip(found, wanted, strict=True)]
    ok = all(g == 0 or (g == 1 and w % 2) for g, w in zip(grown, wanted, strict=True))
    told = f"{found[1]} x {found[0]}" + ("" if found == wanted else f" for {wanted[1]} x {wanted[0]}")
    return Check("size", ok, told)


def _times(indices: list[Index], codings: list[Coding]) -> list[Check]:
    found = [timing(i, c.unit, c.rate, c.last) for i, c in zip(indices, codings, strict=True)]
    tick = float(found[1].unit)
    seconds = [[float((stamp - t.stamps[0]) * t.unit) for stamp in t.stamps] for t in found]
    apart = max((abs(a - b) for a, b in zip(*seconds, strict=False)), default=0.0)
    ends = [s[-1] + float(t.last * t.unit) for s, t in zip(seconds, found, strict=True)]
    gaps = [b - a for a, b in itertools.pairwise(found[0].stamps)]
    kind = "constant" if not gaps or max(gaps) - min(gaps) <= 1 else "variable"  # clocks round by a step
    told = f"{kind}; at most {1e3 * apart:.3f} ms apart, with a clock of {1e3 * tick:.3f} ms"
    if indices[0].stamps is None:
        told = "the source does not tell them: equal steps"
    same = len(seconds[0]) == len(seconds[1]) and apart <= tick / 2 + 1e-9
    rest = max(abs(ends[0] - ends[1]) - 1e-3, 0)  # headers count in milliseconds
    return [
        Check("times of frames", same, told),
        Check("duration", rest <= tick + 1e-9, f"{ends[1]:.3f} s for {ends[0]:.3f} s"),
    ]


def _pictures(one: Coding, other: Coding, *, deinterlaced: bool) -> list[Check]:
    """Lines on how pixels are coded and shown."""
    rgb = one.matrix == 0 or not one.pixel_format.startswith(("yuv", "gray", "nv", "p0"))

    def kept(name: str, a: object, b: object) -> Check:
        told = f"{b}" if a == b else f"{b} for {a}"
        return Check(name, a == b, told)

    ranges = [RANGES[how.range] for how in (one, other)]
    if one.range == 0 and other.range == 1 and not one.pixel_format.startswith("gray"):
        ranges[0] = "limited"  # what is not told is limited; some codecs must tell
    lines = [kept("bits", one.bits, other.bits), kept("pixel format", one.pixel_format, other.pixel_format)]
    lines += [kept("range", *ranges)]
    lines += [kept(name, getattr(one, name), getattr(other, name)) for name in ("matrix", "primaries", "transfer")]
    lines += [kept("aspect of a pixel", one.aspect, other.aspect)]
    turned = "upright, without a display matrix" if other.orientation == 1 else f"orientation {other.orientation}"
    lines += [Check("rotation", other.orientation == 1, turned + ("" if one.orientation == 1 else "; was turned"))]
    if one.interlaced or deinterlaced:
        told = "deinterlaced" if deinterlaced else "the source is interlaced"
        lines += [Check("interlacing", not other.interlaced, told + ("; so is the result" if other.interlaced else ""))]
    if lost := sorted(set(one.metadata) - set(other.metadata)):
        lines += [Check("metadata of pictures", False, "not kept: " + ", ".join(lost))]
    if rgb:
        lines = [line._replace(told=line.told + " (the source is RGB)") for line in lines]
    return lines


def _stream(name: str, one: Content | None, other: Content | None, begins: list[float], tick: float) -> Check:
    if one is None or other is None:
        return Check(name, False, "is not of the source" if one is None else f"{one.codec} is not there")
    changed = one.kind == "subtitle" and one.codec != other.codec  # to the text format of another container
    if len(one.times) != len(other.times) or (one.digest != other.digest and not changed):
        return Check(name, False, f"{other.codec}: packets differ, MD5 {other.digest} for {one.digest}")
    shift = max(
        (abs((a - begins[0]) - (b - begins[1])) for a, b in zip(one.times, other.times, strict=True)), default=0
    )
    told = f"{other.codec}, {len(other.times)} packets, "
    told += f"were {one.codec}" if changed else f"MD5 {other.digest}"
    if shift > max(tick, 1e-3) + 1e-9:
        return Check(name, False, f"{told}, but shifted by {shift:.4f} s")
    for key, value in one.tags.items():
        if key in ("language", "title") and value != "und" and other.tags.get(key) != value:
            return Check(name, False, f"{told}, but its {key} is {other.tags.get(key)!r} for {value!r}")
    return Check(name, True, told)


def audit_pictures(clip: Clip, files: dict[str, Path], size: Callable[[int, int], tuple[int, int]]) -> list[Check]:
    """Hold enlarged pictures against their source: one of each, in size and depth.

    Args:
        clip: The source.
        files: The result of each frame, by name.
        size: Height and width to those of the result.
    """
    there, wrong = 0, []
    for name, frame in clip.read():
        try:
            found = read_image(files[name])
        except FrameError as error:
            wrong.append(f"{name}: {error}")
            continue
        there += 1
        if isinstance(frame, FrameError):
            wrong.append(f"{name}: its source cannot be read")
            continue
        want = size(*frame.rgb.shape[-2:])
        deep = not frame.depth.startswith("8 bits")
        if tuple(found.rgb.shape[-2:]) != want:
            wrong.append(f"{name}: {tuple(found.rgb.shape[-2:])} for {want}")
        elif deep and found.depth.startswith("8 bits"):
            wrong.append(f"{name}: {found.depth} for {frame.depth}")
        elif frame.alpha is not None and found.alpha is None:
            wrong.append(f"{name}: no alpha channel")
    return [
        Check("pictures", there == len(clip), f"{there} of {len(clip)}"),
        Check("size, depth and alpha", not wrong, wrong[0] if wrong else "as the source's, enlarged"),
    ]
