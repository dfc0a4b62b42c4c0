"""How libvmaf is asked, through the ffmpeg program: its models, the graph of filters before it, and its log."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import FrameError, I2IError, IntegrityError, UnavailableError
from ..frames import ffmpeg
from ._sides import Side

MODELS = {  # of libvmaf, that builds of ffmpeg may have: shortest side of a picture, below which it crashes
    "vmaf_v0.6.1": 18,
    "vmaf_v0.6.1neg": 18,
    "vmaf_4k_v0.6.1": 18,
    "vmaf_4k_v0.6.1neg": 18,
    "vmaf_v1.0.16_5d0h": 270,
    "vmaf_v1.0.16_3d0h": 180,
    "vmaf_v1.0.16_3d0h_2160": 324,
    "vmaf_v1.0.16_1d5h_2160": 180,
    "vmaf_v1.0.16_hfr_5d0h": 270,
    "vmaf_v1.0.16_hfr_3d0h": 180,
    "vmaf_v1.0.16_hfr_3d0h_2160": 324,
    "vmaf_v1.0.16_hfr_1d5h_2160": 180,
}
MATRICES = ("bt709", "bt601")
LOG = "vmaf.json"
_SCALE = "scale=flags=bicubic+accurate_rnd+full_chroma_int"
_MEET = "setparams=range=tv:colorspace=bt709"  # names alone, and no pixel: libvmaf takes no two inputs of other names


class Log(NamedTuple):
    """What libvmaf wrote.

    Attributes:
        version: Of libvmaf.
        mean: Of VMAF.
        harmonic_mean: Of VMAF.
        values: Each figure of each frame, by name; "vmaf" is one of them.
    """

    version: str
    mean: float
    harmonic_mean: float
    values: dict[str, tuple[float, ...]]


def parse_log(text: str) -> Log:
    """Read the JSON that libvmaf writes; its pooled values must be those of its frames.

    Raises:
        IntegrityError: If it is no such log, has no frames or not all of them, a frame has no VMAF, or the pooled
            values are others.

    Example:
        >>> frames = '[{"frameNum": 0, "metrics": {"vmaf": 90.0}}, {"frameNum": 1, "metrics": {"vmaf": 80.0}}]'
        >>> pooled = '{"vmaf": {"mean": 85.0, "harmonic_mean": 84.709302}}'
        >>> parse_log(f'{{"version": "3.0.0", "frames": {frames}, "pooled_metrics": {pooled}}}').values
        {'vmaf': (90.0, 80.0)}
    """
    try:
        log = json.loads(text)
        version = str(log["version"])
        numbers = [frame["frameNum"] for frame in log["frames"]]
        metrics = [frame["metrics"] for frame in log["frames"]]
        names = [name for name in (metrics[0] if metrics else ()) if all(name in frame for frame in metrics)]
        values = {name: tuple(float(frame[name]) for frame in metrics) for name in names}
        pooled = [float(log["pooled_metrics"]["vmaf"][how]) for how in ("mean", "harmonic_mean")]
    except (ValueError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise IntegrityError("libvmaf's log", expected="JSON with frames and pooled values", got=got) from None
    scores = values.get("vmaf", ())
    if not scores or numbers != list(range(len(numbers))) or not all(math.isfinite(score) for score in scores):
        got = f"frames {numbers[:8]}, VMAF {scores[:8]}"
        raise IntegrityError("libvmaf's log", expected="frames from 0 on, each with a finite VMAF", got=got)
    ours = [sum(scores) / len(scores), len(scores) / sum(1 / (score + 1) for score in scores) - 1]
    if not all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(ours, pooled, strict=True)):
        want = f"the mean and harmonic mean of its frames, {ours[0]:.6f} and {ours[1]:.6f}"
        raise IntegrityError("libvmaf's log", expected=want, got=f"{pooled[0]} and {pooled[1]}")
    return Log(version, *pooled, values)


def known_models() -> tuple[str, ...]:
    """Those of :data:`MODELS` that this machine's libvmaf knows, found by scoring a black frame with each.

    Raises:
        UnavailableError: If there is no ffmpeg with libvmaf.
    """
    with_libvmaf()
    return tuple(model for model in MODELS if _knows(model))


class Graph(NamedTuple):
    inputs: list[str]
    chains: str  # from the inputs to [d] and [r]
    pixel_format: str  # that is scored
    matrix: str
    converted: list[str]  # how, in words


def graph(sides: Sequence[Side], bits: int, matrix: str, threads: int) -> Graph:
    """How ffmpeg reads both sides and brings them to one form; times are replaced by the number of the frame."""
    planes = [one for one in sides if one.arguments]
    stated = [one.matrix for one in planes if one.matrix]
    unstated = {"raw": matrix, "video": matrix if len(planes) == 2 else "bt601"}
    matrices = [(one.matrix or (stated or [unstated[one.kind]])[0]) if one.arguments else "RGB" for one in sides]
    common = matrices[0] if matrices[0] == matrices[1] != "RGB" else matrix
    target = "yuv420p" if bits == 8 else "yuv420p10le"
    inputs, chains, converted = [], [], []
    for place, (one, stored) in enumerate(zip(sides, matrices, strict=True)):
        label, chosen = f"[{place}:{one.stream}]", ""
        if one.arguments:
            inputs += ["-threads", str(threads), *one.arguments]
            scale, how = _scale(one, stored, common, target)
        else:
            if planes or not inputs:  # else both come by the one pipe, in turns
                width, height = one.size
                layout = "rgb24" if bits == 8 else "rgb48le"
                inputs += ["-f", "rawvideo", "-pix_fmt", layout, "-video_size", f"{width}x{height}"]
                inputs += ["-framerate", "25", "-i", "pipe:0"]
            if not planes:
                label, chosen = f"[turn{place}]", f"select='eq(mod(n,2),{place})',"
            scale, how = f",{_SCALE}:in_range=pc:out_range=tv:out_color_matrix={common},format={target}", "from RGB"
        chains.append(f"{label}{chosen}settb=1/25,setpts=N{scale},{_MEET}[{'dr'[place]}]")
        converted.append(how)
    if not planes:
        chains.insert(0, "[0:0]split[turn0][turn1]")
    return Graph(inputs, ";".join(chains), target, common, converted)


def _scale(one: Side, matrix: str, common: str, target: str) -> tuple[str, str]:
    """The filter that brings planes to the common form, and what it does in words; none where nothing is to be done."""
    steps = [f"{one.pixel_format} to {target}"] if one.pixel_format != target else []
    steps += ["full to limited range"] if one.full else []
    steps += [f"{matrix} to {common}"] if matrix != common else []
    if not steps:
        return "", "no"
    if matrix != common and matrix not in MATRICES:
        want = f"the matrix of the other side, or one of {', '.join(MATRICES)}"
        raise FrameError(one.name, expected=want, got=matrix, remedy="Convert one of the two first.")
    ends = (matrix, common) if matrix != common else ("bt709", "bt709")  # the same at both ends changes nothing
    scale = f",{_SCALE}:in_range={'pc' if one.full else 'tv'}:out_range=tv"
    return f"{scale}:in_color_matrix={ends[0]}:out_color_matrix={ends[1]},format={target}", ", ".join(steps)


def run(inputs: Sequence[str], graph: str, model: str, *, what: str, **options) -> int:
    """Score, with the options of :func:`i2ilib.frames.ffmpeg.run`; an unknown model is told from other failures.

    A damaged frame is an error, and ffmpeg may insert no filter of its own that would convert a clip.
    """
    command = ["-xerror", "-noauto_conversion_filters", *inputs, "-filter_complex", graph]
    command += ["-an", "-sn", "-dn", "-fps_mode", "passthrough", "-f", "null", "-"]
    try:
        return ffmpeg.run(command, what=what, expected="ffmpeg to score it", **options)
    except ffmpeg.ProgramError:
        if _knows(model):
            raise
    known = ", ".join(known_models())
    kind = UnavailableError if model in MODELS else I2IError
    remedy = "Other builds may have more: IMAGEIO_FFMPEG_EXE names one."
    raise kind("model", expected=f"one that this libvmaf knows ({known})", got=repr(model), remedy=remedy)


def _knows(model: str) -> bool:
    black = bytes(640 * 360 * 3 // 2)
    source = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", "640x360", "-i", "pipe:0"]
    graph = ["-filter_complex", f"[0:0]split[d][r];[d][r]libvmaf=model=version={model}", "-f", "null", "-"]
    try:
        return ffmpeg.run([*source, *graph], what=model, expected="", feed=[black]) == 1
    except ffmpeg.ProgramError:
        return False


def with_libvmaf() -> str:
    """Version of the ffmpeg program, once it is certain that it has libvmaf."""
    program = ffmpeg.program()
    told = re.search(r"ffmpeg version (\S+)", ffmpeg.asked(program, "-version"))
    version = told[1] if told else "of unknown version"
    if "libvmaf AVOptions" not in ffmpeg.asked(program, "-hide_banner", "-h", "filter=libvmaf"):
        raise UnavailableError(
            "libvmaf",
            expected="an ffmpeg that has it",
            got=f"{program}, {version}, without",
            remedy="pip install -U imageio-ffmpeg (0.6 has none for Linux on ARM), or let IMAGEIO_FFMPEG_EXE name a "
            "program that was built with it.",
        )
    return version
