"""VMAF by libvmaf, through the ffmpeg program: of raw files, videos, pictures and tensors."""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..errors import FrameError, I2IError, IntegrityError
from ..frames import Clip
from ._libvmaf import LOG, MATRICES, MODELS, graph, parse_log, run, with_libvmaf
from ._pair import NoScore, as_batch, check_pair, told
from ._sides import Side, fed, side, unequal
from .catalogue import Metric, register

_LONGER = 216  # pixels of the longer side at least, for models v1


@dataclasses.dataclass(frozen=True)
class VmafResult:
    """What libvmaf said of two clips.

    Attributes:
        mean: Over the frames, [0, 100].
        harmonic_mean: n / Σ 1/(VMAF + 1) - 1, which bad frames pull down more.
        frames: VMAF of each frame.
        features: libvmaf's other figures of each frame, by its own names: those that the model is made of;
            ``psnr_y``, ``psnr_cb`` and ``psnr_cr`` in dB, cut off at 60 dB of 8 bits and 72 dB of 10; ``float_ssim`` of
            luma, after averaging over squares of round(short side / 256) pixels.
        model: Its name; scores of different models differ by points.
        ffmpeg: Version of the program.
        about: Size, number of frames, pixel format, matrix and range that were scored, what each side was stored as and
            whether it was converted, version of libvmaf.
    """

    mean: float
    harmonic_mean: float
    frames: tuple[float, ...]
    features: Mapping[str, tuple[float, ...]]
    model: str
    ffmpeg: str
    about: Mapping[str, object]

    def describe(self) -> dict:
        """All of it, for JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "frames": list(self.frames),
            "features": {name: list(values) for name, values in self.features.items()},
            "about": dict(self.about),
        }


def vmaf(
    dist: object,
    ref: object,
    *,
    model: str = "vmaf_v0.6.1",
    size: tuple[int, int] | None = None,
    pixel_format: str | None = None,
    threads: int | None = None,
    progress: bool = False,
    matrix: str = "bt709",
    bits: int | None = None,
) -> VmafResult:
    """VMAF of a distorted clip against its reference, by libvmaf in the ffmpeg of imageio-ffmpeg.

    Higher is better. The order of the two matters. The first frame of a clip has no motion, so by v0.6.1 and its NEG a
    still against itself scores 97.43 and not 100. Never write "VMAF" without the model.

    Frames are matched by their order: rates and times do not count, and the two must be equally many. What is scored is
    yuv420p of limited range, of 10 bits if one side has more than 8. Y'CbCr is scored as it is stored where both sides
    are stored alike; where the matrices differ, and beside RGB, both are brought to ``matrix``. A video that does not
    state its matrix is taken to have that of the other one, or BT.601 beside RGB, as :func:`~i2ilib.frames.open_clip`
    takes it; a raw file has the other's, or ``matrix``. Transfer functions and primaries are not looked at.

    Args:
        dist: The distorted clip: a raw file (``.yuv``); a video, a folder of pictures or one picture; a
            :class:`~i2ilib.frames.Clip`; a tensor (N, 3, H, W) or a sequence or an iterable of (3, H, W), sRGB codes in
            [0, 1]. An alpha channel is ignored. Frames are read one by one, and an iterable is asked for one at a time.
        ref: The reference, likewise, of the same size in pixels.
        model: A model that is built into libvmaf, one of :data:`MODELS` for instance.
        size: Width and height of raw files, pixels.
        pixel_format: Of raw files, by FFmpeg's name: yuv420p, yuv420p10le and so on, of limited range.
        threads: Of libvmaf; as many as PyTorch uses by default.
        progress: Show a bar.
        matrix: "bt709" or "bt601": how RGB becomes Y'CbCr. It moves the score by a point.
        bits: 8 or 10, with which it is scored; by default 8 if neither side has more. A tensor has 8 if all of it lies
            on 8-bit codes, an iterable has more.

    Raises:
        I2IError: If a side cannot be read, is empty, or holds NaN or values outside [0, 1]; the sides differ in size or
            number of frames; a side is shorter than the model needs (:data:`MODELS`; libvmaf would crash);
            or an argument is unknown. Most are FrameErrors, which name the file.
        UnavailableError: If there is no ffmpeg, it has no libvmaf, or its libvmaf does not know the model.
        IntegrityError: If libvmaf's log is not what it should be.

    Source:
        Li et al., VMAF: The Journey Continues, 2018, and github.com/Netflix/vmaf (models, libvmaf).

    Example:
        >>> grey = torch.full((2, 3, 36, 64), 0.5)
        >>> result = vmaf(grey, grey)
        >>> round(result.mean, 2), len(result.frames), result.about["pixel_format"]
        (97.43, 2, 'yuv420p10le')
    """
    _check(model, size, threads, matrix, bits)
    version = with_libvmaf()
    sides = [side(name, source, size, pixel_format, bits) for name, source in (("dist", dist), ("ref", ref))]
    if (size or pixel_format) and all(one.kind != "raw" for one in sides):
        raise I2IError("size and pixel_format", expected="a raw .yuv file that they are of", got="none")
    count = _agreed(sides, model)
    bits = bits or (10 if max(one.bits for one in sides) > 8 else 8)
    threads = threads or torch.get_num_threads()
    plan = graph(sides, bits, matrix, threads)
    options = f"log_fmt=json:log_path={LOG}:model=version={model}:n_threads={threads}"
    options += ":feature=name=psnr|name=float_ssim:shortest=1:repeatlast=0"
    given = any(one.frames for one in sides)
    frames = fed(sides, bits) if given else None
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(frames, desc=model, total=count, unit="frame", disable=not progress) as bar,
    ):
        taken = run(
            [*plan.inputs, "-filter_complex_threads", str(threads)],
            f"{plan.chains};[d][r]libvmaf={options}",
            model,
            what=f"{sides[0].name} against {sides[1].name}",
            folder=folder,
            feed=bar if given else None,
            tick=(lambda done: bar.update(done - bar.n)) if progress and not given else None,
        )
        log = Path(folder, LOG)
        if not log.is_file():
            raise IntegrityError("libvmaf", expected="a log", got="none, and no error either")
        found = parse_log(log.read_text(encoding="utf-8"))
    scored = len(found.values["vmaf"])
    if scored != (count or taken):
        raise FrameError(
            f"{sides[0].name} and {sides[1].name}",
            expected=f"{count or taken} frames that ffmpeg can decode, as they promise",
            got=scored,
            remedy="A file is damaged, or changes its size midway: copy or convert it again.",
        )
    about = {
        "size": list(sides[0].size),
        "frames": scored,
        "pixel_format": plan.pixel_format,
        "matrix": plan.matrix,
        "range": "limited",
        **{
            name: {"kind": one.kind, "stored": one.stored, "converted": converted}
            for name, one, converted in zip(("dist", "ref"), sides, plan.converted, strict=True)
        },
        "libvmaf": found.version,
    }
    features = {name: values for name, values in found.values.items() if name != "vmaf"}
    return VmafResult(found.mean, found.harmonic_mean, found.values["vmaf"], features, model, version, about)


def _check(model: str, size, threads: int | None, matrix: str, bits: int | None) -> None:
    if not isinstance(model, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", model):  # more would be options of the filter
        raise I2IError("model", expected="a name such as " + ", ".join(MODELS), got=repr(model))
    pair = isinstance(size, Sequence) and len(size) == 2
    if size is not None and not (pair and all(isinstance(side, Integral) and side > 0 for side in size)):
        raise I2IError("size", expected="(width, height) in pixels", got=size)
    if threads is not None and threads < 1:
        raise I2IError("threads", expected="1 or more", got=threads)
    if matrix not in MATRICES:
        raise I2IError("matrix", expected=" or ".join(MATRICES), got=repr(matrix))
    if bits not in (None, 8, 10):
        raise I2IError("bits", expected="8 or 10", got=bits)


def _agreed(sides: Sequence[Side], model: str) -> int | None:
    """Number of frames, if one side knows it, once it is certain that the sides can be compared."""
    dist, ref = sides
    if dist.size != ref.size:
        got = " and ".join(f"{one.size[0]}×{one.size[1]} ({one.name})" for one in sides)
        raise I2IError("dist and ref", expected="one size in pixels", got=got, remedy="Scale one of them first.")
    short = MODELS.get(model, 18)
    long = max(short, _LONGER) if "_v1." in model else short
    if min(dist.size) < short or max(dist.size) < long:
        want = f"sides of {short} pixels or more" + (f", the longer of {long}" if long > short else "")
        raise NoScore(dist.name, expected=f"{want}, for {model}", got=f"{dist.size[0]}×{dist.size[1]}")
    if None not in (dist.count, ref.count) and dist.count != ref.count:
        raise unequal(dist, str(dist.count), ref, str(ref.count))
    return dist.count or ref.count


def _of_tensors(
    pred: torch.Tensor, target: torch.Tensor, *, model: str, reduction: str = "mean"
) -> float | torch.Tensor:
    """VMAF of each frame of (N, 3, H, W), without a gradient."""
    pred, target = (as_batch(image) for image in check_pair(pred, target, value_range=1.0))
    found = vmaf(pred, target, model=model)
    return told(torch.tensor(found.frames, dtype=torch.float64, device=pred.device), reduction)


def _of_clips(dist: Clip, ref: Clip, *, model: str, progress: bool = False) -> tuple[tuple[float, ...], dict]:
    """VMAF of each frame of a clip, and how it was come by."""
    found = vmaf(dist, ref, model=model, progress=progress)
    about = dict(found.about) | {"harmonic_mean": found.harmonic_mean, "ffmpeg": found.ffmpeg}
    return found.frames, {found.model: about}


for _model, _label in (
    ("vmaf_v0.6.1", "VMAF v0.6.1"),
    ("vmaf_v0.6.1neg", "VMAF v0.6.1 NEG"),
    ("vmaf_4k_v0.6.1", "VMAF 4K v0.6.1"),
    ("vmaf_v1.0.16_3d0h", "VMAF v1.0.16 3H"),
):
    register(
        Metric(
            name=_model,
            label=_label,
            variant="Y'CbCr as videos have it, RGB by BT.709; limited range, 4:2:0, 8 bits if both have 8, else 10",
            higher_is_better=True,
            score_range=(0, 100),
            source="libvmaf, through ffmpeg; github.com/Netflix/vmaf",
            function=_of_tensors,
            takes="clip",
            settings={"model": _model},
            smallest=MODELS[_model],
            clips=functools.partial(_of_clips, model=_model),
        )
    )
