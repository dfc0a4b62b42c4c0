"""Faults for pictures, each at any strength: what cameras, codecs and colour pipelines do to them.

A fault is a plain function of pictures and a strength, which gives pictures of the same shape. :data:`FAULTS` lists
them with the unit of their strength and a ladder from mild to strong; :func:`tuned` finds the strength that makes a
given error. Pictures are sRGB codes in [0, 1], floating point, (C, H, W) or (N, C, H, W); the frames of a batch are
those of a clip. One channel is grey, and fares as three equal channels do; other than one or three, and whatever else
is no such picture, is an :class:`~i2ilib.I2IError`.
"""

from __future__ import annotations

import dataclasses
import io
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from .. import colour
from ..errors import I2IError
from ..frames import ffmpeg

_LUMA = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722)}  # of R, G and B
_BINOMIAL = {3: (1, 2, 1), 5: (1, 4, 6, 4, 1)}
_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault as data.

    Attributes:
        label: For figures.
        function: Of pictures and the strength.
        unit: Of the strength.
        strengths: From mild to strong; the numbers may fall, as a JPEG quality does.
        whole: The strength is a whole number.
    """

    label: str
    function: Callable[[torch.Tensor, float], torch.Tensor]
    unit: str
    strengths: tuple[float, ...]
    whole: bool = False

    def __call__(self, images: torch.Tensor, strength: float) -> torch.Tensor:
        return self.function(images, strength)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian of ``sigma`` pixels."""
    _check(images)
    return _by_plane(images, lambda plane: ndimage.gaussian_filter(plane, sigma, mode="nearest"))


def noise(images: torch.Tensor, sigma: float, *, seed: int = 0) -> torch.Tensor:
    """Gaussian noise of ``sigma`` 8-bit codes, drawn for each channel; what leaves [0, 1] is cut off."""
    _check(images)
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + drawn.to(images) * (sigma / 255)).clamp(0, 1)


def banding(images: torch.Tensor, q: float) -> torch.Tensor:
    """2q + 1 levels: through [-q, q] and whole numbers, as an INT8 network with that input range sees it.

    Raises:
        I2IError: If ``q`` is no power of two from 1 to 128.
    """
    _check(images)
    return colour.from_fixed(colour.from_int8(colour.to_int8(colour.to_fixed(images, q)), dtype=images.dtype), q)


def jpeg(images: torch.Tensor, quality: float) -> torch.Tensor:
    """JPEG by libjpeg's ``quality``, 4:2:0, as Pillow writes it.

    Raises:
        I2IError: If ``quality`` is no whole number from 1 to 100.
    """
    _check(images)
    if quality not in range(1, 101):  # libjpeg would take another one without a word
        raise I2IError("quality", expected="a whole number from 1 to 100", got=quality)

    def through(codes: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(codes).save(buffer, "JPEG", quality=int(quality), subsampling=2)
        return np.asarray(Image.open(buffer))

    return _by_codes(images, through)


def x265(images: torch.Tensor, crf: float) -> torch.Tensor:
    """HEVC by x265 at a constant rate factor, 8 bits, 4:2:0, BT.709; of a batch, one clip at 24 frames a second.

    Raises:
        I2IError: If a side is odd or below 32 pixels, or ``crf`` leaves 0 to 51.
        UnavailableError: If there is no ffmpeg.
    """
    _check(images)
    if not 0 <= crf <= 51:
        raise I2IError("crf", expected="0 to 51", got=crf)
    height, width = images.shape[-2:]
    if height % 2 or width % 2 or min(height, width) < 32:
        raise I2IError("images", expected="even sides of 32 pixels or more", got=f"{height}×{width}")
    frames = _codes(images.reshape(-1, *images.shape[-3:]))
    layout = "gray" if frames.shape[-1] == 1 else "rgb24"
    raw = ["-f", "rawvideo", "-pix_fmt", layout, "-video_size", f"{width}x{height}", "-framerate", "24"]
    flags = "flags=bicubic+accurate_rnd+full_chroma_int"
    x265 = ["-c:v", "libx265", "-crf", f"{crf:g}", "-pix_fmt", "yuv420p"]
    x265 += ["-x265-params", "log-level=none:pools=1:frame-threads=1", "-colorspace", "bt709", "-color_range", "tv"]
    there = ["-vf", f"scale={flags}:out_color_matrix=bt709:out_range=tv", *x265, "clip.mkv"]
    back = ["-vf", f"scale={flags}:in_color_matrix=bt709:in_range=tv", "-fps_mode", "passthrough"]
    with tempfile.TemporaryDirectory() as folder:
        expected = "ffmpeg to code the clip"
        feed = (frame.tobytes() for frame in frames)
        ffmpeg.run([*raw, "-i", "pipe:0", *there], what="x265", expected=expected, folder=folder, feed=feed)
        back = ["-i", "clip.mkv", *back, "-f", "rawvideo", "-pix_fmt", layout, "back.raw"]
        ffmpeg.run(back, what="x265", expected=expected, folder=folder)
        decoded = np.fromfile(Path(folder, "back.raw"), np.uint8).reshape(frames.shape)
    return _tensor(decoded, images)


def shift(images: torch.Tensor, pixels: float) -> torch.Tensor:
    """To the right by ``pixels``, by a cubic spline; the left edge is repeated."""
    _check(images)
    moved = _by_plane(images, lambda plane: ndimage.shift(plane, (0, pixels), order=3, mode="nearest"))
    return moved.clamp(0, 1)


def brightness(images: torch.Tensor, codes: float) -> torch.Tensor:
    """Brighter by 8-bit codes; what passes 1 is cut off."""
    _check(images)
    return (images + codes / 255).clamp(0, 1)


def sharpen(images: torch.Tensor, amount: float, *, size: int = 5) -> torch.Tensor:
    """Unsharp mask: ``amount`` times what a binomial window of ``size`` pixels takes away from the luma is added.

    Raises:
        I2IError: If ``size`` is neither 3 nor 5.
    """
    _check(images)
    if size not in _BINOMIAL:
        raise I2IError("size", expected="3 or 5 pixels", got=size)
    taps = np.array(_BINOMIAL[size]) / sum(_BINOMIAL[size])
    luma = torch.einsum("...chw,c->...hw", images, images.new_tensor(_LUMA["bt709"]))

    def softer(plane: np.ndarray) -> np.ndarray:
        return ndimage.correlate1d(ndimage.correlate1d(plane, taps, 0, mode="nearest"), taps, 1, mode="nearest")

    detail = luma - _by_plane(luma, softer)
    return (images + amount * detail.unsqueeze(-3)).clamp(0, 1)


def matrix(images: torch.Tensor, share: float) -> torch.Tensor:
    """Y'CbCr made by BT.601 and read by BT.709: reds and greens move. ``share`` 1 is the fault, less is a mix."""
    _check(images)
    if images.shape[-3] == 1:
        return images.clamp(0, 1)  # grey has no chroma, by either matrix
    wrong = images.new_tensor(np.linalg.inv(_to_ycc("bt709")) @ _to_ycc("bt601"))
    return _mixed(images, torch.einsum("ij,...jhw->...ihw", wrong, images), share)


def value_range(images: torch.Tensor, share: float) -> torch.Tensor:
    """Limited range shown as full: black is code 16, white 235. ``share`` 1 is the fault, less is a mix."""
    _check(images)
    return _mixed(images, (16 + 219 * images) / 255, share)


def gamma_twice(images: torch.Tensor, share: float) -> torch.Tensor:
    """The sRGB curve applied to sRGB codes once more. ``share`` 1 is the fault, less is a mix."""
    _check(images)
    return _mixed(images, colour.linear_to_srgb(images), share)


FAULTS: Mapping[str, Fault] = {
    "blur": Fault("blur", blur, "σ, pixels", (0.4, 0.6, 0.9, 1.3, 2, 3)),
    "noise": Fault("noise", noise, "σ, codes", (2, 4, 8, 16, 32, 64)),
    "banding": Fault("banding", banding, "q_i", (64, 32, 16, 8, 4, 2), whole=True),
    "jpeg": Fault("JPEG", jpeg, "quality", (95, 80, 60, 40, 20, 8), whole=True),
    "x265": Fault("x265", x265, "CRF", (12, 18, 23, 28, 34, 42), whole=True),
    "shift": Fault("shift", shift, "pixels", (0.1, 0.25, 0.5, 1, 2, 4)),
    "brightness": Fault("brightness", brightness, "codes", (2, 4, 8, 16, 32, 64)),
    "sharpen": Fault("unsharp mask", sharpen, "amount", (0.1, 0.3, 0.6, 1, 1.5, 3)),
    "matrix": Fault("601 read as 709", matrix, "share", (0.1, 0.25, 0.5, 0.75, 1)),
    "range": Fault("limited shown as full", value_range, "share", (0.1, 0.25, 0.5, 0.75, 1)),
    "gamma": Fault("gamma twice", gamma_twice, "share", (0.1, 0.25, 0.5, 0.75, 1)),
}


def tuned(name: str, images: torch.Tensor, mse: float) -> float:
    """The strength at which a fault makes this mean squared error, by bisection; to the nearest where it must be whole.

    Args:
        name: In :data:`FAULTS`; not "banding", which knows powers of two alone.
        images: Pictures.
        mse: To reach, of values in [0, 1].

    Raises:
        I2IError: If the fault is another, or makes no such error between no strength and its strongest.

    Example:
        >>> grey = torch.full((3, 32, 32), 0.5)
        >>> round(tuned("brightness", grey, (10 / 255) ** 2), 2)
        10.0
    """
    names = [known for known in FAULTS if known != "banding"]
    if name not in names:
        raise I2IError("fault", expected=" or ".join(names), got=repr(name))
    fault = FAULTS[name]

    def error(strength: float) -> float:
        return (fault(images, strength).double() - images).square().mean().item()

    mild = {"jpeg": 100, "x265": 0}.get(name, 0.0)
    strong = fault.strengths[-1]
    if not error(mild) <= mse <= error(strong):
        want = f"an error that {name} makes, {error(mild):.2g} to {error(strong):.2g}"
        raise I2IError("mse", expected=want, got=mse)
    while abs(strong - mild) > (1 if fault.whole else 1e-6 * abs(fault.strengths[-1])):
        middle = (mild + strong) // 2 if fault.whole else (mild + strong) / 2
        mild, strong = (mild, middle) if error(middle) > mse else (middle, strong)
    return min((mild, strong), key=lambda strength: abs(math.log(max(error(strength), 1e-30) / mse)))


def alike(image: torch.Tensor, q: int = 4) -> dict[str, torch.Tensor]:
    """Seven faults of one mean squared error, by label: the banding that ``q`` makes, and six others tuned to it.

    JPEG comes as near as a whole quality can.

    Raises:
        I2IError: If one of them cannot make that error on this picture.
    """
    found = {FAULTS["banding"].label: banding(image, q)}
    mse = (found["banding"].double() - image).square().mean().item()
    for name in ("blur", "noise", "jpeg", "shift", "brightness", "sharpen"):
        found[FAULTS[name].label] = FAULTS[name](image, tuned(name, image, mse))
    return found


def resize(frames: torch.Tensor, size: tuple[int, int], kernel: str = "bicubic") -> torch.Tensor:
    """Frames in another size, by Pillow on 8-bit codes: with a window that grows as the picture shrinks.

    Args:
        frames: As for a fault.
        size: Height and width.
        kernel: "bicubic" or "lanczos".

    Raises:
        I2IError: If the kernel is unknown.
    """
    _check(frames, "frames")
    if kernel not in _KERNELS:
        raise I2IError("kernel", expected=" or ".join(_KERNELS), got=repr(kernel))
    return _by_codes(frames, lambda codes: np.asarray(Image.fromarray(codes).resize(size[::-1], _KERNELS[kernel])))


def _check(images: torch.Tensor, name: str = "images") -> None:
    shape = tuple(images.shape)
    if not (images.is_floating_point() and len(shape) in (3, 4) and shape[-3] in (1, 3) and images.numel()):
        raise I2IError(
            name,
            expected="floating point, (C, H, W) or (N, C, H, W), one or three channels, not empty",
            got=f"{shape} {images.dtype}",
        )


def _mixed(images: torch.Tensor, wrong: torch.Tensor, share: float) -> torch.Tensor:
    return torch.lerp(images, wrong.to(images), share).clamp(0, 1)


def _to_ycc(name: str) -> np.ndarray:
    """RGB to Y'CbCr, full range."""
    red, green, blue = _LUMA[name]
    b, r = 2 * (1 - blue), 2 * (1 - red)
    return np.array(
        [[red, green, blue], [-red / b, -green / b, (1 - blue) / b], [(1 - red) / r, -green / r, -blue / r]]
    )


def _by_plane(images: torch.Tensor, function: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    planes = images.detach().cpu().double().reshape(-1, *images.shape[-2:]).numpy()
    return torch.from_numpy(np.stack([function(plane) for plane in planes])).reshape(images.shape).to(images)


def _by_codes(images: torch.Tensor, function: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    """A function of 8-bit pictures, (H, W, 3) or (H, W), on each."""
    frames = _codes(images.reshape(-1, *images.shape[-3:]))
    grey = frames.shape[-1] == 1
    return _tensor(np.stack([function(frame[..., 0] if grey else frame) for frame in frames]), images)


def _codes(frames: torch.Tensor) -> np.ndarray:
    """(N, H, W, C) uint8."""
    return frames.detach().cpu().mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _tensor(codes: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C) or (N, H, W) uint8 as pictures of as many axes as ``like``."""
    codes = codes[..., None] if codes.ndim == 3 else codes
    frames = torch.from_numpy(np.ascontiguousarray(codes.transpose(0, 3, 1, 2))).to(like) / 255
    return frames if like.ndim == 4 else frames[0]
