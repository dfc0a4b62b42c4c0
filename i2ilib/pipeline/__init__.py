"""The road of a frame: stored pixels → sRGB → fixed point → patches → network → matte; one frame, or a whole clip."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm.auto import tqdm

from .. import colour, patches
from ..deploy import Runner
from ..errors import FrameError, I2IError
from ..frames import COLOURS, Clip, Frame, stored_colour, write_image
from ..runtime import atomic_path, discard_parts
from .job import JobFolder, open_job


@dataclasses.dataclass(frozen=True)
class MatteOptions:
    """How frames become mattes."""

    q_in: int = 1  # the network sees [-q_in, q_in]; kept with the weights
    q_out: int = 1  # it gives [-q_out, q_out]; likewise, 1 behind a tanh
    patch: int = patches.PATCH  # pixels
    stride: int = patches.PATCH  # pixels; less than the patch overlaps patches
    feather: int = 0  # pixels over which overlapping patches fade; at most patch - stride
    batch: int = 8  # patches a batch
    input_colour: str = "auto"  # "srgb", "linear", or "auto": what the file is, linear for OpenEXR, else mostly sRGB
    input_alpha: str = "ignore"  # of the source: "ignore" it, or "unpremultiply" the colours by it
    matte_transfer: str = "none"  # "none": alpha is coverage; "srgb": decode it by equation 4, as the paper does
    non_finite: str = "error"  # NaN and infinity in a frame: "error", or "zero" to replace them

    def __post_init__(self) -> None:
        for name, known in {
            "input_colour": ("auto", *COLOURS),
            "input_alpha": ("ignore", "unpremultiply"),
            "matte_transfer": ("none", "srgb"),
            "non_finite": ("error", "zero"),
        }.items():
            if getattr(self, name) not in known:
                raise I2IError(name, expected=" or ".join(known), got=repr(getattr(self, name)))
        for name in ("patch", "batch"):
            if getattr(self, name) < 1:
                raise I2IError(name, expected="at least 1", got=getattr(self, name))
        one = torch.zeros(1, 1, self.patch, self.patch)  # merging it refuses a stride or feather that cannot be
        patches.merge(one, height=self.patch, width=self.patch, stride=self.stride, feather=self.feather)


def network_input(frame: Frame, options: MatteOptions) -> torch.Tensor:
    """A frame as the network sees it, before it is cut.

    Args:
        frame: As read.
        options: Colour state, alpha and mapping.

    Returns:
        (1, 3, H', W') float32 in [-q_in, q_in], H' and W' multiples of the patch.

    Raises:
        FrameError: If the frame holds NaN or infinity and ``options.non_finite`` is "error".
    """
    rgb = frame.rgb
    if not torch.isfinite(rgb.sum()) and not torch.isfinite(rgb).all():  # a sum is quick; no NaN leaves it finite
        if options.non_finite == "error":
            raise FrameError(
                frame.source,
                expected="finite pixels",
                got=f"{int((~torch.isfinite(rgb)).any(1).sum())} pixels with NaN or infinity",
                remedy="Render it again, or ask for them to be replaced by zero.",
            )
        rgb = torch.nan_to_num(rgb, nan=0.0, posinf=0.0, neginf=0.0)
    rgb = _straight(rgb, frame, options)
    state = frame.colour if options.input_colour == "auto" else options.input_colour
    srgb = colour.linear_to_srgb(rgb) if state == "linear" else rgb
    srgb = patches.fit(srgb.clamp(0, 1), patch=options.patch)  # the network never saw more than white
    return colour.to_fixed(srgb, options.q_in, out=srgb)  # a copy of the frame by now


def _straight(rgb: torch.Tensor, frame: Frame, options: MatteOptions) -> torch.Tensor:
    if options.input_alpha == "ignore" or frame.alpha is None:
        return rgb
    most = torch.finfo(rgb.dtype).max  # a highlight over little alpha may exceed it
    return torch.where(frame.alpha > 0, rgb / frame.alpha.clamp_min(1e-6), rgb).clamp(-most, most)


def run_patches(runner: Runner, mapped: torch.Tensor, options: MatteOptions) -> Iterator[torch.Tensor]:
    """The network's output for the patches of a frame, batch by batch, with several batches in flight.

    Args:
        runner: Ready to run.
        mapped: (1, 3, H, W) float32 from :func:`network_input`.
        options: Patch, stride and batch.

    Yields:
        (N, C, patch, patch) float32 in [-1, 1], in the order of the grid.
    """
    waiting: deque[Future[torch.Tensor]] = deque()

    def oldest() -> torch.Tensor:
        out = waiting.popleft().result()
        if out.shape[-2:] != (options.patch, options.patch):
            raise I2IError(
                "model",
                expected=f"a matting network: {options.patch} x {options.patch} pixels in and out",
                got=f"{out.shape[-2]} x {out.shape[-1]} out",
            )
        return out

    batches = patches.iter_batches(mapped, batch=options.batch, patch=options.patch, stride=options.stride)
    for _, batch in batches:
        waiting.append(runner.submit(batch))
        if len(waiting) > 2:
            yield oldest()
    while waiting:
        yield oldest()


def matte(runner: Runner, frame: Frame, options: MatteOptions | None = None) -> torch.Tensor:
    """The alpha matte of a frame.

    Args:
        runner: The network, ready to run.
        frame: As read from disk.
        options: Colour, mapping, patches.

    Returns:
        (1, 1, H, W) float32 in [0, 1], the size of the frame.

    Raises:
        FrameError: If the frame holds NaN or infinity and ``options.non_finite`` is "error".
    """
    options = options or MatteOptions()
    mapped = network_input(frame, options)
    height, width = mapped.shape[-2:]
    out = patches.merge(
        run_patches(runner, mapped, options),
        height=height,
        width=width,
        stride=options.stride,
        feather=options.feather,
    )
    alpha = colour.from_fixed(out.mean(1, keepdim=True), options.q_out)  # three channels say it thrice
    alpha = patches.unfit(alpha, *frame.rgb.shape[-2:]).clamp(0, 1)
    return colour.srgb_to_linear(alpha) if options.matte_transfer == "srgb" else alpha


def cut_out(
    frame: Frame, alpha: torch.Tensor, options: MatteOptions, *, suffix: str, premultiply: bool
) -> torch.Tensor:
    """The frame with its matte as fourth channel, in the usual colour state of the output format.

    Args:
        frame: As read.
        alpha: (1, 1, H, W) float32 in [0, 1].
        options: Colour state of the frame.
        suffix: Of the file to come: ".exr" is written in linear light, the others in sRGB.
        premultiply: Whether to multiply the colours by alpha (in linear light for ".exr").

    Returns:
        (1, 4, H, W) float32.
    """
    rgb = _straight(torch.nan_to_num(frame.rgb, nan=0.0, posinf=0.0, neginf=0.0), frame, options)
    state = frame.colour if options.input_colour == "auto" else options.input_colour
    wanted = stored_colour("frame" + suffix)
    if state != wanted:
        rgb = colour.srgb_to_linear(rgb) if wanted == "linear" else colour.linear_to_srgb(rgb)
    return torch.cat([rgb * alpha if premultiply else rgb, alpha], 1)


# --- a whole clip ------------------------------------------------------------------------------------


@dataclasses.dataclass
class ClipReport:
    """What became of the frames of a clip."""

    written: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)  # whole results of an earlier run
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # name: the error
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # what was done to frames, unasked: which
    passed_over: list[str] = dataclasses.field(default_factory=list)  # files of the folder that are no pictures


@dataclasses.dataclass(frozen=True)
class ClipPlan:
    """What a job will do, before a network is opened for it; made by :func:`plan_clip`."""

    clip: Clip
    options: MatteOptions
    job: JobFolder
    results: dict[str, tuple[Path, Path]]  # alpha and RGBA by frame
    sources: dict[str, dict | None]  # the state of each source, before it is read
    kept: tuple[str, ...]
    premultiply: bool

    @property
    def wanted(self) -> list[str]:
        """Names of the frames that are to be matted."""
        kept = set(self.kept)
        return [name for name in self.clip.names if name not in kept]


def plan_clip(
    clip: Clip,
    out: str | os.PathLike,
    options: MatteOptions | None = None,
    *,
    suffix: str = ".png",
    premultiply: bool | None = None,
    identity: dict | None = None,
    overwrite: bool = False,
    by_content: bool = False,
) -> ClipPlan:
    """Find out which frames of a clip a job has still to matte; nothing is written.

    Args:
        clip: From :func:`i2ilib.frames.open_clip`.
        out: Folder of the job; made when it runs.
        options: Colour, mapping, patches.
        suffix: ".png" or ".tif" (sRGB, 16 bits) or ".exr" (linear, half float).
        premultiply: Colours of the RGBA times alpha; by default only in OpenEXR.
        identity: What else the results depend on (weights, backend); part of the job's fingerprint.
        overwrite: Write again what is there.
        by_content: Know a source that has changed by its content instead of size and time, which takes a reading.

    Raises:
        I2IError: If ``out`` holds the results of another job, or the format is unknown.
    """
    options, out = options or MatteOptions(), Path(out)
    if suffix not in (".png", ".tif", ".exr"):
        raise I2IError("suffix", expected=".png or .tif or .exr", got=repr(suffix))
    premultiply = suffix == ".exr" if premultiply is None else premultiply
    about = {"source": str(clip.path.resolve()), "premultiply": premultiply, **dataclasses.asdict(options)}
    about |= {"layer": clip.layer} if clip.layer else {}
    job = open_job(out, about | (identity or {}), overwrite=overwrite, by_content=by_content)
    results = {name: (out / "alpha" / f"{name}{suffix}", out / "rgba" / f"{name}{suffix}") for name in clip.names}
    sources = {name: job.source(clip.source(name)) for name in clip.names}
    kept = tuple(name for name in clip.names if job.keeps(sources[name], results[name]))
    return ClipPlan(clip, options, job, results, sources, kept, premultiply)


def matte_clip(
    runner: Runner,
    clip: Clip,
    out: str | os.PathLike,
    options: MatteOptions | None = None,
    *,
    progress: bool = True,
    **how,
) -> ClipReport:
    """Matte every frame of a clip into ``out/alpha/<name>`` and ``out/rgba/<name>``, 16 bits a channel.

    Frames already written whole by the same job are kept where their source is still the same, so an interrupted run
    goes on where it stopped. A bad frame is reported and does not lose the others.

    Args:
        runner: The network, ready to run.
        clip: From :func:`i2ilib.frames.open_clip`.
        out: Folder; made if absent.
        options: Colour, mapping, patches.
        progress: Show a bar.
        **how: Format, identity and what to keep, as in :func:`plan_clip`.

    Raises:
        I2IError: If ``out`` holds the results of another job, or the format is unknown.
    """
    return run_plan(runner, plan_clip(clip, out, options, **how), progress=progress)


def run_plan(runner: Runner | None, plan: ClipPlan, *, progress: bool = True) -> ClipReport:
    """Do what is left of a job.

    Args:
        runner: The network, ready to run; None will do where no frame is wanted.
        plan: From :func:`plan_clip`.
        progress: Show a bar.
    """
    clip, options = plan.clip, plan.options
    report = ClipReport(kept=list(plan.kept), passed_over=list(clip.passed_over))
    if changed := [name for name in plan.kept if not plan.job.untouched(plan.results[name])]:
        report.notes["its results were changed since they were written, and are kept"] = changed
    plan.job.claim()
    for files in zip(*plan.results.values(), strict=True):
        discard_parts(*files)
    if clip.times:
        write_times(plan.job.out / "timecodes.txt", clip.times)

    def write(name: str, frame: Frame, alpha: torch.Tensor) -> None:
        files = plan.results[name]
        plan.job.begin(files)
        rgba = cut_out(frame, alpha, options, suffix=files[0].suffix, premultiply=plan.premultiply)
        where = {"origin": frame.origin, "aspect": frame.aspect}
        write_image(files[1], rgba, premultiplied=plan.premultiply, **where)
        write_image(files[0], alpha, **where)

    bar = tqdm(total=len(clip), initial=len(report.kept), desc="matte", unit="frame", disable=not progress)
    writing: deque[tuple[str, Future]] = deque()

    def settle(most: int) -> None:
        """Wait until at most so many frames are being written."""
        while len(writing) > most:
            name, future = writing.popleft()
            try:
                future.result()
                plan.job.note(plan.sources[name], plan.results[name])
                report.written.append(name)
            except FrameError as error:
                report.failed[name] = str(error)
                bar.write(f"skipped: {error}", file=sys.stderr)
            bar.update()

    # compressing a 4K picture takes longer than matting it, so two frames are written while the next one runs
    with bar, ThreadPoolExecutor(2, thread_name_prefix="write") as writers:
        for name, frame in clip.read(set(plan.wanted)):
            settle(1)
            try:
                if isinstance(frame, FrameError):
                    raise frame
                for note in (*frame.notes, *_of_alpha(frame, options)):
                    report.notes.setdefault(note, []).append(name)
                future = writers.submit(write, name, frame, matte(runner, frame, options))
            except FrameError as error:
                future = Future()
                future.set_exception(error)
            writing.append((name, future))
        settle(0)
    return report


def _of_alpha(frame: Frame, options: MatteOptions) -> tuple[str, ...]:
    if frame.alpha is None or options.input_alpha != "ignore" or bool((frame.alpha == 1).all()):
        return ()
    return ("its alpha channel is not used (--input-alpha unpremultiply divides colours by it)",)


def write_times(path: Path, times: tuple[float, ...]) -> None:
    """Times of a video's frames as mkvmerge and its like take them: milliseconds, a line each."""
    with atomic_path(path) as temporary:
        lines = ["# timestamp format v2", *(f"{1000 * time:.6f}" for time in times)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
