"""A video or pictures, enlarged: decoding, network and encoding at the same time, in segments that survive a kill.

Segments are so many frames each, by place and not by time. Each is coded by an encoder of its own and lies whole in
the folder ``OUT.parts`` until the last is there; then all are joined, with the times of the source and what is copied
from it. So a run that was interrupted goes on behind the last whole segment, and ends with the same frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from .. import colour
from ..errors import FrameError, I2IError
from ..frames import IMAGE_SUFFIXES, Clip, Frame, open_clip, stored_colour, video, write_image
from ..frames.coding import NOT_GAMMA, WRITTEN, Coding, Target, coding, encoding, target
from ..frames.joining import Part, join, timing
from ..frames.values import srgb_codes
from ..runtime import discard_parts, write_json
from . import write_times
from .ahead import ahead
from .audit import Check, audit_pictures, audit_video
from .enlarge import Network, enlarge_all
from .job import JobFolder, open_job

COMPARE = ("side", "split")
_PICTURES = (".png", ".tif", ".tiff", ".exr", ".jpg", ".jpeg")  # that are written as they came
_DECODED, _ENLARGED = 4, 2  # frames that may wait behind the decoder and behind the network


@dataclasses.dataclass(frozen=True)
class UpscaleOptions:
    """How a clip is enlarged. The results depend on all but the last three."""

    codec: str = "auto"  # a name in frames.coding.CODECS, or "auto"
    crf: int | None = None  # constant rate factor; None for the codec's own
    deinterlace: bool = False  # interlaced video is refused without
    own_space: bool = False  # enlarge PQ, HLG and the like in their own codes; refused without
    compare: str | None = None  # another video: "side" by side, or "split", bicubic left
    segment: int = 96  # frames
    batch: int = 1  # frames that go through the network at once
    tile: int | None = None  # longest side, pixels; None: as memory lasts
    memory_gib: float | None = None  # for the tiles of a batch; None: a quarter of the machine's

    def __post_init__(self) -> None:
        for name in ("segment", "batch"):
            if getattr(self, name) < 1:
                raise I2IError(name, expected="at least 1", got=getattr(self, name))
        if self.compare is not None and self.compare not in COMPARE:
            raise I2IError("compare", expected=" or ".join(COMPARE), got=repr(self.compare))
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise I2IError("memory_gib", expected="above 0", got=self.memory_gib)


@dataclasses.dataclass
class UpscaleReport:
    """What became of a clip."""

    out: str
    size: tuple[int, int] | None  # of a video: height and width of the result, pixels
    frames: int  # of the source
    written: int = 0
    kept: int = 0  # of an earlier run
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # name: the error
    notes: list[str] = dataclasses.field(default_factory=list)  # what was changed or left out, unasked
    seconds: float = 0.0  # of this run, without opening the network
    compare: str | None = None  # the other video
    checks: list[Check] = dataclasses.field(default_factory=list)  # of the audit

    @property
    def ok(self) -> bool:
        """No frame failed, and no check of the audit."""
        return not self.failed and all(check.ok for check in self.checks)


def upscale(
    source: str | os.PathLike,
    out: str | os.PathLike,
    network: Network,
    options: UpscaleOptions | None = None,
    *,
    overwrite: bool = False,
    audit: bool = False,
    progress: bool = True,
) -> UpscaleReport:
    """Enlarge a video into a video, or a video or pictures into a folder of pictures.

    A video keeps every frame with its time, its pixel format, range, matrix, primaries, transfer and aspect; sound,
    subtitles, attachments, chapters and tags are copied. Frames are turned upright, and the result has no display
    matrix. A frame that cannot be read is left out, and the one before it is shown until the next.

    Args:
        source: A video, a picture or a folder of pictures.
        out: A name that ends as a video does (``frames.coding.WRITTEN``), or a folder for pictures.
        network: From ``enlarge.open_network``.
        options: Codec, segments, tiles.
        overwrite: Begin anew, whatever is there.
        audit: Prove what was kept. With a result that is there already, from whatever run, do only that.
        progress: Show a bar.

    Raises:
        FrameError: If the source cannot be read, or is interlaced, HDR or transparent and no option says what to do.
        I2IError: If the result is there already or is another job's, or an option does not fit.
    """
    options, out, clip = options or UpscaleOptions(), Path(out), open_clip(source)
    if out.suffix.lower() not in WRITTEN:
        return _to_pictures(clip, out, network, options, overwrite=overwrite, audit=audit, progress=progress)
    if clip.index is None:
        remedy = "Name a folder."
        raise I2IError(str(out), expected="a folder, as for any pictures", got="a name of a video", remedy=remedy)
    return _to_video(clip, out, network, options, overwrite=overwrite, audit=audit, progress=progress)


def calibration(source: str | os.PathLike, *, frames: int = 4, side: int = 256) -> list[torch.Tensor]:
    """Pieces of a clip's frames, as the network sees them, for INT8 whose fix positions are not known.

    Args:
        source: As in :func:`upscale`.
        frames: How many, spread over the clip.
        side: Of the piece in the middle of each, pixels; a multiple of 8.

    Returns:
        (1, 3, h, w) float32 in [-1, 1] each, h and w multiples of 8.

    Raises:
        FrameError: If none can be read.
    """
    clip, pieces = open_clip(source), []
    for _, frame in clip.read(set(clip.names[:: max(1, len(clip) // frames)][:frames])):
        if isinstance(frame, FrameError):
            continue
        codes = srgb_codes(frame)
        top, left = ((length - min(length, side)) // 2 for length in codes.shape[-2:])
        piece = codes[..., top : top + side, left : left + side]
        down, right = (-length % 8 for length in piece.shape[-2:])
        pieces.append(colour.to_fixed(F.pad(piece, (0, right, 0, down), mode="replicate"), 1))
    if not pieces:
        raise FrameError(str(source), expected="a frame to calibrate on", got="none that can be read")
    return pieces


# --- video ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    clip: Clip
    options: UpscaleOptions
    job: JobFolder
    state: dict | None  # of the source
    targets: tuple[Target, ...]  # of the result, and of the comparison
    segments: tuple[range, ...]  # places of the frames of each
    kept: frozenset[int]  # numbers of segments that are whole

    def results(self, number: int) -> tuple[Path, ...]:
        """Files of a segment: what it holds, and a video for each target."""
        stem = f"{number:06d}"
        names = [f"{stem}.json", f"{stem}.nut", f"{stem}_compare.nut"][: 1 + len(self.targets)]
        return tuple(self.job.out / "segments" / name for name in names)


def _to_video(
    clip: Clip, out: Path, network: Network, options: UpscaleOptions, *, overwrite: bool, audit: bool, progress: bool
) -> UpscaleReport:
    began, how = time.perf_counter(), coding(clip.path)
    _refuse(clip, how, options)
    work = out.with_name(out.name + ".parts")
    other = out.with_name(f"{out.stem}_compare{out.suffix}") if options.compare else None
    if out.exists() and clip.path.resolve() == out.resolve():
        raise I2IError(str(out), expected="another file than the source", got="the source")
    targets = _targets(how, network.size(*clip.index.size), out.suffix, options)
    report = UpscaleReport(str(out), targets[0].size, len(clip), notes=list(targets[0].notes))
    if how.matrix == 2 and _guessed(*clip.index.size) != _guessed(*report.size):
        report.notes.append("its matrix is not told and was taken as BT.601; at the larger size players guess BT.709")
    report.compare = str(other) if other else None
    files = [out, other] if other else [out]
    there = [file for file in files if file.exists()]
    if there and not overwrite and not (work / "job.json").is_file():
        if not audit or out not in there:
            remedy = "Choose another name, or overwrite it."
            raise I2IError(str(there[0]), expected="a new name", got="a file that is there", remedy=remedy)
        report.kept = len(clip)
    else:
        plan = _plan(clip, work, network, options, targets, overwrite=overwrite)
        _run(plan, network, report, progress=progress)
        parts = _parts(plan, report)
        times = timing(clip.index, how.unit, how.rate, how.last)
        discard_parts(*files)
        for i, file in enumerate(files):
            report.notes += [n for n in join(file, parts[i], times, targets[i], clip.path) if n not in report.notes]
        _clear(work)
    report.seconds = time.perf_counter() - began
    if audit:
        report.checks = audit_video(clip.path, out, network.size(*clip.index.size), deinterlaced=options.deinterlace)
    return report


def _clear(work: Path) -> None:
    """Remove what the job wrote, and its folder unless something of someone else's lies there."""
    shutil.rmtree(work / "segments")
    for name in ("job.json", "frames.jsonl"):
        (work / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()


def _guessed(height: int, width: int) -> str:
    """The matrix that players take for video that does not tell."""
    return "BT.709" if width >= 1280 or height > 576 else "BT.601"


def _refuse(clip: Clip, how: Coding, options: UpscaleOptions) -> None:
    name = str(clip.path)
    if how.transfer in NOT_GAMMA and not options.own_space:
        remedy = (
            "Networks here have learnt from codes of ordinary video: convert it first, or ask for its own space "
            "(--own-space), in which its codes are enlarged as they are."
        )
        got = f"the transfer function {NOT_GAMMA[how.transfer]}"
        raise FrameError(name, expected="video of ordinary dynamic range", got=got, remedy=remedy)
    if how.interlaced and not options.deinterlace:
        raise _woven(name)
    if how.alpha:
        remedy = "Enlarge it into a folder of pictures, or composite it first."
        raise FrameError(name, expected="video without transparency", got=how.pixel_format, remedy=remedy)


def _woven(name: str) -> FrameError:
    remedy = "Ask for it to be deinterlaced (--deinterlace)."
    return FrameError(name, expected="progressive video", got="interlaced frames", remedy=remedy)


def _targets(how: Coding, size: tuple[int, int], suffix: str, options: UpscaleOptions) -> tuple[Target, ...]:
    told = {"codec": options.codec, "crf": options.crf, "gop": options.segment}
    found = (target(how, size, suffix, **told),)
    if options.compare:
        wide = 2 if options.compare == "side" else 1
        found += (dataclasses.replace(found[0], size=(found[0].size[0], wide * found[0].size[1])),)
    return found


def _plan(
    clip: Clip,
    work: Path,
    network: Network,
    options: UpscaleOptions,
    targets: tuple[Target, ...],
    *,
    overwrite: bool,
) -> _Plan:
    free = ("batch", "tile", "memory_gib")
    about = {key: value for key, value in dataclasses.asdict(options).items() if key not in free}
    about |= {"source": str(clip.path.resolve()), "targets": [dataclasses.asdict(t) for t in targets]}
    job = open_job(work, about | network.identity, overwrite=overwrite)
    count = range(0, len(clip), options.segment)
    segments = tuple(range(begin, min(begin + options.segment, len(clip))) for begin in count)
    plan = _Plan(clip, options, job, job.source(clip.path), targets, segments, frozenset())
    kept = frozenset(n for n in range(len(segments)) if job.keeps(plan.state, plan.results(n)))
    return dataclasses.replace(plan, kept=kept)


def _run(plan: _Plan, network: Network, report: UpscaleReport, *, progress: bool) -> None:
    """Write the segments that are missing."""
    options, missing = plan.options, [n for n in range(len(plan.segments)) if n not in plan.kept]
    report.kept = sum(len(plan.segments[n]) for n in plan.kept)
    plan.job.claim()
    discard_parts(*itertools.chain.from_iterable(map(plan.results, missing)))
    bar = tqdm(total=len(plan.clip), initial=report.kept, desc="upscale", unit="frame", disable=not progress)
    with (
        bar,
        ahead(_decoded(plan, missing), _DECODED) as frames,
        ahead(_enlarged(network, frames, options), _ENLARGED) as results,
    ):
        for number, group in itertools.groupby(results, key=lambda item: item[0] // options.segment):
            _write_segment(plan, number, group, report, bar)


def _decoded(plan: _Plan, missing: list[int]) -> Iterator[tuple[int, Frame | FrameError]]:
    """Frames of the missing segments, by place; segments in a row are read in one go."""
    clip, options = plan.clip, plan.options
    for _, run in itertools.groupby(enumerate(missing), key=lambda item: item[1] - item[0]):
        numbers = [number for _, number in run]
        places = range(plan.segments[numbers[0]].start, plan.segments[numbers[-1]].stop)
        for place, frame in video.read(clip.path, clip.index, places, deinterlace=options.deinterlace):
            if isinstance(frame, Frame):
                if video.INTERLACED in frame.notes and not options.deinterlace:
                    raise _woven(frame.source)
                if frame.rgb.shape[-2:] != clip.index.size:
                    got, want = (f"{h} x {w} pixels" for h, w in (frame.rgb.shape[-2:], clip.index.size))
                    frame = FrameError(frame.source, expected=f"{want}, as the first", got=got)
            yield place, frame


def _enlarged(
    network: Network, frames: Iterable[tuple[int, Frame | FrameError]], options: UpscaleOptions
) -> Iterator[tuple[int, torch.Tensor | FrameError, torch.Tensor | None]]:
    """Place, frame and enlarged frame; or place, error and None. No batch goes beyond its segment."""
    how = {"batch": options.batch, "tile": options.tile, "memory_gib": options.memory_gib}
    for _, group in itertools.groupby(frames, key=lambda item: item[0] // options.segment):
        failed: list[tuple[int, FrameError, None]] = []
        for (place, rgb), large in enlarge_all(network, _sound(group, failed), **how):
            yield place, rgb, large
        yield from failed


def _sound(frames: Iterable, failed: list) -> Iterator[tuple[tuple[int, torch.Tensor], torch.Tensor]]:
    for place, frame in frames:
        if isinstance(frame, FrameError):
            failed.append((place, frame, None))
        else:
            yield (place, frame.rgb), frame.rgb


def _write_segment(plan: _Plan, number: int, group: Iterable, report: UpscaleReport, bar: tqdm) -> None:
    state, *files = plan.results(number)
    plan.job.begin((state, *files))
    places, failed = [], {}
    with contextlib.ExitStack() as stack:
        encoders = [stack.enter_context(encoding(*each)) for each in zip(files, plan.targets, strict=True)]
        for place, rgb, large in group:
            if large is None:
                failed[plan.clip.names[place]] = str(rgb)
                bar.write(f"left out: {rgb}", file=sys.stderr)
            else:
                places.append(place)
                encoders[0].put(large)
                if plan.options.compare:
                    encoders[1].put(beside(rgb, large, plan.options.compare))
            bar.update()
    about = {"places": places, "failed": failed, "delays": [encoder.delay for encoder in encoders]}
    write_json(state, about)
    plan.job.note(plan.state, (state, *files))
    report.written += len(places)


def beside(rgb: torch.Tensor, large: torch.Tensor, how: str) -> torch.Tensor:
    """A frame as bicubic interpolation enlarges it, left, and as the network does, right.

    Args:
        rgb: (1, 3, H, W) in [0, 1].
        large: (1, 3, H', W') in [0, 1], the same enlarged.
        how: "side": both whole, (1, 3, H', 2 W'); "split": one half of each, with a white line between.
    """
    plain = F.interpolate(rgb, large.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    if how == "side":
        return torch.cat([plain, large], 3)
    middle = large.shape[-1] // 2
    both = torch.cat([plain[..., :middle], large[..., middle:]], 3)
    both[..., middle : middle + 2] = 1
    return both


def _parts(plan: _Plan, report: UpscaleReport) -> list[list[Part]]:
    """What is to be joined, for each target; fills in which frames failed, in this run or an earlier one."""
    parts: list[list[Part]] = [[] for _ in plan.targets]
    for number in range(len(plan.segments)):
        state, *files = plan.results(number)
        about = json.loads(state.read_text(encoding="utf-8"))
        report.failed |= about["failed"]
        for found, file, delay in zip(parts, files, about["delays"], strict=True):
            found.append(Part(file, tuple(about["places"]), delay))
    report.kept = sum(len(part.places) for part in parts[0]) - report.written
    return parts


# --- pictures ------------------------------------------------------------------------------------------


def _to_pictures(
    clip: Clip, out: Path, network: Network, options: UpscaleOptions, *, overwrite: bool, audit: bool, progress: bool
) -> UpscaleReport:
    began = time.perf_counter()
    if out.suffix.lower() in IMAGE_SUFFIXES or (clip.files and out.resolve() == clip.path.resolve()):
        got = "the source" if out.exists() and out.resolve() == clip.path.resolve() else "a name of a picture"
        raise I2IError(str(out), expected="a folder for pictures", got=got)
    for name in ("compare", "crf", "codec", "batch"):
        if getattr(options, name) != getattr(UpscaleOptions, name):
            raise I2IError(name, expected="a video as result", got="a folder", remedy="Name a video.")
    if clip.index is not None:
        how = coding(clip.path)
        _refuse(clip, dataclasses.replace(how, alpha=False), options)
    about = {"source": str(clip.path.resolve()), "deinterlace": options.deinterlace, "own_space": options.own_space}
    files = {name: (out / f"{name}{_suffix(clip, name)}",) for name in clip.names}
    job = open_job(out, about | network.identity, results="*", overwrite=overwrite)
    sources = {name: job.source(clip.source(name)) for name in clip.names}
    kept = {name for name in clip.names if job.keeps(sources[name], files[name])}
    report = UpscaleReport(str(out), None, len(clip), kept=len(kept))
    report.notes += [f"passed over, as no picture: {name}" for name in clip.passed_over]
    job.claim()
    discard_parts(*(file for (file,) in files.values()))
    if clip.times:
        write_times(out / "timecodes.txt", clip.times)
    wanted = [place for place, name in enumerate(clip.names) if name not in kept]
    how_tiled = {"tile": options.tile, "memory_gib": options.memory_gib}
    bar = tqdm(total=len(clip), initial=len(kept), desc="upscale", unit="frame", disable=not progress)
    with bar, ahead(_read(clip, wanted, options), _DECODED) as frames:
        failed: list[tuple[str, FrameError]] = []
        with ahead(enlarge_all(network, _codes(frames, failed), **how_tiled), _ENLARGED) as results:
            for frame, large in results:
                try:
                    job.begin(files[frame.name])
                    _write(files[frame.name][0], frame, large, network, report)
                    job.note(sources[frame.name], files[frame.name])
                    report.written += 1
                except FrameError as error:
                    failed.append((frame.name, error))
                bar.update()
    report.failed = {name: str(error) for name, error in failed}
    report.seconds = time.perf_counter() - began
    if audit:
        report.checks = audit_pictures(clip, {n: f for n, (f,) in files.items()}, network.size)
    return report


def _suffix(clip: Clip, name: str) -> str:
    own = clip.source(name).suffix.lower() if clip.files else ".png"
    return own if own in _PICTURES else ".png"


def _read(clip: Clip, wanted: list[int], options: UpscaleOptions) -> Iterator[tuple[str, Frame | FrameError]]:
    if not clip.files:
        if options.deinterlace and wanted:
            wanted = range(wanted[0], wanted[-1] + 1)
        for place, frame in video.read(clip.path, clip.index, wanted, deinterlace=options.deinterlace):
            if isinstance(frame, Frame) and video.INTERLACED in frame.notes and not options.deinterlace:
                raise _woven(frame.source)
            yield clip.names[place], frame
        return
    yield from clip.read({clip.names[place] for place in wanted})


def _codes(frames: Iterable[tuple[str, Frame | FrameError]], failed: list) -> Iterator[tuple[Frame, torch.Tensor]]:
    """Each frame with its sRGB codes."""
    for name, frame in frames:
        try:
            if isinstance(frame, FrameError):
                raise frame
            yield frame, srgb_codes(frame)
        except FrameError as error:
            failed.append((name, error))


def _write(path: Path, frame: Frame, large: torch.Tensor, network: Network, report: UpscaleReport) -> None:
    linear = stored_colour(path) == "linear"
    pixels = colour.srgb_to_linear(large) if linear else large
    if frame.colour == "linear" and bool((frame.rgb > 1).any()):
        _note(report, f"brighter than white became white: {frame.name}")
    if frame.alpha is not None:
        alpha = F.interpolate(frame.alpha, large.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        pixels = torch.cat([pixels, alpha], 1)
    origin = tuple(int(side * network.factor) for side in frame.origin)
    bits = 8 if frame.depth.startswith("8 bits") else 16
    write_image(path, pixels, bits=bits, origin=origin, aspect=frame.aspect)


def _note(report: UpscaleReport, note: str) -> None:
    if note not in report.notes:
        report.notes.append(note)
